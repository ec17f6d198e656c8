"""A loss as a field of arrows on the 3-simplex: where it moves a policy, against where it should."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klent.audit.call import Loss
from klent.audit.candidates import candidate_gradients
from klent.audit.certificate import Certificate, Finding
from klent.audit.expectation import expected_gradient
from klent.audit.fit import Statement
from klent.audit.words import short, title
from klent.audit.worlds import Scene, build_world
from klent.io.files import write_atomic

#: the policies of the picture, over three words
REFERENCE = (0.55, 0.30, 0.15)
BEHAVIOUR = (0.20, 0.30, 0.50)
REWARD = (1.0, 0.0, 0.3)
STEPS = 12  # points along an edge


@dataclass(frozen=True)
class Field:
    """Motion of a policy over three words under one step of gradient descent on its logits.

    Attributes:
        points: policies, ``[n, 3]`` probabilities.
        loss: change of each probability per unit of step size, under the loss, ``[n, 3]``.
        truth: the same under the objective it is compared with.
    """

    points: Tensor
    loss: Tensor
    truth: Tensor

    @property
    def cosine(self) -> Tensor:
        """Between the two motions, ``[n]``; 0 where one stands still."""
        return torch.cosine_similarity(self.loss, self.truth, dim=1)


def truth_of(certificate: Certificate) -> dict[str, float]:
    """What to draw a loss against: the reverse KL for a penalty, else what it follows on-policy or should."""
    if "logp_ref" in certificate.reads and "advantage" not in certificate.reads:
        return {"reverse_kl": 1.0}
    finding = certificate.on_policy
    if finding.one_position.coefficients:
        return dict(finding.one_position.coefficients)
    if "advantage" in certificate.reads:
        return {"expected_reward": -1.0}
    return {"entropy": _sign(finding, "entropy")}


def field(loss: Loss, truth: Mapping[str, float], *, off_policy: bool) -> Field:
    """Evaluate a loss and its truth on a grid of policies over three words.

    Raises:
        LossProblem: the loss cannot be evaluated somewhere.
    """
    points = torch.tensor(
        [(i, j, STEPS - i - j) for i in range(1, STEPS) for j in range(1, STEPS - i)], dtype=torch.float64
    ).div(STEPS)
    moves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for p in points:
        scene = _scene(p, off_policy=off_policy)
        candidates = candidate_gradients(scene, {*loss.reads, "logp_ref"})
        meant = sum((w * candidates[name] for name, w in truth.items()), torch.zeros(3, dtype=torch.float64))
        for found, gradient in zip(moves, (expected_gradient(loss, scene).gradient, meant), strict=True):
            found.append(-p * (gradient - p @ gradient))  # softmax: dp = (diag p - p pᵀ)·d logits
    return Field(points, torch.stack(moves[0]), torch.stack(moves[1]))


def draw(loss: Loss, certificate: Certificate, file: Path) -> None:
    """Draw both fields, on- and off-policy, into a file whose suffix says the format (svg, png, pdf).

    Raises:
        LossProblem: the loss cannot be evaluated somewhere.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    truth = truth_of(certificate)
    with rc_context({"svg.hashsalt": "klent", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(9.6, 5.3))
        for place, finding, off_policy in (
            (0.02, certificate.on_policy, False),
            (0.52, certificate.off_policy, True),
        ):
            panel = figure.add_axes((place, 0.12, 0.46, 0.74))
            arrows = _panel(panel, field(loss, truth, off_policy=off_policy), off_policy=off_policy)
            where = "off-policy" if off_policy else "on-policy"
            panel.set_title(f"{where}: {short(finding.one_position)}", fontsize=10)
        bar = figure.colorbar(
            arrows, cax=figure.add_axes((0.58, 0.085, 0.34, 0.02)), orientation="horizontal"
        )
        bar.set_ticks([-1, 0, 1], labels=["opposite", "across", "the same way"])
        bar.ax.tick_params(length=0, labelsize=9)
        bar.outline.set_visible(False)
        against = short(Statement("truth", truth))
        figure.text(0.02, 0.95, title(certificate), fontsize=12, weight="bold")
        legend = (
            "colour: where the loss moves a policy over three words, for one token\n"
            f"grey: where gradient descent on {against} moves it"
        )
        figure.text(0.02, 0.06, legend, fontsize=9, va="center")
        buffer = BytesIO()
        form = file.suffix.lstrip(".").lower()
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    write_atomic(file, buffer.getvalue())


def _panel(panel: Any, found: Field, *, off_policy: bool) -> Any:
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
    panel.fill(*corners.T, facecolor="none", edgecolor="#999999", linewidth=1.0)
    for place, name in zip(((0.0, -0.045), (1.0, -0.045), (0.5, 0.9)), "ABC", strict=True):
        panel.text(*place, name, ha="center", va="center", color="#777777")
    at = found.points.numpy() @ corners
    longest = max(_length(found.loss).max().item(), _length(found.truth).max().item(), 1e-300)
    truth, loss = (_arrows(move, longest) @ corners for move in (found.truth, found.loss))
    style = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "pivot": "tail"}
    panel.quiver(*at.T, *truth.T, color="#d0d0d0", width=0.014, **style)
    arrows = panel.quiver(
        *at.T, *loss.T, found.cosine.numpy(), cmap="coolwarm_r", clim=(-1, 1), width=0.006, **style
    )
    _mark(panel, np.array(REFERENCE) @ corners, "o", "reference")
    if off_policy:
        _mark(panel, np.array(BEHAVIOUR) @ corners, "^", "behaviour")
    panel.set_xlim(-0.08, 1.08)
    panel.set_ylim(-0.08, 0.95)
    panel.set_aspect("equal")
    panel.set_axis_off()
    return arrows


def _mark(panel: Any, place: Any, marker: str, name: str) -> None:
    panel.plot(*place, marker, color="black", markersize=6, label=name)
    panel.legend(loc="upper left", frameon=False, fontsize=9, borderaxespad=0)


def _arrows(moves: Tensor, longest: float) -> Any:
    """Arrows as long as the square root of a motion, so that small ones are still seen."""
    length = _length(moves)
    scale = torch.where(length > 1e-12 * longest, (length * longest).rsqrt(), 0.0)
    return (moves * scale[:, None] * 1.3 / STEPS).numpy()


def _length(moves: Tensor) -> Tensor:
    return moves.norm(dim=1)


def _scene(probabilities: Tensor, *, off_policy: bool) -> Scene:
    def logits(p: Tensor | tuple[float, ...]) -> Tensor:
        return torch.as_tensor(p, dtype=torch.float64).log()[None]

    policy = logits(probabilities)
    scene = Scene(
        build_world(3, 1),
        torch.ones(1, 1, dtype=torch.float64),
        policy,
        reference=logits(REFERENCE),
        behaviour=policy,
        reward=torch.tensor(REWARD, dtype=torch.float64),
    )
    return replace(scene, behaviour=logits(BEHAVIOUR)) if off_policy else scene


def _sign(finding: Finding, name: str) -> float:
    return -1.0 if finding.cosine.get(name, 1.0) < 0 else 1.0
