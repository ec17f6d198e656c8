"""The keys of an evaluation."""

from klent.report.terms.term import Term

EVALUATION: dict[str, Term] = {
    "step": Term("", "Steps trained before the evaluation.", "0 is the model as it was loaded."),
    "problems": Term(
        "", "Held-out problems, the same at every evaluation.", "Intervals shrink with its square root."
    ),
    "samples": Term(
        "", "Completions sampled for each problem.", "Samples of one problem are not independent."
    ),
    "temperature": Term(
        "",
        "Sampling temperature of the evaluation; 0 is greedy.",
        "The recipe's, with which training samples.",
    ),
    "accuracy": Term(
        "fraction",
        "Share of correct samples, where every reward is 0 or 1; an unscorable one counts as wrong.",
        "Compare before and after by the change over the same problems, which the report shows.",
    ),
    "low": Term(
        "fraction",
        "Lower end of the accuracy's 95% interval (Wilson).",
        "Problems are the units, not samples.",
    ),
    "high": Term(
        "fraction",
        "Upper end of the same interval.",
        "Overlapping intervals do not rule out a significant change.",
    ),
    "reward": Term(
        "reward", "Mean reward of the samples that could be scored.", "The headline where rewards are graded."
    ),
    "reward_low": Term(
        "reward",
        "Lower end of its 95% interval over problems: Student's t, or Wilson's where every reward is 0 or 1.",
        "Absent where no problem's mean differs from another's: nothing is known of the spread then.",
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
        "A gain that a lower temperature gives without training is not an effect of training.",
    ),
    "reward@<T>": Term(
        "reward",
        "Mean reward at that temperature; the same suffix gives the ends of both intervals, such as low@0.",
        "Greedy answers are one sample per problem.",
    ),
    "preference/accuracy": Term(
        "fraction",
        "Held-out pairs whose better answer has the higher score, as preference/accuracy in training.",
        "0.5 is chance, and with a reference the value before training.",
    ),
    "preference/low": Term("fraction", "Lower end of its 95% interval (Wilson).", "Pairs are the units."),
    "preference/high": Term("fraction", "Upper end of the same interval.", "As for preference/low."),
    "preference/margin": Term(
        "nats",
        "Mean score of the better answers less that of the worse ones.",
        "0 before training with a reference.",
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
        "The accuracy's parts.",
    ),
    "majority": Term(
        "fraction",
        "Problems whose most frequent answer is right; a tie counts by its share.",
        "Training often ends where a vote of the untrained model already was.",
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
        "Skewness of all logits along the sampled answers: third standardised moment, pooled over positions.",
        "Positive: the long tail is that of likely tokens.",
    ),
    "skewness/position": Term(
        "", "The same per position, mean.", "Invariant to shifting all logits of a position."
    ),
    "entropy": Term(
        "nats per token", "Mean entropy while answering.", "Like policy/entropy, on held-out problems."
    ),
    "length": Term("tokens", "Mean number of sampled tokens.", "Like completion/length."),
    "turns": Term("", "Mean number of turns of an episode in an environment.", "Like episode/turns."),
    "prefill": Term(
        "tokens",
        "Tokens read before the first token of each turn, of all samples; of episodes in an environment.",
        "Like tokens/prefill: openings once for each problem, and what was said once. A player of values has two "
        "models, and each reads so many.",
    ),
    "unscorable": Term("fraction", "Answers that could not be scored.", "0 in a healthy run."),
    "unscorable_why": Term(
        "", "Each reason why answers could not be scored, and for how many.", "Fix it first."
    ),
    "seconds": Term("s", "Wall time of the evaluation.", "Nearly all of it is sampling."),
    "rewards": Term(
        "", "For each problem, the reward of each sample; null is unscorable.", "In the task's order."
    ),
    "correct": Term(
        "",
        "For each problem, the outcome of each sample, where every reward is 0 or 1.",
        "The accuracy is computed from it.",
    ),
    "loss": Term(
        "nats per token",
        "Minus the mean log-probability of the tokens of held-out completions; rollout.engine=dataset alone.",
        "Nothing is sampled, so it is exact. If it rises while objective/loss falls, the run overfits.",
    ),
    "loss_low": Term(
        "nats per token",
        "Lower end of its 95% interval over completions: a ratio of means by Student's t.",
        "Absent where one completion is held out. It says how far another draw of completions would be.",
    ),
    "loss_high": Term("nats per token", "Upper end of the same interval.", "As for loss_low."),
    "perplexity": Term("", "The exponential of the loss.", "So many equally likely tokens would be as hard."),
    "loss_completions": Term("", "Held-out completions measured.", "Those that do not fit are left out."),
    "loss_tokens": Term(
        "", "Their tokens, those of prompts and tools not counted.", "The loss is their mean."
    ),
    "loss_texts": Term(
        "", "The first of them token by token, each with its loss.", "Drawn in the report, before and after."
    ),
    "loss_worst": Term(
        "", "The tokens with the largest losses of all of them.", "A wrong label often shows here first."
    ),
    "calibration/error": Term(
        "probability",
        "Of a reward model: mean distance of predicted and observed in bins of equally many held-out pairs, whose "
        "scores are about equally far apart (the expected calibration error).",
        "0 is a model as sure as it is right. Few pairs make it larger: look at the bins' intervals.",
    ),
    "calibration/log_loss": Term(
        "nats per pair",
        "Mean of -log σ(score of the better answer less that of the other).",
        "log 2 = 0.693 where nothing is preferred. If it rises while accuracy does, the model is too sure.",
    ),
    "calibration/bins": Term(
        "",
        "Each bin's distances of two scores (low, high), what the model predicts for the answer that it prefers, and "
        "how often that one is better (observed, with its 95% Wilson interval over pairs).",
        "Predicted above observed: too sure. A margin in the loss moves it too.",
    ),
    "kl/base": Term(
        "nats per token",
        "Reverse KL divergence of the final policy from the base model, at each token of its own answers.",
        "How far training moved the policy; `klent compare` writes it to compare_eval.json.",
    ),
    "kl/base_error": Term(
        "nats per token",
        "Standard error of kl/base over problems.",
        "Over which answers were sampled, not over training runs.",
    ),
    "kl/base_completion": Term(
        "nats",
        "The same divergence summed over each completion, mean over completions.",
        "kl/base times the mean length.",
    ),
}
"""The keys of an evaluation -> Term."""
