"""Every metric in words. ``python -m klent.report.glossary`` writes ``docs/metrics.md`` from this file."""

import sys
from pathlib import Path
from typing import NamedTuple


class Term(NamedTuple):
    """What one number is.

    Attributes:
        unit: nats, fraction, tokens, ...; empty for a pure number.
        definition: one sentence.
        reading: how to read it, and what is healthy.
    """

    unit: str
    definition: str
    reading: str


GLOSSARY: dict[str, Term] = {
    "step": Term("", "Optimizer step, counted from 1.", "In eval.jsonl step 0 is the model before training."),
    "reward/mean": Term(
        "reward",
        "Mean reward of the step's completions, unscorable ones left out.",
        "It should rise, noisily: a step sees few prompts. Judge a method by the held-out accuracy instead.",
    ),
    "reward/std": Term(
        "reward",
        "Standard deviation of the reward over the step's completions.",
        "Near 0 every completion earns the same, and group baselines leave nothing to learn from.",
    ),
    "reward/unscorable": Term(
        "fraction",
        "Completions whose reward raised, timed out, exited, or returned None or NaN.",
        "0 in a healthy run. They are left out of the baseline and get advantage 0; a high share means that "
        "the reward function is at fault.",
    ),
    "reward/<name>": Term(
        "reward",
        "Mean of one reward among several, before its weight.",
        "Shows which reward the policy is following when the weighted sum rises.",
    ),
    "semantic/entropy": Term(
        "nats",
        "Entropy of a prompt's answers, those that mean the same taken as one; mean over the step's prompts.",
        "0 where all agree, log(group_size) where no two do. Under EMPO it falls; once it is 0 nothing is "
        "left to learn, right or wrong.",
    ),
    "semantic/entropy_p10": Term(
        "nats", "Its 10th percentile over the step's prompts.", "At 0 the easiest prompts agree already."
    ),
    "semantic/entropy_p90": Term(
        "nats", "Its 90th percentile.", "Far above the mean some prompts still scatter."
    ),
    "semantic/clusters": Term(
        "", "Different answers of a prompt's group, mean.", "From 1, agreement, to group_size."
    ),
    "semantic/majority": Term(
        "fraction",
        "Share of a group that gave its most frequent answer, mean.",
        "Agreement, not accuracy: compare it with the held-out accuracy.",
    ),
    "semantic/used": Term(
        "fraction",
        "Groups with a reward other than 0, that is within the entropy thresholds.",
        "What the thresholds leave out teaches nothing.",
    ),
    "semantic/empty": Term(
        "fraction",
        "Completions without an answer.",
        "They agree with nothing and get 0. High: see `same`, or more `rollout.max_tokens`: those cut count.",
    ),
    "semantic/copied": Term(
        "fraction",
        "Completions that only repeat words of their question.",
        "They count as without an answer; a rise is a policy that has found copying.",
    ),
    "semantic/<name>": Term("", "A number that the reward logs about the answers.", "See the reward."),
    "completion/length": Term(
        "tokens",
        "Mean number of sampled tokens in a completion, the stop token included.",
        "Watch for growth without reward: it is what averaging a loss over sequences can cause.",
    ),
    "completion/truncated": Term(
        "fraction",
        "Completions that ended at rollout.max_tokens instead of a stop token.",
        "A truncated answer is usually scored wrong; above 0.1 raise rollout.max_tokens.",
    ),
    "completion/repetition": Term(
        "fraction",
        "Share of a completion's 4-grams of tokens that stand earlier in it, mean over completions.",
        "Below 0.1 in most text. A rise is the policy falling into loops; absent where all completions are "
        "shorter than 4 tokens.",
    ),
    "policy/entropy": Term(
        "nats per token",
        "Mean entropy of the distributions that the tokens were sampled from; of the model's own where "
        "a data set is replayed.",
        "How much the policy still explores: exp(entropy) is the number of equally likely choices with the "
        "same entropy. A fall to 0 is a collapse, after which reward has little left to rise from.",
    ),
    "policy/entropy_delta": Term(
        "nats per token",
        "Change of entropy that one update caused, measured on the same probe tokens before and after it.",
        "Usually below 0 under a reward. It is free of the noise of sampling new prompts.",
    ),
    "policy/entropy_delta_predicted": Term(
        "nats per token",
        "The same change as the covariance theorem predicts it: minus the covariance of a token's "
        "log-probability with the change of that log-probability.",
        "It should have the measured change's sign. The theorem is first-order: the two part ways when one "
        "update is large.",
    ),
    "policy/covariance": Term(
        "nats x advantage",
        "Covariance of log-probability and advantage over the step's tokens.",
        "Above 0, likely tokens are rewarded and entropy falls; below 0, unlikely ones are, and it rises.",
    ),
    "covariance/top_0.02": Term(
        "nats x advantage",
        "Mean covariance of the 0.02% of tokens that have the largest, rounded up to whole tokens.",
        "Far above the mean: a handful of tokens spends the entropy. Below 5000 tokens: the largest.",
    ),
    "covariance/top_0.2": Term(
        "nats x advantage",
        "The same of the top 0.2%.",
        "Those that KL-Cov holds back at its setting for 7B parameters.",
    ),
    "covariance/top_2": Term("nats x advantage", "The same of the top 2%.", "Compare it with top_20."),
    "covariance/top_20": Term(
        "nats x advantage",
        "The same of the top 20%.",
        "Near the mean of all tokens, the covariance has no tail to cut off.",
    ),
    "policy/collision": Term(
        "fraction",
        "Chance that two tokens drawn after the same prefix agree, estimated by the sampled tokens' mean "
        "probability.",
        "Without bias the mean of the sum of squared probabilities; 1 is a policy without a choice.",
    ),
    "policy/renyi": Term(
        "nats per token",
        "Mean of Rényi's entropy of order 2, minus the log of the sum of squared probabilities.",
        "Never above policy/entropy. It sees the head of the distribution: where it falls first, the most "
        "likely token takes over while the tail stays.",
    ),
    "forks/threshold": Term(
        "nats per token",
        "Lowest entropy among the 20% of the step's tokens that have the highest.",
        "The forks of the 80/20 rule lie above it; it falls with the entropy.",
    ),
    "forks/entropy_share": Term(
        "fraction",
        "Share of the step's entropy that these 20% of its tokens hold.",
        "0.2 where all tokens are alike; above 0.7 the text has few forks among much that is certain.",
    ),
    "forks/token_share": Term(
        "fraction",
        "Share of the tokens with a coefficient that are among these 20%.",
        "0.2 where the objective does not look at entropy; 1 under the 80/20 rule.",
    ),
    "forks/gradient_share": Term(
        "fraction",
        "Share of the sum of |coefficient| that falls on these 20%.",
        "Compare it with forks/token_share: the same, unless the loss weights tokens by their entropy.",
    ),
    "selected/fraction": Term(
        "fraction",
        "Tokens that a selector chose; without one, those whose coefficient is not 0.",
        "What a selector does with them, keep, drop or hold back, is said in the recipe.",
    ),
    "selected/entropy": Term(
        "nats per token", "Mean entropy over these tokens.", "Against rest/entropy: what was selected for."
    ),
    "rest/entropy": Term("nats per token", "Mean entropy over all other tokens.", "See selected/entropy."),
    "selected/covariance": Term(
        "nats x advantage",
        "Mean covariance over the selected tokens.",
        "Large and above 0 for tokens that Clip-Cov or KL-Cov chose.",
    ),
    "rest/covariance": Term(
        "nats x advantage", "Mean covariance over all other tokens.", "What is left to spend entropy."
    ),
    "law/entropy_spent": Term(
        "fraction",
        "Share of the initial entropy that is gone, by means over the first and the last tenth of the steps.",
        "Most of what a run gains, it gains by 0.9; from there on more steps buy little.",
    ),
    "law/r2": Term(
        "fraction",
        "Share of the reward's variance over the steps so far that R = -a exp(H) + b explains.",
        "Below 0.5 no ceiling is given. Absent before six steps and under a thermostat.",
    ),
    "law/ceiling": Term(
        "reward",
        "Reward that the fit predicts at zero entropy, -a + b.",
        "What this data and model give if entropy is spent to the end; it holds for runs that let it fall.",
    ),
    "law/ceiling_low": Term(
        "reward",
        "Lower end of the ceiling's 95% interval, widened for steps that follow one another.",
        "Wide until entropy has moved far.",
    ),
    "law/ceiling_high": Term("reward", "Upper end of the same interval.", "See law/ceiling_low."),
    "law/floor_step": Term(
        "step",
        "Step at which entropy reaches 0.05 nats per token if it goes on as of late and as the covariance "
        "predicts.",
        "A forecast of the present rate and no more. Absent where entropy does not surely fall, or not soon.",
    ),
    "policy/prob_mismatch": Term(
        "fraction",
        "Mean distance between the trainer's and the sampler's probability of a token, of logs by verl.",
        "As policy/logp_mismatch, on the scale of probabilities.",
    ),
    "policy/logp_mismatch": Term(
        "nats",
        "Mean distance |logp - logp_gen| between the trainer's and the sampler's log-probability of a token.",
        "Rounding alone: below 1e-3 in float32, below 0.05 in bfloat16. More means that the two disagree "
        "about the model, the temperature or the template.",
    ),
    "kl/reference": Term(
        "nats per token",
        "KL divergence of the policy from the reference, by the k3 estimator on sampled tokens.",
        "How far the policy has moved in all. Absent where the run keeps no reference in memory.",
    ),
    "kl/update": Term(
        "nats per token",
        "KL divergence between the policy before and after one update, on that step's tokens.",
        "The size of the step in distribution space; a spike is a step that was too large.",
    ),
    "objective/loss": Term(
        "",
        "Value of the loss that was differentiated.",
        "Of a policy gradient only the slope means anything: do not expect this to fall.",
    ),
    "objective/zero_fraction": Term(
        "fraction",
        "Tokens whose coefficient is exactly 0, so that they taught nothing and cost no backward pass.",
        "From groups with equal rewards, clipping, or a token selector. Near 1 the step does almost nothing.",
    ),
    "objective/clip_low": Term(
        "fraction",
        "Tokens clipped because the ratio fell below 1 - clip_low while the advantage was negative.",
        "0 on the first inner step by construction; above 0.2 the step is too large.",
    ),
    "objective/clip_high": Term(
        "fraction",
        "Tokens clipped because the ratio rose above 1 + clip_high while the advantage was positive.",
        "Clipping here holds unlikely good tokens back, which costs entropy; clip-higher loosens it.",
    ),
    "objective/clip_dual": Term(
        "fraction",
        "Tokens whose loss was capped because the ratio was very large while the advantage was negative.",
        "0 on the first inner step; it guards against a few tokens that dominate the gradient.",
    ),
    "objective/clip": Term(
        "fraction",
        "Tokens clipped on either side, where a log does not part the two.",
        "The sum of clip_low and clip_high.",
    ),
    "objective/<name>": Term(
        "",
        "Mean of a number that one term of the loss reports about itself.",
        "See the docstring of that function in klent.objectives.",
    ),
    "select/<name>": Term(
        "fraction",
        "Tokens that the selector under this name chose, over the first pass of the step.",
        "The recipe's fraction, or less where too few qualify. Under `mask` only these are trained on.",
    ),
    "thermostat/target": Term(
        "nats per token", "The entropy that the thermostat aimed at.", "Compare policy/entropy with it."
    ),
    "thermostat/error": Term(
        "nats per token",
        "Target minus the step's entropy.",
        "A step's entropy is a noisy measurement: judge by the mean over ten steps, which should be near 0.",
    ),
    "thermostat/value": Term(
        "",
        "The number that the thermostat steers, as the step had it: the bonus coefficient, clip_high, ...",
        "At its bound for many steps the thermostat has lost hold; widen thermostat.low or high.",
    ),
    "group/zero_variance": Term(
        "fraction",
        "Groups whose completions all earned the same reward.",
        "Their advantages are 0. It is high when the task is far too hard (all wrong) or solved (all right).",
    ),
    "grad/norm": Term(
        "",
        "Euclidean norm of the gradient before clipping.",
        "Steady within a factor of ten; compare it with optimizer.max_grad_norm.",
    ),
    "update/skipped": Term(
        "0 or 1",
        "Whether the loss or the gradient was not finite, so that the weights were left alone.",
        "0 in a healthy run. Several in a row stop training.",
    ),
    "objective/distill": Term(
        "nats per token",
        "Divergence between policy and target at the sampled tokens, over the whole vocabulary, before coef.",
        "It falls as the policy learns the target. Which divergence is in rollout.mixture.distill.",
    ),
    "mixture/alpha": Term(
        "",
        "Share of the policy in the mixture that was sampled from, mean over tokens.",
        "1 is the policy, 0 the target. By a criterion it differs from token to token.",
    ),
    "mixture/policy_reward": Term(
        "",
        "The policy's own mean reward, estimated from the mixture's samples: each prompt's rewards weighted "
        "by policy/mixture of whole completions.",
        "Beside it reward/mean is what the mixture earned. On long completions one weight outweighs the "
        "others, and it is noise: trust the evaluation.",
    ),
    "mixture/kl_policy": Term(
        "nats per token",
        "KL divergence of the mixture from the policy, mean over sampled tokens.",
        "What it costs to sample elsewhere; it falls as the policy catches up with the target.",
    ),
    "mixture/kl_target": Term(
        "nats per token",
        "KL divergence of the mixture from the target, mean over sampled tokens.",
        "At the Chernoff point the same as mixture/kl_policy.",
    ),
    "mixture/ess": Term(
        "fraction",
        "Effective sample size (Σw)²/Σw² of the weights policy/mixture before their bounds, over the number "
        "of tokens (or of completions, with weights.ratio: sequence).",
        "1 where the policy itself is sampled. Below 0.1 a few samples decide the step: raise alpha, aim at "
        "it by the criterion ess, or weigh by token.",
    ),
    "optimizer/lr": Term("", "Learning rate that the step used.", "Follows the warm-up and the schedule."),
    "time/step": Term("s", "Wall time of the whole step.", "Rollout, score and train are its parts."),
    "time/rollout": Term("s", "Wall time of sampling the completions.", "Usually the largest part."),
    "time/rollout_floor": Term(
        "s",
        "What sampling takes at least: its matrix products at this machine's rate, or reading its weights.",
        "time/rollout over it is how far sampling is from the machine's limit; 2 is good on a CPU.",
    ),
    "time/train_floor": Term(
        "s",
        "What training takes at least: the matrix products of forward and backward at this machine's rate.",
        "time/train over it is how far training is from the machine's limit; below 2 is good.",
    ),
    "time/score": Term(
        "s", "Wall time of the rewards.", "Large values mean a slow reward or one that times out."
    ),
    "time/train": Term(
        "s", "Wall time of forward, backward and the optimizer step.", "Falls with zero_fraction."
    ),
    "tokens/rollout": Term("tokens", "Tokens sampled in the step.", "Completions x mean length."),
    "tokens/train": Term(
        "tokens",
        "Tokens that went through the trained model, prompts included.",
        "A prompt shared by a packed group counts once.",
    ),
    "tokens/rollout_per_second": Term(
        "tokens/s", "Tokens sampled in a second: tokens/rollout over time/rollout.", "Higher is better."
    ),
    "tokens/train_per_second": Term(
        "tokens/s", "Tokens trained on in a second: tokens/train over time/train.", "Higher is better."
    ),
    "tokens/per_second": Term(
        "tokens/s",
        "Tokens in a second of the whole step, where a log does not part the two.",
        "Higher is better.",
    ),
    "memory/peak_gb": Term(
        "GB",
        "Most memory held so far, by the device or, on a CPU, by the process; 10^9 bytes.",
        "Must stay flat.",
    ),
}
"""Metric name -> Term. A name with ``<name>`` stands for a family; exact names win over families."""

