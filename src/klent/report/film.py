"""How images come about: strips from noise to image with each step's coefficient, and images before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from klent.kit.text import fixed, number, signed
from klent.report.pixels import pixels
from klent.report.read import RunData, Sample

STRIPS = 2  # of a step
IMAGES = 16  # of a grid


@dataclass(frozen=True)
class Frame:
    """One image of a strip.

    Attributes:
        image: its drawing.
        label: the step that begins there, from 1, or ``image`` at the end.
        coefficient: of the steps up to the next frame, added up; empty at the end, and where it is unknown.
        push: ``up``, ``down``, ``zero`` or empty.
        size: of its bar, over the largest on the page, in [0, 1].
    """

    image: str
    label: str
    coefficient: str = ""
    push: str = ""
    size: float = 0.0


@dataclass(frozen=True)
class Strip:
    """One image from noise to its end."""

    step: int
    reward: str
    advantage: str
    frames: list[Frame]


@dataclass(frozen=True)
class Grid:
    """Images of one training step."""

    step: int
    reward: str
    images: list[str]


@dataclass(frozen=True)
class Film:
    """The section: strips of an early, a middle and a late step, and grids of the first and the last of them.

    Attributes:
        strips: in order of the steps.
        grids: before and after; one where there is one step.
        most: the largest coefficient, of which the bars are a share.
        pushed: whether any step of a strip has a coefficient other than 0.
    """

    strips: list[Strip]
    grids: list[Grid]
    most: str
    pushed: bool


def film(run: RunData) -> Film | None:
    """The section of a run whose samples are images; None of any other."""
    drawn = [sample for sample in run.samples if pixels(sample.vector)]
    if not drawn:
        return None
    steps = sorted({sample.step for sample in drawn})
    filmed = [[s for s in drawn if s.step == step and s.film][:STRIPS] for step in steps]
    sums = [abs(value) for some in filmed for s in some for value in _between(s) if value is not None]
    most = max(sums, default=0.0)
    strips = [_strip(sample, most) for some in filmed for sample in some]
    ends = sorted({steps[0], steps[-1]})
    grids = [_grid([sample for sample in drawn if sample.step == step]) for step in ends]
    return Film(strips, grids, number(most, 2), most > 0)


def _between(sample: Sample) -> list[float | None]:
    """The coefficients from each frame to the next, added up; None where one is unknown."""
    starts = [place for place, _ in sample.film]
    found: list[float | None] = []
    for first, end in zip(starts, [*starts[1:], len(sample.coefficient)], strict=True):
        known = [value for value in sample.coefficient[first:end] if value is not None]
        found.append(sum(known) if len(known) == end - first else None)
    return found


def _strip(sample: Sample, most: float) -> Strip:
    frames = [
        Frame(
            pixels(values),
            str(place + 1),
            "–" if coefficient is None else signed(coefficient),
            "" if coefficient is None else "up" if coefficient > 0 else "down" if coefficient < 0 else "zero",
            abs(coefficient) / most if coefficient is not None and most > 0 else 0.0,
        )
        for (place, values), coefficient in zip(sample.film, _between(sample), strict=True)
    ]
    frames.append(Frame(pixels(sample.vector), "image"))
    return Strip(sample.step, _reward(sample), signed(sample.advantage), frames)


def _grid(samples: Sequence[Sample]) -> Grid:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    reward = fixed(sum(rewards) / len(rewards)) if rewards else ""
    return Grid(samples[0].step, reward, [pixels(sample.vector) for sample in samples[:IMAGES]])


def _reward(sample: Sample) -> str:
    return "unscorable" if sample.reward is None else fixed(sample.reward)
