"""SVG drawings for pages: matplotlib figures with the page's own colours and with text that stays text.

Each colour is drawn as a stand-in and then replaced by a CSS variable, so one drawing serves light, dark and
print. Figures are laid out in pixels of their own view box; the page scales them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH, HEIGHT = 420, 250
FONT = 10.5
LEFT, RIGHT, TOP, BOTTOM, GAP = 38, 8, 22, 18, 34

ROLES = ("ink", "muted", "rule", "reward", "entropy", "down", "tone1", "tone2", "tone3", "tone4", "page")
"""What a colour is used for. The style sheet defines how it looks."""

_STAND_IN = {role: f"#0000{index + 1:02x}" for index, role in enumerate(ROLES)}


@dataclass(frozen=True)
class Key:
    """One entry of a figure's legend.

    Attributes:
        label: what is drawn.
        role: its colour.
        mark: ``line``, ``dash``, ``fill`` or ``dot``, so that the colour is not the only cue.
        metric: the metric's name, for its definition; empty if it is no metric.
        values: its value at each step, as text, in the order of ``Figure.steps``.
    """

    label: str
    role: str
    mark: str = "line"
    metric: str = ""
    values: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A drawing with what the page says about it.

    Attributes:
        name: also the prefix of every id in ``svg``.
        title: what it shows.
        svg: the drawing, safe to inline.
        keys: the legend.
        caption: how it was measured, with n.
        steps: the steps of the horizontal axis; empty where the axis is something else.
        x: positions of those steps, in view box pixels.
    """

    name: str
    title: str
    svg: str
    keys: list[Key]
    caption: str
    steps: list[int] = field(default_factory=list)
    x: list[float] = field(default_factory=list)


def colour(role: str) -> str:
    """The stand-in for a role, to pass to matplotlib."""
    return _STAND_IN[role]


def canvas(
    ratios: Sequence[float] = (1.0,), *, width: int = WIDTH, height: int = HEIGHT, left: int = LEFT
) -> tuple["Canvas", list["Axes"]]:
    """A figure of ``width`` x ``height`` pixels with panels above one another, and its axes from the top."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    room = height - TOP - BOTTOM - GAP * (len(ratios) - 1)
    axes, top = [], float(height - TOP)
    for ratio in ratios:
        tall = room * ratio / sum(ratios)
        panel = figure.add_axes(
            (left / width, (top - tall) / height, (width - left - RIGHT) / width, tall / height)
        )
        _restrain(panel, height)
        axes.append(panel)
        top -= tall + GAP
    for panel in axes[:-1]:
        panel.tick_params(labelbottom=False)
    return figure, axes


def _restrain(panel: "Axes", height: int) -> None:
    """No box, no ticks: a base line, pale lines to read heights by, quiet numbers; ``height`` in pixels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panel.patch.set_visible(False)
    for side in ("left", "right", "top"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(colour("muted"))
    panel.spines["bottom"].set_linewidth(0.7)
    panel.grid(axis="y", color=colour("rule"), linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, labelcolor=colour("muted"), labelsize=FONT, pad=4)
    tall = panel.get_position().height * height
    panel.yaxis.set_major_locator(
        MaxNLocator(nbins=4 if tall > 100 else 3 if tall > 70 else 2, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2)
    )
    panel.yaxis.set_major_formatter(FuncFormatter(_tick))
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, _position: int) -> str:
    text = f"{value:.4g}" if abs(value) > 1e-12 else "0"
    return re.sub(r"e-0?", "e−", text).replace("-", "−").replace("e+0", "e")


def unit(panel: "Axes", text: str, *, left: int = LEFT) -> None:
    """The unit of the vertical axis, written horizontally above it."""
    panel.annotate(
        text,
        (0, 1),
        (-left + 1, 9),
        xycoords="axes fraction",
        textcoords="offset pixels",
        color=colour("muted"),
        fontsize=FONT,
    )


def horizontal(panel: "Axes", text: str, *, left: int = LEFT) -> None:
    """The quantity of the horizontal axis, in the margin on the line of its numbers."""
    panel.annotate(
        text,
        (0, 0),
        (-left + 1, -4),
        xycoords="axes fraction",
        textcoords="offset pixels",
        color=colour("muted"),
        fontsize=FONT,
        va="top",
    )


def render(figure: "Canvas", name: str) -> str:
    """A figure as SVG: ids prefixed by ``name``, colours as CSS variables, fonts inherited, no metadata."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = StringIO()
    settings = matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "klent",
            "axes.unicode_minus": True,
            "text.usetex": False,
            "text.parse_math": False,
        }
    )
    with settings:
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(
        r"\s*font(?:-family|-style|-variant|-weight|-stretch)?: [^;\"]*'DejaVu Sans'[^;\"]*;?", "", text
    )
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"/>\s*', "", text)
    text = re.sub(r'\b(?:d|x|y|width|height)="[^"]*"', _short, text)
    text = re.sub(r'\bid="', f'id="{name}.', text)
    text = re.sub(r'(xlink:)?href="#', f'href="#{name}.', text)
    text = re.sub(r"url\(#", f"url(#{name}.", text)
    for role, stand_in in _STAND_IN.items():
        text = text.replace(stand_in, f"var(--{role})")
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box[0] if box else ""} role="img" aria-labelledby="{name}.title" data-figure="{name}">'
    return opening + text[text.index(">") + 1 :]


def _short(attribute: re.Match[str]) -> str:
    """An attribute with its coordinates to a hundredth of a pixel."""
    return re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", attribute[0])
