"""Thresholds on the semantic entropy, and the collapse that they should prevent."""

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import EMPO, READING_NOTES
from klent.claims.unlabeled.majority_vote import THRESHOLDS, pass_at, split, start, train

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
    early = {name: f[f"entropy after {_STEPS[0]} steps, {name}"].value for name in THRESHOLDS}
    kept = {name: f[f"pass@8 after {_STEPS[-1]} steps, {name}"].value for name in THRESHOLDS}
    before, pass_before = f["entropy before"].value, f["pass@8 before"].value
    both = "EMPO with thresholds"
    numbers = (
        f"of {number(before)} nats {number(ends['EMPO'])} are left after {_STEPS[-1]} steps, with the "
        f"released threshold {number(ends['EMPO with the released threshold'])}, with (0.1, 1.5) "
        f"{number(ends[both])} and with (0.5, 1.5) {number(ends['EMPO with tight thresholds'])}; after "
        f"{_STEPS[0]} steps {', '.join(number(value) for value in early.values())}; pass@8 goes from "
        f"{number(pass_before)} to {', '.join(number(value) for value in kept.values())}"
    )
    if ends[both] > before / 2 and kept[both] > pass_before - 0.05:
        return "holds", numbers
    if ends[both] > ends["EMPO"] + 0.1:
        return "holds when", f"collapse is read as entropy at the end: {numbers}"
    return "refuted", f"they leave out prompts only once their answers agree: {numbers}"


CLAIM = Claim(
    id="semantic-thresholds",
    subject="unlabeled",
    statement="Thresholds on the semantic entropy of a prompt keep a reward for agreement from collapsing "
    "the policy.",
    source=f"{EMPO}; {READING_NOTES.at('EMPO')}",
    experiment="the prompts of semantic-reward, trained for 30 and 150 steps; exact entropy and pass@8",
    control="no threshold; the threshold of the released code, the log of the group size; random rewards",
    measure=measure,
    judge=judge,
)
