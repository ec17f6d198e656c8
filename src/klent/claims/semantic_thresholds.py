"""Thresholds on the semantic entropy, and the collapse that they are to prevent."""

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.majority_vote import THRESHOLDS, pass_at, split, start, train

_STEPS = (30, 150)


def measure() -> dict[str, Figure]:
    figures = {"entropy before": split(O.categorical_entropy(start().log_softmax(-1)))}
    figures["pass@8 before"] = split(pass_at(start(), 8))
    for name in (*THRESHOLDS, "random"):
        label = name if name in THRESHOLDS else f"{name} rewards (control)"
        for steps in _STEPS:
            logits = train(name, steps)
            entropy = O.categorical_entropy(logits.log_softmax(-1))
            figures[f"entropy after {steps} steps, {label}"] = split(entropy)
        figures[f"pass@1 after {_STEPS[-1]} steps, {label}"] = split(pass_at(logits, 1))
        figures[f"pass@8 after {_STEPS[-1]} steps, {label}"] = split(pass_at(logits, 8))
    return figures


def judge(f: Figures) -> Judgement:
    ends = {name: f[f"entropy after {_STEPS[-1]} steps, {name}"].value for name in THRESHOLDS}
    begun = {name: f[f"entropy after {_STEPS[0]} steps, {name}"].value for name in THRESHOLDS}
    kept = {name: f[f"pass@8 after {_STEPS[-1]} steps, {name}"].value for name in THRESHOLDS}
    before, fresh = f["entropy before"].value, f["pass@8 before"].value
    both = "EMPO with thresholds"
    said = (
        f"of {number(before)} nats {number(ends['EMPO'])} are left after {_STEPS[-1]} steps, with the "
        f"released threshold {number(ends['EMPO with the released threshold'])}, with (0.1, 1.5) "
        f"{number(ends[both])} and with (0.5, 1.5) {number(ends['EMPO with tight thresholds'])}; after "
        f"{_STEPS[0]} steps {', '.join(number(value) for value in begun.values())}; pass@8 goes from "
        f"{number(fresh)} to {', '.join(number(value) for value in kept.values())}"
    )
    if ends[both] > before / 2 and kept[both] > fresh - 0.05:
        return "holds", said
    if ends[both] > ends["EMPO"] + 0.1:
        return "holds when", f"collapse is read as entropy at the end: {said}"
    return "refuted", f"they leave out prompts only once those agree: {said}"


CLAIM = Claim(
    id="semantic-thresholds",
    statement="Thresholds on the semantic entropy of a prompt keep a reward for agreement from collapsing "
    "the policy.",
    source="seed 003; EMPO, arXiv:2504.05812",
    experiment="the prompts of semantic-reward, trained for 30 and 150 steps; exact entropy and pass@8",
    control="no threshold; the released code's, log of the group's size; random rewards",
    measure=measure,
    judge=judge,
)