EVALUATION: dict[str, Term] = {
    "step": Term("", "Steps trained before the evaluation.", "0 is the model as it was loaded."),
    "problems": Term(
        "", "Held-out problems, the same at every evaluation.", "Intervals narrow with its root."
    ),
    "samples": Term("", "Completions sampled for each problem.", "Those of one problem are not independent."),
    "accuracy": Term(
        "fraction",
        "Share of the samples whose reward is at least 1; an unscorable one is not correct.",
        "Compare before and after by the change over the same problems, which the report gives.",
    ),
    "low": Term(
        "fraction",
        "Lower end of the accuracy's 95% interval (Wilson).",
        "Problems are the units, not samples.",
    ),
    "high": Term(
        "fraction", "Upper end of the same interval.", "Two intervals that meet may still differ surely."
    ),
    "pass@<k>": Term(
        "fraction",
        "Chance that at least one of k answers to a problem is correct, estimated without bias.",
        "Where it stands still while accuracy rises, the policy grew surer and not more able.",
    ),
    "accuracy@<T>": Term(
        "fraction",
        "Accuracy at another sampling temperature T (eval.temperatures); 0 is greedy.",
        "What a lower temperature gives for nothing is no merit of the training.",
    ),
    "majority": Term(
        "fraction",
        "Problems whose most frequent answer is right; a tie counts by its share.",
        "Where training ends is often where a vote of the model before it stood.",
    ),
    "agreement": Term(
        "fraction",
        "Share of a problem's samples that gave its most frequent answer, mean; no label is looked at.",
        "It rises with certainty, right or wrong.",
    ),
    "kept": Term(
        "fraction",
        "Share of answers that are the one which won the problem's vote before training; without labels.",
        "It rises while the policy grows sure of what it thought anyway, and falls once it leaves that.",
    ),
    "vote": Term("", "The answer that won each problem's vote, before training.", "What `kept` looks at."),
    "skewness": Term(
        "",
        "Skewness of all logits along the sampled answers: third standardised moment, pooled over positions.",
        "Above 0 the long tail is of likely tokens.",
    ),
    "skewness/position": Term(
        "", "The same for each position by itself, mean.", "Not moved by a shift of all logits of a position."
    ),
    "entropy": Term(
        "nats per token", "Mean entropy while answering.", "As policy/entropy, on held-out problems."
    ),
    "reward": Term(
        "reward", "Mean reward of the samples that could be scored.", "For rewards between 0 and 1."
    ),
    "length": Term("tokens", "Mean number of sampled tokens.", "As completion/length."),
    "unscorable": Term("fraction", "Answers that no reward could be given to.", "0 in a healthy run."),
    "seconds": Term("s", "Wall time of the evaluation.", "Sampling is nearly all of it."),
    "correct": Term(
        "", "For each problem the outcome of each sample.", "What the accuracy is computed from."
    ),
    "kl/base": Term(
        "nats per token",
        "Reverse KL divergence of the final policy from the base model, at each token of its own answers.",
        "How far training has moved the policy; `klent compare` writes it to compare_eval.json.",
    ),
}
"""The keys of an evaluation -> Term."""


