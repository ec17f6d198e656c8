"""The page in a real browser, without network: it renders, it is quiet, nothing written on it runs."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies.compare.fake import fake_plan, finish

from klent.io.files import append_line
from klent.report import browse as report_browse
from klent.report import write_report
from klent.studies.compare.page import write_page
from klent.studies.overlay.page import write_overlay
from klent.studies.overlay.watch import live_pages

from .fake_run import write_lines, write_run
from .test_live import cut, served

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"
)

PROBE = Path(__file__).with_name("probe.js")


def browse(page: Path | str, *, width: int = 1280, budget: int = 2000) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the browser's console said; a page is a file or an address."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
            *(
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ),
            *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
            *(
                "--enable-logging=stderr",
                f"--virtual-time-budget={budget}",
                f"--window-size={width},2000",
                "--dump-dom",
            ),
            page if isinstance(page, str) else page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)


NARROWEST = 500
"""Pixels; a headless window is never narrower, but a frame in it may be."""


def framed(page: Path, width: int) -> Path:
    """A page with another as a frame of some width."""
    frame = page.with_name("frame.html")
    text = html.escape(page.read_text())
    frame.write_text(f'<iframe style="border: 0; width: {width}px; height: 2000px" srcdoc="{text}"></iframe>')
    return frame


def probe(page: Path, *, width: int = 1280, theme: str = "light") -> dict[str, Any]:
    """What tests/report/probe.js finds on a copy of the page that lets it run."""
    text, probe_script = page.read_text(), f"<script>{PROBE.read_text()}</script>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    copy = page.with_name("probe.html")
    copy.write_text(text.replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">') + probe_script)
    document, console = browse(framed(copy, width) if width < NARROWEST else copy, width=width)
    assert console == []
    found = re.search(r'<pre id="probe">(.*?)</pre>', document, flags=re.S)
    assert found, document[-2000:]
    return json.loads(html.unescape(found[1]))


def luminance(rgb: list[int]) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a: list[int], b: list[int]) -> float:
    """WCAG contrast ratio; 4.5 is asked of text."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def report(plain_page: Path) -> Path:
    return plain_page


def test_it_renders_and_the_console_is_silent(report: Path) -> None:
    document, console = browse(report)
    assert console == []
    assert '<button id="theme" type="button">' in document, "the script did not run"
    assert document.count('<line class="cross"') == 9


def test_an_error_would_be_heard(report: Path) -> None:
    broken = report.with_name("broken.html")
    broken.write_text(
        re.sub(r"<meta http-equiv[^>]*>", "", report.read_text()) + "<script>nowhere()</script>"
    )
    _, console = browse(broken)
    assert any("nowhere is not defined" in line for line in console)


def test_a_foreign_script_and_a_foreign_picture_are_refused(report: Path) -> None:
    """The page's own policy is a second wall, should escaping ever fail."""
    pierced = report.with_name("pierced.html")
    foreign = "<script>document.title = 'taken'</script><img src='https://example.org/x.png'>"
    pierced.write_text(report.read_text().replace("</footer>", f"</footer>{foreign}"))
    document, console = browse(pierced)
    assert "<title>taken" not in document
    assert sum("Content Security Policy" in line for line in console) == 2


@pytest.mark.parametrize("name", ["hostile", "killed"])
def test_nothing_written_on_the_page_runs(ugly_page: Callable[[str], Path], name: str) -> None:
    document, console = browse(ugly_page(name))
    assert console == []
    assert document.count("<script>") == 1
    assert not re.search(r"<(img|iframe|u)\b|<b>run", document)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_it_reads_well(report: Path, theme: str, width: int) -> None:
    seen = probe(report, theme=theme, width=width)
    assert (luminance(seen["page"]) < 0.05) == (theme == "dark")
    assert contrast(seen["ink"], seen["page"]) > 12
    assert contrast(seen["muted"], seen["page"]) > 4.5
    assert contrast(seen["line"], seen["page"]) > 3
    assert seen["overflow"] <= 0
    assert seen["wide"] == []
    assert seen["tiles"] == []
    assert all(wide > 300 and tall > 80 for _, wide, tall in seen["figures"])
    assert len(seen["figures"]) == 12
    assert seen["smallest"] > 10


