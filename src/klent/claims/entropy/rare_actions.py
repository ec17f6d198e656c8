"""Which good actions raise entropy."""

import torch

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import ENTROPY_ESSAY, ENTROPY_MECHANISM, READING_NOTES
from klent.claims.worlds.simplex import random_logits

_ACTIONS, _WORLDS, _STEP = 20, 200, 1e-4


def measure() -> dict[str, Figure]:
    logp = random_logits(0, _WORLDS, _ACTIONS, scale=1.5).log_softmax(-1)
    entropy = O.categorical_entropy(logp).unsqueeze(1)
    rises = torch.stack([_rises(logp, action) for action in range(_ACTIONS)], dim=1)
    below, rare = logp < -entropy, logp < -torch.tensor(_ACTIONS, dtype=torch.float64).log()
    return {
        "p below exp(-H): share that raise entropy": _share(rises[below]),
        "p above exp(-H): share that raise entropy (control)": _share(rises[~below]),
        "p below 1/K: share that raise entropy": _share(rises[rare]),
        "p above 1/K: share that raise entropy (control)": _share(rises[~rare]),
    }


def _rises(logp: torch.Tensor, action: int) -> torch.Tensor:
    """In which worlds a natural step that rewards this action alone raises entropy, measured."""
    advantage = torch.zeros_like(logp)
    advantage[:, action] = 1.0
    after = O.categorical_entropy((logp + _STEP * advantage).log_softmax(-1))
    return after > O.categorical_entropy(logp)


def _share(rises: torch.Tensor) -> Figure:
    return Figure(rises.double().mean().item())


def judge(f: Figures) -> Judgement:
    below, above, rare, common = (figure.value for figure in f.values())
    if below < 0.99:
        return "refuted", f"only {number(below)} of the unlikely good actions raise entropy"
    if common < 0.01:
        return "holds", "every action less likely than average raises entropy, and no other does"
    return "holds when", (
        f"'low' means a probability below exp(-H): then {number(below)} of the steps raise entropy, above it "
        f"{number(above)}. The uniform 1/K is not the border: of the actions above it {number(common)} raise "
        f"entropy too (below it {number(rare)})"
    )


CLAIM = Claim(
    id="rare-good-actions",
    subject="entropy",
    statement="High-probability actions with a high advantage lower entropy; low-probability actions with a "
    "high advantage raise it.",
    source=f"{ENTROPY_MECHANISM}, theorems 1 and 2; {ENTROPY_ESSAY.at('section 2.2')}; "
    f"{READING_NOTES.at('The Entropy Mechanism')}",
    experiment="entropy before and after a small natural step that rewards one action, for each of 20 "
    "actions in 200 random worlds",
    control="actions on the other side of the border",
    measure=measure,
    judge=judge,
)
