"""What is chosen from the samples, and how a token is prepared to be drawn."""

from pathlib import Path
from typing import Any

import pytest

from klent.report.page import page
from klent.report.read import RunData, Sample, _sample
from klent.report.samples import (
    COMPLETIONS_SHOWN,
    PROMPTS_SHOWN,
    TOKENS_SHOWN,
    choose,
    is_instructive,
    visible,
)


def sample(step: int = 1, prompt: str = "p", **changes: Any) -> Sample:
    tokens = changes.pop("tokens", ["a", " b"])
    count = len(tokens)
    default = {
        "step": step,
        "prompt_id": prompt,
        "prompt": "asked",
        "completion": "".join(tokens),
        "reward": 1.0,
        "advantage": 0.5,
        "finish": "stop",
        "tokens": tokens,
        "entropy": [1.0] * count,
        "logp": [-0.5] * count,
        "coefficient": [0.5] * count,
    }
    return Sample(**(default | changes))


def test_a_critics_values_are_lines_on_one_scale() -> None:
    shown = choose(
        [sample(tokens=["x", "y", "z"], value=[0.5, -0.5, 0.0]), sample(prompt="q", value=[1.5, None])]
    )
    assert shown.values == (-0.5, 1.5)
    tokens = [t for asked in shown.stages[0].asked for c in asked.completions for t in c.tokens]
    assert [token.value for token in tokens] == [0.5, 0.0, 0.25, 1.0, None]
    assert tokens[0].tip.endswith("· value +0.500")
    assert "value" not in tokens[4].tip
    same = choose([sample(value=[0.25, 0.25])])
    assert same.stages[0].asked[0].completions[0].tokens[0].value == 0.5
    assert choose([sample()]).values is None


def test_a_token_carries_its_numbers() -> None:
    one = sample(tokens=["x", "y", "z"], entropy=[2.0, 0.5, None], logp=[-1.0, -0.25, None])
    one = Sample(**(vars(one) | {"coefficient": [0.8, -0.4, 0.0]}))
    (stage,) = choose([one]).stages
    first, second, third = stage.asked[0].completions[0].tokens
    assert first.tip == "entropy 2.00 · logp −1.00 · coefficient +0.800"
    assert (first.shade, first.push, first.size) == (1.0, "up", 1.0)
    assert (second.shade, second.push, second.size) == (0.25, "down", 0.5)
    assert (third.shade, third.push, third.size) == (0.0, "zero", 0.0)
    assert third.tip == "entropy – · logp – · coefficient 0"


def test_an_episode_is_a_conversation() -> None:
    turns = [
        {"by": "policy", "tokens": [0, 2], "reward": 1.0, "advantage": 0.5},
        {"by": "environment", "tokens": [2, 3]},
        {"by": "policy", "tokens": [3, 4], "reward": None},
    ]
    row = {"step": 1, "tokens": ["a", "b", "<i>now</i>", "c"], "coefficient": [1, 1, 0, 0], "turns": turns}
    row |= {"prompt_id": "p", "advantage": 0.0, "problem": "environment <b> hung"}
    one = _sample(row)
    assert is_instructive([one])
    (completion,) = choose([one]).stages[0].asked[0].completions
    assert [(part.by, part.numbers) for part in completion.parts] == [
        ("policy", "reward 1.00 · advantage +0.50"),
        ("environment", ""),
        ("policy", "no reward"),
    ]
    said = completion.parts[1].tokens[0]
    assert (said.text, said.push, said.tip) == ("<i>now</i>", "", "")
    html = page(RunData(Path("run"), rows=[{"step": 1}], samples=[one]))
    assert "&lt;i&gt;now&lt;/i&gt;" in html
    assert "environment &lt;b&gt; hung" in html
    assert "<i>now" not in html
    for damaged in (
        [{"by": "x"}],
        [{"tokens": [0, 9]}],
        [{"tokens": [1, 2]}],
        "x",
        [3],
        [{"tokens": [0, "1"]}],
    ):
        (whole,) = choose([_sample(row | {"turns": damaged})]).stages[0].asked[0].completions
        assert [(part.by, len(part.tokens)) for part in whole.parts] == [("", 4)]