@pytest.mark.parametrize("width", [390, 900])
def test_the_top_card_holds_long_numbers(tmp_path: Path, width: int) -> None:
    """Days of time, a negative reward of thousands, and an entropy of hundreds."""
    run = write_run(tmp_path / "r", 3)
    (run / "eval.jsonl").unlink()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"reward/mean": -12345.67 * row["step"], "policy/entropy": 123.45 * row["step"]}
        row |= {"kl/reference": 12345.6, "time/step": 234567.0}
    write_lines(run / "metrics.jsonl", rows)
    record = json.loads((run / "run.json").read_text()) | {"wall_seconds": 1234567.0}
    (run / "run.json").write_text(json.dumps(record))
    seen = probe(write_report(run), width=width)
    assert (seen["tiles"], seen["wide"]) == ([], [])


COMPARE_PROBE = """
const cells = Array.from(document.querySelectorAll(".finals td:first-child"));
const button = document.getElementById("theme"), before = getComputedStyle(document.body).backgroundColor;
button.click();
const out = document.createElement("pre");
out.id = "probe";
out.textContent = JSON.stringify({
  narrowest: Math.min(...cells.map((cell) => cell.clientWidth)),
  tallest: Math.max(...cells.map((cell) => cell.clientHeight)),
  overflow: document.documentElement.scrollWidth - innerWidth,
  width: innerWidth,
  toggled: getComputedStyle(document.body).backgroundColor !== before,
});
parent.document.body.appendChild(out);
"""


def test_a_comparison_reads_well_on_a_phone(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, "method=grpo,rloo", "optimizer.lr=1e-5,2e-5", seeds=2)
    finish(plan, lambda arm, seed: 0.5)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_page(plan).read_text())
    page = tmp_path / "probe.html"
    page.write_text(text + f"<script>{COMPARE_PROBE}</script>")
    document, console = browse(framed(page, 390))
    assert console == []
    seen = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', document, flags=re.S)[1]))
    assert seen["width"] == 390
    assert seen["overflow"] <= 0
    assert seen["narrowest"] >= 110
    assert seen["tallest"] < 80  # a name of three words takes three lines, not one for each letter
    assert seen["toggled"]


def test_an_overlay_is_quiet_and_answers_the_pointer(tmp_path: Path) -> None:
    page = write_overlay([write_run(tmp_path / "a", 4), write_run(tmp_path / "b", 7)], tmp_path / "page.html")
    document, console = browse(page)
    assert console == []
    assert document.count('<line class="cross"') == document.count("<figure ") >= 6


def test_a_live_page_follows_the_run_and_is_quiet(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 3)
    later = cut(run, 2)
    (page,) = (pages := live_pages([run])).values()
    page._rest = 0.0
    page.html()  # what draws is imported
    served_page = page.html

    def html_and_on() -> str:
        """The run goes on as soon as its page was asked for."""
        text = served_page()
        if later:
            append_line(run / "metrics.jsonl", later.pop(0))
        return text

    page.html = html_and_on  # type: ignore[method-assign]
    with served(pages) as server:
        document, console = browse(server.address, budget=20_000)
    assert console == []
    assert later == []
    assert re.search(r'<span class="at">step 3</span>', document)
    assert re.search(r'<span id="live"[^>]*>live</span>', document)
    assert '<button id="theme" type="button">' in document


def test_it_answers_the_pointer(report: Path) -> None:
    seen = probe(report)
    assert {at for at, _ in seen["atRest"]} == {"step 15"}
    assert {at for at, _ in seen["pointed"]} == {"step 3"}
    assert all(rest[1] != there[1] for rest, there in zip(seen["atRest"], seen["pointed"], strict=True))
    assert seen["left"] == seen["atRest"]
    assert {visible for visible, _ in seen["crosses"]} == {"visible"}
    assert {float(x) for _, x in seen["crosses"]} == {seen["third"]}
    assert seen["tip"]["shown"]
    assert seen["tip"]["text"].split("\n") == seen["tip"]["title"].split(" · ")
    assert re.match(r"entropy [\d.]+ · logp", seen["tip"]["title"])
    assert seen["first"] == [True, False]
    assert seen["second"] == [False, True]
    assert seen["theme"] == ["Dark", "light"]
    assert seen["toggled"][:2] == ["Light", "dark"]
    assert luminance(seen["toggled"][2]) < 0.05