def describe(name: str) -> Term:
    """The term of a metric as it stands in a row; families are found by their prefix.

    >>> describe("reward/format").definition
    'Mean of one reward among several, before its weight.'
    """
    family = f"{name.split('/')[0]}/<name>"
    return GLOSSARY.get(name) or GLOSSARY.get(family) or Term("", "Not described by klent.", "")


def markdown() -> str:
    """The text of ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated by `python -m klent.report.glossary` from src/klent/report/glossary.py. -->",
        "",
        "Logarithms are natural, so entropy and KL divergence are in nats; fractions lie in [0, 1]. A value",
        "that does not exist is `null` or absent.",
        "",
        "## Training: `metrics.jsonl`, one row a step",
        "",
        *_table(GLOSSARY),
        "",
        "## Evaluation: `eval.jsonl`, one row each time",
        "",
        *_table(EVALUATION),
    ]
    return "\n".join(lines) + "\n"


def _table(terms: dict[str, Term]) -> list[str]:
    head = ["| metric | unit | what it is | how to read it |", "|---|---|---|---|"]
    return head + [
        f"| `{name}` | {term.unit or '–'} | {_cell(term.definition)} | {_cell(term.reading)} |"
        for name, term in terms.items()
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/metrics.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(markdown(), encoding="utf-8")
    print(f"wrote {target}")