def test_a_turn_says_where_the_policy_was_at_a_fork() -> None:
    """Ten tokens of the policy in the step, so two are its most uncertain fifth: 2.0 and 1.5, both of one turn."""
    entropy = [0.1, 2.0, 1.5, None, 0.9, 0.2, 0.3]
    turns = [
        {"by": "policy", "tokens": [0, 3], "reward": 1.0},
        {"by": "environment", "tokens": [3, 4]},
        {"by": "policy", "tokens": [4, 7], "reward": 0.0},
    ]
    row = {"step": 1, "tokens": ["go ", " left", ".", "now", "u", "p", "!"], "turns": turns, "prompt_id": "p"}
    row |= {"entropy": entropy, "logp": [-0.1, -1.609438, -1.0, 0.0, -0.5, -0.1, -0.1], "advantage": 1.0}
    row |= {"coefficient": [1.0] * 7, "completion": "one"}
    other = {
        "step": 1,
        "tokens": list("abcd"),
        "entropy": [0.0, 0.1, 0.2, 0.3],
        "prompt_id": "p",
        "advantage": -1.0,
    }
    other |= {"turns": [{"by": "policy", "tokens": [0, 4]}], "completion": "two"}
    late = {**row, "step": 2, "entropy": [0.0] * 7}  # certain of everything: no fork
    shown = choose([_sample(each) for each in (row, other, late)])
    one, two = shown.stages[0].asked[0].completions
    assert [part.numbers for part in one.parts] == [
        "reward 1.00 · 1.20 nats per token · fork at “left”: 2.00 nats, said with 0.20",
        "",
        "reward 0.00 · 0.47 nats per token",
    ]
    assert [token.fork for token in one.tokens] == [False, True, *[False] * 5]
    assert not any(token.fork for token in two.tokens)
    assert not any(token.fork for token in shown.stages[1].asked[0].completions[0].tokens)
    html = page(RunData(Path("run"), rows=[{"step": 1}], samples=[_sample(row), _sample(other)]))
    assert html.count('class="t up fork"') == 1
    assert "where a turn was most uncertain" in html
    assert "What the policy wrote, where it was uncertain" in html
    assert "two answers of a pair" not in html
    assert "where a turn was most uncertain" not in page(
        RunData(Path("run"), rows=[{"step": 1}], samples=[sample()])
    )


def test_one_scale_for_the_whole_page() -> None:
    early, late = sample(1, entropy=[4.0, 2.0]), sample(9, entropy=[1.0, 0.0], coefficient=[-2.0, 0.0])
    shown = choose([early, late])
    assert (shown.entropy, shown.mark) == (4.0, 2.0)
    assert [stage.name for stage in shown.stages] == ["early", "late"]
    assert shown.stages[1].asked[0].completions[0].tokens[0].shade == 0.25
    assert shown.stages[0].asked[0].completions[0].tokens[0].size == 0.25


def test_prompts_that_taught_something_come_first_best_answer_first() -> None:
    flat = [sample(prompt="flat", completion=str(i), advantage=0.0) for i in range(8)]
    mixed = [
        sample(prompt="mixed", completion=str(i), advantage=a)
        for i, a in enumerate([-1.0, 2.0, 0.1, -0.5, 1.0])
    ]
    (stage,) = choose(flat + mixed).stages
    assert [asked.id for asked in stage.asked] == ["mixed"]  # the flat prompt taught nothing
    assert stage.note == ""
    assert [c.advantage for c in stage.asked[0].completions] == ["+2.00", "+1.00", "−0.50", "−1.00"]
    (stage,) = choose(flat).stages
    assert [asked.id for asked in stage.asked] == ["flat"]
    assert stage.note == "every logged advantage is 0"
    assert len(stage.asked[0].completions) == COMPLETIONS_SHOWN