def test_pushed_up_and_down_differ_in_shape_and_place(report: Path) -> None:
    seen = probe(report)
    assert seen["up"]["content"] == '""'
    assert seen["up"]["height"] > 1
    assert seen["up"]["below"] == "none"
    assert seen["up"]["above"] == pytest.approx(0, abs=0.6)  # the bar begins where the token ends
    assert seen["down"]["content"] == '""'
    assert seen["down"]["striped"]
    assert seen["down"]["under"] == pytest.approx(0, abs=0.6)


BROWSE = """
const box = document.getElementById("browser"), form = box.querySelector("form");
const list = () => Array.from(document.querySelectorAll("#list > li"));
const one = () => document.getElementById("one").textContent;
const set = (values) => {
  form.querySelectorAll("input, select").forEach((field) => { field.value = values[field.name] || ""; });
  form.dispatchEvent(new Event("input", { bubbles: true }));
  return document.getElementById("count").textContent;
};
const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const data = JSON.parse(document.getElementById("samples-data").textContent);
const saved = [];
URL.createObjectURL = (blob) => { saved.push(blob); return "#"; };
const seen = { linked: one(), all: set({}), listed: list().length };
form.reset();
seen.words = set({ words: "zebra PROMPT" }); seen.zebra = one();
seen.steps = set({ first: 2, last: 3 });
seen.reward = set({ least: 0.5 });
seen.unreached = set({ least: 7 });
seen.finish = set({ finish: "length" });
seen.finding = set({ finding: "0" });
set({});
key("j"); seen.second = one();
key("k"); seen.first = one();
key("k"); seen.still = one() === seen.first;
key("/"); seen.focus = document.activeElement.name;
seen.same = document.querySelectorAll(".same li").length;
seen.overflow = document.documentElement.scrollWidth - innerWidth;
box.querySelectorAll("[data-table]").forEach((button) => button.click());
Promise.all(saved.map((blob) => blob.text())).then((texts) => {
  seen.tables = texts;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(seen);
  document.body.appendChild(out);
});
"""


def test_completions_are_searched_filtered_compared_and_saved(tmp_path: Path) -> None:
    """Four steps, in each the same two prompts with two completions; one is a zebra's, and three are cut off."""
    run = write_run(tmp_path / "r", 8)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [row | {"completion/truncated": 0.9} for row in rows])
    first = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    written = []
    for step in range(1, 5):
        for prompt in "ab":
            for number in range(2):
                zebra = (step, prompt, number) == (3, "b", 1)
                text = 'a "zebra", here\nand there' if zebra else f"{step} {prompt} {number}"
                finish = "length" if step == 1 and (prompt, number) != ("b", 1) else "stop"
                numbers = {"reward": float(number), "finish": finish, "completion": text}
                written.append(
                    first | numbers | {"step": step, "prompt_id": prompt, "prompt": f"prompt {prompt}"}
                )
    write_lines(run / "samples.jsonl", written)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_report(run).read_text())
    copy = tmp_path / "probe.html"
    copy.write_text(f"{text}<script>{BROWSE}</script>")
    document, console = browse(copy.as_uri() + "#completion-12")
    assert console == []
    seen = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', document, flags=re.S)[1]))
    assert (seen["all"], seen["listed"]) == ("16 completions", 16)
    assert "zebra" in seen["linked"]
    assert "Step 3, b" in seen["zebra"]
    assert "entropy" in seen["zebra"]
    counts = {name: int(seen[name].split()[0]) for name in ("words", "steps", "reward", "finish", "finding")}
    assert counts == {"words": 1, "steps": 8, "reward": 8, "finish": 3, "finding": 3}
    assert seen["unreached"] == "0 of 16 completions"
    assert "1 a 0" in seen["first"]
    assert "1 a 1" in seen["second"]
    assert seen["still"]
    assert seen["focus"] == "words"
    assert seen["same"] == 8  # the other steps' completions of the prompt
    assert seen["overflow"] <= 0
    table, metrics = (list(csv.reader(io.StringIO(text))) for text in seen["tables"])
    assert len(table) == 17
    assert table[12][:5] == ["3", "b", "prompt b", 'a "zebra", here\nand there', "1"]
    assert [row[0] for row in metrics] == ["step", *map(str, range(1, 9))]


