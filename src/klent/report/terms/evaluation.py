"""The keys of an evaluation."""

from klent.report.terms.term import Term

EVALUATION: dict[str, Term] = {
    "step": Term("", "Steps trained before the evaluation.", "0 is the model as it was loaded."),
    "problems": Term(
        "", "Held-out problems, the same at every evaluation.", "Intervals shrink with the square root of it."
    ),
    "samples": Term(
        "", "Completions sampled for each problem.", "Samples of one problem are not independent."
    ),
    "temperature": Term(
        "",
        "Sampling temperature of the evaluation; 0 is greedy.",
        "The recipe's, the same as in training.",
    ),
    "accuracy": Term(
        "fraction",
        "Share of correct samples, if every reward is 0 or 1; an unscorable sample counts as wrong.",
        "To compare before and after, use the change over the same problems, which the report shows.",
    ),
    "low": Term(
        "fraction",
        "Lower end of the accuracy's 95% interval (Wilson).",
        "The interval is over problems, not over samples.",
    ),
    "high": Term(
        "fraction",
        "Upper end of the same interval.",
        "Overlapping intervals do not rule out a significant change.",
    ),
    "reward": Term(
        "reward", "Mean reward of the samples that could be scored.", "The headline if rewards are graded."
    ),
    "reward_low": Term(
        "reward",
        "Lower end of its 95% interval over problems: Student's t, or Wilson's if every reward is 0 or 1.",
        "Absent if all problems have the same mean, because the spread is then unknown.",
    ),
    "reward_high": Term("reward", "Upper end of the same interval.", "As for high."),
    "pass@<k>": Term(
        "fraction",
        "Probability that at least one of k answers to a problem is correct, estimated without bias.",
        "If it stays flat while accuracy rises, the policy became more certain, not more capable.",
    ),
    "accuracy@<T>": Term(
        "fraction",
        "Accuracy at another sampling temperature T (eval.temperatures); 0 is greedy.",
        "A gain that a lower temperature gives to the untrained model too is not an effect of training.",
    ),
    "reward@<T>": Term(
        "reward",
        "Mean reward at that temperature. The ends of both intervals have the same suffix, as in low@0.",
        "Greedy answers are one sample per problem.",
    ),
    "preference/accuracy": Term(
        "fraction",
        "Held-out pairs whose better answer has the higher score, as preference/accuracy in training.",
        "0.5 is chance; with a reference it is also the value before training.",
    ),
    "preference/low": Term(
        "fraction", "Lower end of its 95% interval (Wilson).", "The interval is over pairs."
    ),
    "preference/high": Term("fraction", "Upper end of the same interval.", "As for preference/low."),
    "preference/margin": Term(
        "nats",
        "Mean score of the better answers minus that of the worse ones.",
        "With a reference, 0 before training.",
    ),
    "preference/margin_low": Term(
        "nats", "Lower end of its 95% interval (Student's t, over pairs).", "As above."
    ),
    "preference/margin_high": Term("nats", "Upper end of the same interval.", "As above."),
    "preference/chosen": Term(
        "nats", "Mean score of the better answers.", "It may fall although the margin grows."
    ),
    "preference/rejected": Term("nats", "Mean score of the worse answers.", "See preference/chosen."),
    "preference/right": Term(
        "",
        "For each pair 1 where the order is right, 0 where it is wrong, 0.5 for a tie.",
        "preference/accuracy is the mean of these.",
    ),
    "majority": Term(
        "fraction",
        "Problems whose most frequent answer is right; of tied answers each counts by its share.",
        "Training often ends at the accuracy that a vote of the untrained model already had.",
    ),
    "agreement": Term(
        "fraction",
        "Share of a problem's samples that gave its most frequent answer, mean; uses no label.",
        "It rises with certainty, right or wrong.",
    ),
    "kept": Term(
        "fraction",
        "Share of answers equal to the one that won the problem's vote before training; uses no label.",
        "It rises as the policy becomes certain of its initial answers, and falls once it leaves them.",
    ),
    "vote": Term("", "The answer that won each problem's vote, before training.", "`kept` compares with it."),
    "skewness": Term(
        "",
        "Skewness (third standardised moment) of all logits along the sampled answers, pooled over positions.",
        "Positive: the long tail is on the side of likely tokens.",
    ),
    "skewness/position": Term(
        "",
        "The same for each position, then the mean.",
        "Adding a constant to all logits of a position does not change it.",
    ),
    "entropy": Term(
        "nats per token", "Mean entropy while answering.", "Like policy/entropy, on held-out problems."
    ),
    "length": Term("tokens", "Mean number of sampled tokens.", "Like completion/length."),
    "turns": Term("", "Mean number of turns of an episode in an environment.", "Like episode/turns."),
    "prefill": Term(
        "tokens",
        "Prompt tokens that the sampler read for all samples; only with an environment.",
        "Like tokens/prefill: ideally each problem's opening and all text between turns once. A run that learnt "
        "values (qsft, ilql) plays with two models, and each of them reads this many.",
    ),
    "unscorable": Term("fraction", "Answers that could not be scored.", "0 in a healthy run."),
    "unscorable_why": Term(
        "", "Each reason why answers could not be scored, with their number.", "Fix these first."
    ),
    "seconds": Term("s", "Wall time of the evaluation.", "Nearly all of it is sampling."),
    "rewards": Term(
        "", "For each problem, the reward of each sample; null is unscorable.", "In the task's order."
    ),
    "correct": Term(
        "",
        "For each problem, the outcome of each sample, where every reward is 0 or 1.",
        "The accuracy is their mean.",
    ),
    "loss": Term(
        "nats per token",
        "Minus the mean log-probability of the tokens of held-out completions; only with rollout.engine=dataset.",
        "Nothing is sampled, so it is exact. If it rises while objective/loss falls, the run overfits.",
    ),
    "loss_low": Term(
        "nats per token",
        "Lower end of its 95% interval over completions (Student's t, for a ratio of means).",
        "How much the loss would vary with other held-out completions. Absent if only one is held out.",
    ),
    "loss_high": Term("nats per token", "Upper end of the same interval.", "As for loss_low."),
    "perplexity": Term(
        "",
        "The exponential of the loss.",
        "As hard to predict as a choice among this many equally likely tokens.",
    ),
    "loss_completions": Term(
        "", "Held-out completions measured.", "Completions that are too long are left out."
    ),
    "loss_tokens": Term(
        "", "Their tokens, without those of prompts and tools.", "The loss is the mean over them."
    ),
    "loss_texts": Term(
        "",
        "The first of these completions, token by token with losses.",
        "The report shows them before and after.",
    ),
    "loss_worst": Term(
        "", "The tokens with the largest losses in all of them.", "A wrong label often shows up here first."
    ),
    "calibration/error": Term(
        "probability",
        "Expected calibration error of a reward model. Held-out pairs are sorted by the difference of their scores "
        "into bins of equal size; it is the mean over bins of |predicted - observed| share of right orders.",
        "At 0 the model is as often right as it predicts. Few pairs make it larger: look at the bins' intervals.",
    ),
    "calibration/log_loss": Term(
        "nats per pair",
        "Mean of -log σ(score of the better answer - score of the worse one).",
        "log 2 = 0.693 if the model has no preference. If it rises together with the accuracy, the model is "
        "overconfident.",
    ),
    "calibration/bins": Term(
        "",
        "For each bin: the range of score differences (low, high), the predicted probability that the preferred "
        "answer is better, and how often it is (observed, with its 95% Wilson interval over pairs).",
        "Predicted above observed: the model is overconfident. A margin in the loss has an effect on it too.",
    ),
    "kl/base": Term(
        "nats per token",
        "Reverse KL divergence of the final policy from the base model, at each token of its own answers.",
        "How far training moved the policy; `klent compare` writes it to compare_eval.json.",
    ),
    "kl/base_error": Term(
        "nats per token",
        "Standard error of kl/base over problems.",
        "It covers the sampling of answers, not the variation between training runs.",
    ),
    "kl/base_completion": Term(
        "nats",
        "The same divergence summed over each completion, mean over completions.",
        "kl/base times the mean length.",
    ),
}
"""The keys of an evaluation -> Term."""
