"""The page: whole, closed to the world, safe against what it shows, and the same every time."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from klent.errors import RunError
from klent.report import write_report
from klent.report.glossary import GLOSSARY
from klent.report.page import ROWS_SHOWN

from .fake_run import write_lines, write_run
from .svg_data import Page
from .ugly import HOSTILE, UGLY, long


@pytest.fixture(scope="module")
def folder(plain_page: Path) -> Path:
    return plain_page.parent


@pytest.fixture(scope="module")
def text(plain_page: Path) -> str:
    return plain_page.read_text()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_one_file_in_the_run_folder_and_the_same_every_time(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "quickstart")
    before = {path.name for path in folder.iterdir()}
    assert write_report(folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}
    assert (folder / "report.html").read_text() == text


def test_every_section_is_there_and_linked(text: str) -> None:
    page = Page(text)
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        "diagnosis",
        "findings",
        "curves",
        "law",
        "entropy-section",
        "accuracy-section",
        "time-section",
        "samples",
        "browse",
        "numbers",
    ]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert list(dict.fromkeys(links)) == [
        f"#{name}" for name in sections
    ]  # in the navigation, and at each heading
    titles = [attrs["id"] for tag, attrs in page.tags if tag == "figure"]
    assert titles == [
        *("reward", "entropy", "kl", "length", "gradient", "agreement"),
        *("reward-entropy", "theorem", "covariance", "accuracy", "problems", "time", "speed"),
    ]


def test_a_run_on_a_mixture_shows_where_it_sampled(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mixed", steps=4)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"mixture/alpha": 0.5, "mixture/kl_policy": 0.2, "mixture/kl_target": 0.3, "mixture/ess": 0.7}
    write_lines(run / "metrics.jsonl", rows)
    page = Page(write_report(run).read_text())
    titles = [attrs["id"] for tag, attrs in page.tags if tag == "figure"]
    assert titles[:5] == ["reward", "entropy", "kl", "mixture", "length"]
    assert "Between policy and target" in "".join(page.texts)


def test_headline_says_what_ran_and_how_to_repeat_it(text: str) -> None:
    words = "".join(Page(text).texts)
    assert (
        "smollm2-135m (135 M parameters) on chain_sum by grpo. 15 steps of 8 prompts × 8 completions" in words
    )
    assert "klent train recipes/quickstart.yaml" in words
    assert "4 min 12 s" in words


def assert_closed(text: str) -> None:
    """Nothing is loaded, whatever is written on the page."""
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in (
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "image",
            "video",
            "audio",
        )
        assert tag != "form" or attrs.get("class") == "filters", attrs  # ours, which sends nothing
        assert not {"src", "srcset", "action", "data", "background", "ping"} & set(attrs), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
        assert "url(" not in re.sub(r"url\(#", "", attrs.get("style") or ""), (tag, attrs)
    scripts = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert set(scripts) <= {None, "application/json"}  # data, which is not run
    assert scripts.count(None) <= 2  # the page's own, and the browser's
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def assert_whole(text: str) -> None:
    page = Page(text)
    assert page.crossed == []
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = {attrs["aria-labelledby"] for tag, attrs in page.tags if tag == "svg"}
    assert labels <= set(ids)
    assert not re.search(
        r'"[^"]*\b(?:nan|inf)\b[^"]*"', "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    )
    explained = {f"{term.definition} " for term in GLOSSARY.values()}
    for words in page.texts:
        assert words in explained or not re.search(r"\bnan\b|\bNone\b|\binf\b|Undefined", words), words


def test_the_page_is_whole_and_closed(text: str) -> None:
    assert_closed(text)
    assert_whole(text)


@pytest.mark.parametrize("name", UGLY)
def test_ugly_runs_have_whole_and_closed_pages(ugly_page: Callable[[str], Path], name: str) -> None:
    text = ugly_page(name).read_text()
    assert_closed(text)
    assert_whole(text)


def test_only_the_pages_own_script_may_run(text: str) -> None:
    script = text[text.index("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (attrs["content"] for tag, attrs in Page(text).tags if attrs.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_what_a_model_wrote_is_text(ugly_page: Callable[[str], Path]) -> None:
    text = ugly_page("hostile").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "<iframe" not in text
    shown = [words for words in Page(text).texts if words.strip()]
    for token in (
        "<script>",
        "alert(1)",
        "</script>",
        " {{7*7}}",
        "{{1234*4321}}",
        "&amp;",
        "<img src=x onerror=alert(2)>",
        "<!--",
    ):
        assert token in HOSTILE
        assert token in shown, token
    assert "5332114" not in text, "a template was run"
    assert "⟨U+202E⟩abc" in shown
    assert "\u202e" not in text.replace(json.dumps("\u202e"), "")
    words = "".join(shown)
    assert "klent train '<script>alert(5)</script>'" in words
    assert "</title><script>alert(3)</script>" in words
    assert '"><script>alert(4)</script>' in words


def test_a_run_on_pairs_draws_them_and_what_data_wrote_is_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [
        {
            "step": 1,
            "prompt_id": "p.jsonl:1",
            "prompt": HOSTILE[0],
            "completion": side,
            "reward": None,
            "advantage": None,
            "finish": "stop",
            "tokens": HOSTILE,
            "entropy": [None] * len(HOSTILE),
            "logp": [None] * len(HOSTILE),
            "coefficient": [0.1] * len(HOSTILE),
            "preferred": side == "better",
            "score": [0.1] * len(HOSTILE),
        }
        for side in ("better", "worse")
    ]
    write_lines(folder / "samples.jsonl", rows)
    steps = [
        {
            "step": n,
            "objective/loss": 0.6,
            "preference/accuracy": 0.7,
            "preference/margin": n,
            "preference/chosen": -n,
        }
        for n in (1, 2, 3)
    ]
    write_lines(folder / "metrics.jsonl", steps)
    compared = {
        "split": "heldout",
        "problems": 2,
        "preference/low": 0.1,
        "preference/high": 0.9,
        "seconds": 1.0,
    }
    evals = [
        {
            "step": n,
            **compared,
            "preference/accuracy": 0.5,
            "preference/margin": 1.0 * n,
            "preference/right": [[1.0], [0.0]],
        }
        for n in (0, 3)
    ]
    write_lines(folder / "eval.jsonl", evals)
    page = write_report(folder).read_text()
    assert page.count("<script>") == 1
    assert "<img src=x" not in page
    for text in ('id="preference"', "takes from the margin", "<b>worse</b>", "Held-out accuracy on pairs"):
        assert text in page
    assert "The same 2 pairs" in page
    assert "0.00 → 3.00 nats" in page


def test_tokens_are_shaded_marked_and_explained(folder: Path, text: str) -> None:
    tokens = [
        attrs
        for tag, attrs in Page(text).tags
        if (attrs.get("class") or "").startswith("t ") and "title" in attrs
    ]
    assert len(tokens) > 50
    pattern = re.compile(r"entropy [\d.]+ · logp [−\d.]+ · coefficient (\+|−|0)[\de.]*")
    signs = {"+": "up", "−": "down", "0": "zero"}
    for attrs in tokens:
        found = pattern.fullmatch(attrs["title"])
        assert found, attrs
        assert attrs["class"] == f"t {signs[found[1]]}"
        shade, size = (float(value) for value in re.findall(r":([\d.]+)", attrs["style"]))
        assert 0 <= shade <= 1
        assert 0 <= size <= 1
    assert {attrs["class"] for attrs in tokens} == {"t up", "t down"}  # every step has prompts that taught


def test_the_table_holds_every_step(folder: Path, text: str) -> None:
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    rows = [re.findall(r"<td>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body, flags=re.S)]
    assert [row[0] for row in rows] == [str(step) for step in range(1, 16)]
    head = re.findall(r'<th><abbr title="([^"]*)">', text)
    assert len({len(row) for row in rows} | {len(head) + 1}) == 1
    at = next(place for place, title in enumerate(head) if title.startswith("policy/entropy "))
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert float(rows[0][at + 1]) == pytest.approx(first["policy/entropy"], rel=0.01)


def test_every_problem_is_a_square_of_its_kind(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", 2)
    before = [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    after = [[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    write_lines(
        folder / "eval.jsonl", [row | {"correct": c} for row, c in zip(rows, (before, after), strict=True)]
    )
    text = write_report(folder).read_text()
    cells = text[text.index('<div class="cells') : text.index("</div>", text.index('<div class="cells'))]
    kinds = ["gained", "gained", "kept", "kept", "never", "lost"]
    assert re.findall(r'<i class="(\w+)">', cells) == kinds
    labels = {"solved more often": 2, "as often as before": 2, "neither before nor after": 1, "less often": 1}
    for label, amount in labels.items():
        assert re.search(rf"</span>{label} <b>{amount}</b>", text), label


def test_pointing_at_a_step_shows_the_same_step_in_every_figure(text: str) -> None:
    charts = [json.loads(attrs["data-chart"]) for tag, attrs in Page(text).tags if "data-chart" in attrs]
    assert len(charts) == 9
    for chart in charts:
        assert chart["steps"] == list(range(1, 16))
        assert all(len(values) == 15 for values in [chart["x"], *chart["values"]])
        assert chart["x"] == sorted(chart["x"])


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    text = write_report(long(tmp_path / "r")).read_text()
    assert len(text) < 1_600_000  # of which the completions have a quarter
    rows = re.findall(r"<tr><td>(\d+)</td>", text)
    assert len(rows) <= ROWS_SHOWN + 1
    assert (rows[0], rows[-1]) == ("1", "2400")
    assert "every 24th is shown" in text


def test_recipe_and_versions_are_on_the_page(folder: Path, text: str) -> None:
    assert html.escape((folder / "config.yaml").read_text(), quote=False) in text
    words = "".join(Page(text).texts)
    for value in ("2.13.0", "5.19.0", "3.11.2", "134,515,008"):
        assert value in words
