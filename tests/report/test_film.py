"""Strips from noise to image: what is logged, read back, drawn, and escaped."""

import json
from pathlib import Path

import pytest
import torch

from klent.report.film import film
from klent.report.page import page
from klent.report.read import RunData, Sample, _sample
from klent.runs.samples import Places, sample_rows
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt


def sample(step: int, coefficient: list[float | None], **more: object) -> Sample:
    """An image of 4x4 with a film of its steps 1 and 3 of 3."""
    row = {
        "step": step,
        "prompt_id": "<b>noise</b>",
        "tokens": ["1 ", "2 ", "3 "],
        "reward": 0.5,
        "advantage": -1.25,
        "coefficient": coefficient,
        "vector": [1.0] + [-1.0] * 15,
        "film": [[0, [0.0] * 16], [2, [-1.0] * 16]],
    }
    return _sample(json.loads(json.dumps(row | more)))


def test_the_frames_are_those_of_the_first_image_of_each_prompt_and_their_number_is_bounded() -> None:
    def logged(length: int, size: int) -> list[dict[str, object]]:
        states = torch.arange(length * size, dtype=torch.float32).view(length, size) / 1000
        episodes = [Episode.of_actions(Prompt("noise/0", ""), states, states + 1, text="x") for _ in range(2)]
        return sample_rows(1, make_batch(episodes, [0.0, 1.0], group_size=2), None, Places())

    first, second = logged(5, 16)
    assert [place for place, _ in first["film"]] == [0, 1, 2, 3, 4]
    assert first["film"][3][1] == pytest.approx([0.001 * (3 * 16 + i) for i in range(16)], abs=0.0051)
    assert "film" not in second
    assert len(logged(50, 64)[0]["film"]) == 24
    long = [place for place, _ in logged(50, 784)[0]["film"]]
    assert (len(long), long[0], long[-1]) == (10, 0, 49)
    assert "film" not in logged(5, 15)[0]  # no square
    assert "film" not in logged(5, 4)[0]  # too small to see


def test_a_frame_has_the_coefficients_up_to_the_next_one() -> None:
    run = RunData(path=Path("run"), samples=[sample(1, [0.25, 0.5, -1.5]), sample(9, [0.1, None, 0.0])])
    drawn = film(run)
    first, second = drawn.strips
    assert [(f.label, f.coefficient, f.push, f.size) for f in first.frames] == [
        ("1", "+0.750", "up", 0.5),
        ("3", "−1.50", "down", 1.0),
        ("image", "", "", 0.0),
    ]
    assert [(f.coefficient, f.push) for f in second.frames] == [("–", ""), ("0", "zero"), ("", "")]
    assert (drawn.most, drawn.pushed) == ("1.5", True)
    assert first.frames[0].image.count("opacity") == 4  # a row of grey is one rectangle
    assert [(grid.step, grid.reward, len(grid.images)) for grid in drawn.grids] == [
        (1, "0.50", 1),
        (9, "0.50", 1),
    ]


def test_a_loss_of_finished_images_pushes_no_step_and_the_page_says_so() -> None:
    samples = [sample(1, [0.0, 0.0, 0.0])]
    assert not film(RunData(path=Path("run"), samples=samples)).pushed
    html = page(RunData(path=Path("run"), rows=[{"step": 1}], samples=samples))
    assert "No step was pushed by itself" in html
    assert "From noise to image" in html
    assert "<b>noise</b>" not in html  # escaped


def test_without_images_there_is_no_section() -> None:
    assert film(RunData(path=Path("run"), samples=[sample(1, [0.0] * 3, vector=[0.1, 0.2])])) is None
    assert film(RunData(path=Path("run"))) is None


def test_a_damaged_film_ends_where_the_damage_is() -> None:
    assert sample(1, [0.0] * 3, film=[[1, [0.5]], ["<script>", [1.0]], [2, [1.0]]]).film == [(1, [0.5])]
    assert sample(1, [0.0] * 3, film=[[2, ["x", 1]], [1, [1.0]]]).film == [(2, [1.0])]
    assert sample(1, [0.0] * 3, film="<b>").film == []
    assert sample(1, [0.0] * 3, film=[[7, [1.0]]]).film == []  # no such step
    strip = film(RunData(path=Path("r"), samples=[sample(1, [0.0] * 3, film=[[0, ["<script>"]]])])).strips[0]
    assert strip.frames[0].image == ""