def test_equal_completions_are_shown_once_and_prompts_are_few() -> None:
    same = [sample(prompt=f"p{i}") for i in range(10) for _ in range(3)]
    (stage,) = choose(same).stages
    assert len(stage.asked) == PROMPTS_SHOWN
    assert [len(asked.completions) for asked in stage.asked] == [1] * PROMPTS_SHOWN


def test_long_completions_are_cut_and_counted() -> None:
    (stage,) = choose([sample(tokens=["w"] * (TOKENS_SHOWN + 7))]).stages
    completion = stage.asked[0].completions[0]
    assert (len(completion.tokens), completion.hidden) == (TOKENS_SHOWN, 7)


def test_without_tokens_the_text_is_shown_plain() -> None:
    (stage,) = choose([sample(tokens=[], completion="hello\n", reward=None, advantage=None)]).stages
    completion = stage.asked[0].completions[0]
    assert [token.text for token in completion.tokens] == ["hello⏎"]
    assert (completion.reward, completion.advantage, completion.push) == ("unscorable", "–", "")


def test_no_samples_no_stages() -> None:
    assert choose([]).stages == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n\n", "⏎⏎"),
        (" \t", " ⇥"),
        ("\r\n", "␍⏎"),
        ("‮evil", "⟨U+202E⟩evil"),
        ("\x00", "␀"),
        ("", "∅"),
        ("<b>", "<b>"),
        ("é 漢 �", "é 漢 �"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_line_breaks_stay_breaks() -> None:
    (stage,) = choose([sample(tokens=["a", "\n\n", "b"])]).stages
    assert [token.breaks for token in stage.asked[0].completions[0].tokens] == [0, 2, 0]


def test_of_a_pair_a_token_is_marked_by_what_it_adds_to_the_margin() -> None:
    better = sample(completion="x", reward=None, advantage=None, preferred=True, score=[0.5, -1.0])
    worse = sample(completion="y", reward=None, advantage=None, preferred=False, score=[0.25, -2.0])
    left_out = sample(completion="z", reward=None, advantage=None, coefficient=[0.0, 0.0])
    shown = choose([left_out, worse, better])
    assert (shown.pairs, shown.mark) == (True, 2.0)
    first, second, third = shown.stages[0].asked[0].completions
    assert [(c.side, c.score) for c in (first, second)] == [("better", "−0.50"), ("worse", "−1.75")]
    assert third.side == ""
    assert [(t.push, t.size) for t in first.tokens] == [("up", 0.25), ("down", 0.5)]
    assert [(t.push, t.size) for t in second.tokens] == [("down", 0.125), ("up", 1.0)]
    assert first.tokens[0].tip.startswith("margin +0.500 nats · ")


def test_a_denoisers_image_is_drawn_where_it_is_a_square() -> None:
    def drawn(vector: list[float]) -> str:
        return choose([sample(vector=vector)]).stages[0].asked[0].completions[0].image

    picture = drawn([-1.0] * 12 + [1.0, 1.0, 0.0, -3.0])
    assert picture.count("<rect") == 2  # the two of one level are one
    assert 'x="0" y="3" width="2" height="1" opacity="1.00"' in picture
    assert 'x="2" y="3" width="1" height="1" opacity="0.50"' in picture
    assert drawn([1.0, 2.0]) == drawn([]) == drawn([0.0] * 17) == ""
    html = page(RunData(path=Path("run"), rows=[{"step": 1}], samples=[sample(vector=[0.5] * 16)]))
    assert '<svg class="pixels" viewBox="0 0 4 4"' in html
    assert _sample({"step": 1, "tokens": [], "vector": [0.5, "x", -1]}).vector == [0.5, -1.0]
