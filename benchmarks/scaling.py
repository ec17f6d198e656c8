"""A cost model: tokens per second and device on 1 to 64 GPUs, and 8 GPUs with sampling and training apart.

    python benchmarks/scaling.py       # writes results/scaling.csv, results/apart.csv and docs/images/scaling.svg

Nothing here was run on several GPUs. What was measured, on one H200 (docs/gpu.md: the shape of Qwen2-0.5B in
bfloat16, prompts of about 110 tokens, completions of 128), is in ``MEASURED``; what was not, in ``ASSUMED``. A step:

    sampling   128 recorded steps of r rows each, a + b r seconds, a and b through the two measured points
    training   proportional to the rows, at the measured rate
    gradients  ring all-reduce of float32 gradients: 2 (n - 1) / n times their bytes at the assumed rate
    episodes   every rank's completions to all ranks, at the assumed rate

With sampling and training apart, some GPUs sample a step while the others train: events are simulated, with
phases that vary by the assumed spread from step to step. Weights go from the trainers to each sampler at the rate of
gradients. A step may be sampled as soon as the weights of ``staleness`` steps ago are there.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import show, write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PICTURE = HERE.parent / "docs" / "images" / "scaling.svg"
DEVICES = (1, 2, 4, 8, 16, 32, 64)
TOKENS = 128  # of a completion
MEASURED = {"decode_128": 4.05e-3, "decode_512": 6.9e-3, "train_128": 0.35}
"""Seconds: of a recorded decoding step at 128 and at 512 rows, and of training on 128 completions."""
ASSUMED = {"parameters": 0.494e9, "link": 100e9, "episodes": 1e9, "bytes_per_token": 40.0, "spread": 0.1}
"""Parameters of that shape; bytes per second of gradients and of episodes; relative spread of a phase."""


def sampling(rows: float) -> float:
    """Seconds in which one device samples so many completions."""
    slope = (MEASURED["decode_512"] - MEASURED["decode_128"]) / (512 - 128)
    return TOKENS * (MEASURED["decode_128"] + slope * (rows - 128))


def training(rows: float) -> float:
    """Seconds in which one device trains on so many completions."""
    return MEASURED["train_128"] * rows / 128


def exchange(devices: int, rows: float) -> float:
    """Seconds in which the devices add up gradients and tell each other the episodes of a step of so many rows."""
    gradients = 2 * (devices - 1) / devices * 4 * ASSUMED["parameters"] / ASSUMED["link"]
    episodes = (devices - 1) / devices * rows * TOKENS * ASSUMED["bytes_per_token"] / ASSUMED["episodes"]
    return gradients + episodes


def in_turns(devices: int, rows: float) -> float:
    """Seconds of a step of so many completions in all, which the devices sample and then train together."""
    return sampling(rows / devices) + training(rows / devices) + exchange(devices, rows)


def apart(
    samplers: int, devices: int, rows: float, staleness: int, *, steps: int = 400, seed: int = 0
) -> float:
    """Mean seconds of a step where some devices sample and the others train, by simulation of events."""
    draws = random.Random(seed)
    trainers = devices - samplers
    hand_over = 2 * ASSUMED["parameters"] / ASSUMED["link"]  # bfloat16 weights, to all samplers at once
    sampled, trained = [0.0], [0.0]
    for number in range(1, steps + 1):
        vary = [1 + ASSUMED["spread"] * draws.uniform(-1, 1) for _ in range(2)]
        weights = trained[max(number - 1 - staleness, 0)] + hand_over
        sampled.append(max(sampled[-1], weights) + sampling(rows / samplers) * vary[0])
        work = training(rows / trainers) * vary[1] + exchange(trainers, rows)
        trained.append(max(trained[-1], sampled[-1]) + work)
    return trained[-1] / steps


def scaling() -> list[dict[str, Any]]:
    """Tokens per second and device: a step that grows with the devices, and one that does not."""
    table = []
    for devices in DEVICES:
        for step, rows in (("128 completions per device", 128 * devices), ("512 completions in all", 512)):
            seconds = in_turns(devices, rows)
            parts = sampling(rows / devices), training(rows / devices), exchange(devices, rows)
            table.append(
                {
                    "step": step,
                    "devices": devices,
                    "seconds": round(seconds, 4),
                    **{
                        f"{name}_s": round(part, 4)
                        for name, part in zip(("sampling", "training", "exchange"), parts, strict=True)
                    },
                    "tokens_per_second_per_device": round(rows * TOKENS / seconds / devices),
                }
            )
    return table


def eight() -> list[dict[str, Any]]:
    """8 devices, 1024 completions in a step: all in turns, or so many of them sampling while the others train."""
    rows, devices = 1024, 8
    usual = in_turns(devices, rows)
    table = [_row("in turns", 0, usual, rows, usual)]
    for staleness in (0, 1, 2):
        for samplers in range(1, devices):
            seconds = apart(samplers, devices, rows, staleness)
            table.append(
                _row(f"{samplers} sample, {devices - samplers} train", staleness, seconds, rows, usual)
            )
    return table


def _row(how: str, staleness: int, seconds: float, rows: int, usual: float) -> dict[str, Any]:
    rate = round(rows * TOKENS / seconds)
    return {
        "how": how,
        "staleness": staleness,
        "seconds": round(seconds, 4),
        "tokens_per_second": rate,
        "to_turns": round(usual / seconds, 3),
    }


def draw(table: Sequence[dict[str, Any]]) -> str:
    """The two curves over devices, in the repository's own style, with colours for a white page."""
    from klent.kit.svg import FONT, canvas, colour, horizontal, render, unit

    figure, (panel,) = canvas(width=560, height=300, left=60)
    for step, role, style, at, ha in (
        ("128 completions per device", "reward", "-", 5, "center"),
        ("512 completions in all", "ink", "--", 1, "left"),
    ):
        rows = [row for row in table if row["step"] == step]
        x = [row["devices"] for row in rows]
        y = [row["tokens_per_second_per_device"] / 1000 for row in rows]
        panel.plot(x, y, color=colour(role), linestyle=style, marker="o", markersize=3.5, linewidth=1.4)
        label = {"textcoords": "offset pixels", "color": colour(role), "fontsize": FONT, "ha": ha}
        panel.annotate(step, (x[at], y[at]), (6, 8), **label)
    panel.set_xscale("log", base=2)
    panel.set_xticks(DEVICES, [str(devices) for devices in DEVICES])
    panel.set_ylim(0, None)
    unit(panel, "thousand tokens per second and device, by the cost model", left=60)
    horizontal(panel, "devices", left=60)
    text = render(figure, "scaling")
    for role, shown in {"ink": "#1d1c1a", "muted": "#6d6a63", "rule": "#e6e2d8", "reward": "#1f57b8"}.items():
        text = text.replace(f"var(--{role})", shown)
    text = text.replace(
        ">", '><title id="scaling.title">Tokens per second and device on 1 to 64 devices</title>', 1
    )
    opening = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return text.replace("<svg ", opening + 'font-family="sans-serif" ', 1) + "\n"


def main() -> None:
    """Write both tables and the drawing."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    grown, split = scaling(), eight()
    show(grown, list(grown[0]))
    show(split, list(split[0]))
    write(RESULTS / "scaling.csv", grown)
    write(RESULTS / "apart.csv", split)
    PICTURE.write_text(draw(grown), encoding="utf-8")


if __name__ == "__main__":
    main()
