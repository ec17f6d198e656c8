"""Cross-entropy, entropy and KL."""

import math

from klent import objectives as O
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import DEEP_LEARNING, ENTROPY_ESSAY
from klent.claims.worlds.simplex import gradient, random_logits, relative_error


def measure() -> dict[str, Figure]:
    data, model = random_logits(0, 50, 8).log_softmax(-1), random_logits(1, 50, 8).log_softmax(-1)
    gap = (
        O.categorical_cross_entropy(data, model) - O.categorical_entropy(data) - O.categorical_kl(data, model)
    )
    bits = O.categorical_kl(data, model, unit="bits") * math.log(2) - O.categorical_kl(data, model)
    p, q = data[0], model[0]
    learned = gradient(lambda logp: O.categorical_cross_entropy(p, logp), q)
    forward = gradient(lambda logp: O.categorical_kl(p, logp), q)
    reverse = gradient(lambda logp: O.categorical_kl(logp, p), q)
    return {
        "largest |CE - H - KL|, nats": Figure(gap.abs().max().item()),
        "largest |bits·ln 2 - nats|": Figure(bits.abs().max().item()),
        "gradient of CE against that of KL(data ‖ model)": Figure(relative_error(learned, forward)),
        "gradient of CE against that of KL(model ‖ data) (control)": Figure(relative_error(learned, reverse)),
    }


def judge(f: Figures) -> Judgement:
    *errors, control = (figure.value for figure in f.values())
    if max(errors) > ROUNDING:
        return "refuted", f"the two sides differ by {number(max(errors))}"
    return "holds", (
        "the two sides are equal, and so are the gradients; the KL in the other direction is a different "
        f"objective (its gradient differs by {number(control)} of its length)"
    )


CLAIM = Claim(
    id="cross-entropy",
    subject="kl",
    statement="H(P, Q) = H(P) + KL(P ‖ Q); with fixed data, supervised training minimises KL(data ‖ model).",
    source=f"{ENTROPY_ESSAY.at('section 1, items 3 and 4')}; {DEEP_LEARNING}, section 3.13",
    experiment="50 random pairs of distributions over 8 outcomes, in nats and in bits; gradients in the "
    "logits",
    control="the KL in the other direction",
    measure=measure,
    judge=judge,
)
