"""A loss as a field of arrows on the 3-simplex: where it moves a policy, and where it should move it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klent.audit.call import Loss
from klent.audit.candidates import concerned, functionals, gradient_of
from klent.audit.certificate import Certificate
from klent.audit.expectation import expected_gradient
from klent.audit.fit import Statement
from klent.audit.match import Match
from klent.audit.words import short, title
from klent.audit.worlds import Scene, build_world
from klent.io.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.quiver import Quiver

Points = NDArray[np.float64]
#: the policies of the picture, over three tokens
REFERENCE = (0.55, 0.30, 0.15)
BEHAVIOUR = (0.20, 0.30, 0.50)
REWARD = (1.0, 0.0, 0.3)
STEPS = 12  # points along an edge


@dataclass(frozen=True)
class Field:
    """Motion of a policy over three tokens under one step of gradient descent on its logits.

    Attributes:
        points: policies, ``[n, 3]`` probabilities.
        loss: change of each probability per unit of step size, under the loss, ``[n, 3]``.
        truth: the same under the objective that the loss is compared with.
    """

    points: Tensor
    loss: Tensor
    truth: Tensor

    @property
    def cosine(self) -> Tensor:
        """Cosine between the two motions, ``[n]``; 0 where one of them is zero."""
        return torch.cosine_similarity(self.loss, self.truth, dim=1)


def truth_of(certificate: Certificate) -> dict[str, float]:
    """The objective to compare with: the reverse KL for a penalty, else what the loss follows on-policy."""
    if "logp_ref" in certificate.reads and "advantage" not in certificate.reads:
        return {"reverse_kl": 1.0}
    match = certificate.on_policy
    if match.one_position.coefficients:
        return dict(match.one_position.coefficients)
    if "advantage" in certificate.reads:
        return {"expected_reward": -1.0}
    return {"entropy": _sign(match, "entropy")}


def field(loss: Loss, truth: Mapping[str, float], *, off_policy: bool) -> Field:
    """Evaluate a loss and its truth on a grid of policies over three tokens.

    Raises:
        LossProblem: the loss cannot be evaluated somewhere.
    """
    points = torch.tensor(
        [(i, j, STEPS - i - j) for i in range(1, STEPS) for j in range(1, STEPS - i)], dtype=torch.float64
    ).div(STEPS)
    motions: tuple[list[Tensor], list[Tensor]] = ([], [])
    for p in points:
        scene = _scene(p, off_policy=off_policy)
        known = functionals(scene, concerned({*loss.reads, "logp_ref"}))
        terms = (weight * gradient_of(known[name], scene.policy) for name, weight in truth.items())
        true = sum(terms, torch.zeros(3, dtype=torch.float64))
        for motion, gradient in zip(motions, (expected_gradient(loss, scene).gradient, true), strict=True):
            motion.append(-p * (gradient - p @ gradient))  # softmax: dp = (diag p - p pᵀ)·d logits
    return Field(points, torch.stack(motions[0]), torch.stack(motions[1]))


def draw(loss: Loss, certificate: Certificate, file: Path) -> None:
    """Draw both fields, on- and off-policy, into a file whose suffix names the format (svg, png, pdf).

    Raises:
        LossProblem: the loss cannot be evaluated somewhere.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    truth = truth_of(certificate)
    with rc_context({"svg.hashsalt": "klent", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(9.6, 5.3))
        for left, match, off_policy in (
            (0.02, certificate.on_policy, False),
            (0.52, certificate.off_policy, True),
        ):
            panel = figure.add_axes((left, 0.12, 0.46, 0.74))
            arrows = _panel(panel, field(loss, truth, off_policy=off_policy), off_policy=off_policy)
            case = "off-policy" if off_policy else "on-policy"
            panel.set_title(f"{case}: {short(match.one_position)}", fontsize=10)
        bar = figure.colorbar(
            arrows, cax=figure.add_axes((0.58, 0.085, 0.34, 0.02)), orientation="horizontal"
        )
        bar.set_ticks([-1, 0, 1], labels=["opposite", "across", "the same way"])
        bar.ax.tick_params(length=0, labelsize=9)
        bar.outline.set_visible(False)
        against = short(Statement("truth", truth))
        figure.text(0.02, 0.95, title(certificate), fontsize=12, weight="bold")
        legend = (
            "colour: where the loss moves a policy over three tokens, for completions of one token\n"
            f"grey: where gradient descent on {against} moves it"
        )
        figure.text(0.02, 0.06, legend, fontsize=9, va="center")
        buffer = BytesIO()
        form = file.suffix.lstrip(".").lower()
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    write_atomic(file, buffer.getvalue())


def _panel(panel: "Axes", arrows_of: Field, *, off_policy: bool) -> "Quiver":
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
    panel.fill(*corners.T, facecolor="none", edgecolor="#999999", linewidth=1.0)
    for (x, y), name in zip(((0.0, -0.045), (1.0, -0.045), (0.5, 0.9)), "ABC", strict=True):
        panel.text(x, y, name, ha="center", va="center", color="#777777")
    at = arrows_of.points.numpy() @ corners
    longest = max(_length(arrows_of.loss).max().item(), _length(arrows_of.truth).max().item(), 1e-300)
    truth, loss = (_arrows(move, longest) @ corners for move in (arrows_of.truth, arrows_of.loss))
    quiver = partial(panel.quiver, angles="xy", scale_units="xy", scale=1.0, pivot="tail")
    quiver(*at.T, *truth.T, color="#d0d0d0", width=0.014)
    arrows = quiver(*at.T, *loss.T, arrows_of.cosine.numpy(), cmap="coolwarm_r", clim=(-1, 1), width=0.006)
    _mark(panel, np.array(REFERENCE) @ corners, "o", "reference")
    if off_policy:
        _mark(panel, np.array(BEHAVIOUR) @ corners, "^", "behaviour")
    panel.set_xlim(-0.08, 1.08)
    panel.set_ylim(-0.08, 0.95)
    panel.set_aspect("equal")
    panel.set_axis_off()
    return arrows


def _mark(panel: "Axes", point: Points, marker: str, name: str) -> None:
    panel.plot(point[0], point[1], marker, color="black", markersize=6, label=name)
    panel.legend(loc="upper left", frameon=False, fontsize=9, borderaxespad=0)


def _arrows(moves: Tensor, longest: float) -> Points:
    """Arrows with the square root of the length of a motion, so that small ones stay visible."""
    length = _length(moves)
    scale = torch.where(length > 1e-12 * longest, (length * longest).rsqrt(), 0.0)
    arrows: Points = (moves * scale[:, None] * 1.3 / STEPS).numpy()
    return arrows


def _length(moves: Tensor) -> Tensor:
    length: Tensor = moves.norm(dim=1)
    return length


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


def _sign(match: Match, name: str) -> float:
    return -1.0 if match.cosine.get(name, 1.0) < 0 else 1.0