PARTS = """
const seen = {}, others = document.getElementById("others"), form = document.querySelector("#browser form");
const count = () => document.getElementById("count").textContent;
const change = (values) => {
  form.querySelectorAll("input").forEach((field) => { field.value = values[field.name] || ""; });
  form.first.dispatchEvent(new Event("input", { bubbles: true }));
  form.first.dispatchEvent(new Event("change", { bubbles: true }));
};
const until = (done) => new Promise((then) => { const ask = () => done() ? then() : setTimeout(ask, 5); ask(); });
(async () => {
  seen.held = count(); seen.offer = others.textContent;
  change({ first: 3, last: 3 });
  await until(() => others.hidden);
  seen.step = count();
  change({ words: "zebra" });
  seen.before = count();
  others.click();
  await until(() => others.hidden);
  seen.words = count(); seen.one = document.getElementById("one").textContent;
  change({});
  seen.all = count(); seen.listed = Array.from(document.querySelectorAll("#list .at")).map((at) => at.textContent);
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(seen);
  document.body.appendChild(out);
})();
"""


def a_large_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report of 12 steps of 12 completions in small parts; the 30th completion is a zebra's."""
    monkeypatch.setattr(report_browse, "IN_PAGE", 8000)
    monkeypatch.setattr(report_browse, "IN_PART", 3000)
    run = write_run(folder, 12)
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rows[29]["completion"] = 'zebra "</script>"'
    write_lines(run / "samples.jsonl", rows)
    return write_report(run)


def test_completions_beside_the_page_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, where a page may not fetch, and under the page's own policy, as the second half shows."""
    page = a_large_run(tmp_path / "r", monkeypatch)
    copy = page.with_name("probe.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(f"{text}<script>{PARTS}</script>")
    document, console = browse(copy, budget=20_000)
    assert console == []
    seen = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', document, flags=re.S)[1]))
    held = int(seen["held"].split()[0])
    assert 0 < held < 72
    assert seen["offer"].startswith("Search the others too (0.0 MB)")
    shown, among = (int(number) for number in re.findall(r"\d+", seen["step"]))
    assert shown == 12
    assert held < among < 144
    assert seen["words"] == "1 of 144 completions"
    assert 'zebra "</script>"' in seen["one"]
    assert seen["all"] == "144 completions"
    assert seen["listed"] == [f"step {step}" for step in range(1, 10) for _ in range(12)][:100]

    document, console = browse(page.as_uri() + "#completion-30", budget=20_000)
    assert console == []
    assert 'zebra "&lt;/script&gt;"' in document.partition('id="one"')[2]
    assert document.count("<script src=") == 1


def test_a_page_without_its_parts_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = a_large_run(tmp_path / "r", monkeypatch)
    shutil.rmtree(page.parent / "report")
    document, _ = browse(page.as_uri() + "#completion-30", budget=20_000)
    assert re.search(r'id="others"[^>]*>report/samples-\d{4}.js is not beside this page', document)


def test_a_large_page_is_quick(tmp_path: Path) -> None:
    """Of 30,000 completions, which idle takes less than a second; what is quadratic would take far longer."""
    run = write_run(tmp_path / "r", 3)
    first = json.loads((run / "samples.jsonl").read_text().splitlines()[0]) | {"tokens": [], "entropy": [0.5]}
    with open(run / "samples.jsonl", "w") as file:
        for number in range(30_000):
            row = first | {
                "step": number // 8 + 1,
                "prompt": f"prompt {number // 8}",
                "completion": f"{number} " * 8,
            }
            file.write(json.dumps(row) + "\n")
    report = write_report(run)
    assert 200_000 < report.stat().st_size < 1_000_000
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    report.write_text(f"{text}<pre id='took'></pre><script>{ALL_OF_THEM}</script>")
    document, console = browse(report, budget=20_000)
    assert console == []
    assert float(re.search(r'<pre id="took">([\d.]+)', document)[1]) < 15_000
    assert '<span role="status" id="count">30000 completions' in document
    assert "More (29900)" in document


ALL_OF_THEM = """
const others = document.getElementById("others"), took = document.getElementById("took");
const ask = () => { if (others.hidden) took.textContent = performance.now(); else setTimeout(ask, 5); };
others.click();
ask();
"""
