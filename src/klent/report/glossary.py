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
    "objective/<name>": Term(
        "",
        "Mean of a number that one term of the loss reports about itself.",
        "See the docstring of that function in klent.objectives.",
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
    "optimizer/lr": Term("", "Learning rate that the step used.", "Follows the warm-up and the schedule."),
    "time/step": Term("s", "Wall time of the whole step.", "Rollout, score and train are its parts."),
    "time/rollout": Term("s", "Wall time of sampling the completions.", "Usually the largest part."),
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
        "Problems with at least one correct answer among k samples.",
        "Where it stands still while accuracy rises, the policy grew surer and not more able.",
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
