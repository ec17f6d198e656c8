"""The page that follows a run: the content of the report, for this machine alone, read only, while somebody looks."""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from klent.errors import ConfigError
from klent.io.files import append_line
from klent.report import write_report
from klent.report.live import Live, LivePage, Server, version_of
from klent.studies.overlay.watch import live_pages

from .fake_run import write_run


@contextmanager
def served(pages: dict[str, LivePage]) -> Iterator[Server]:
    with Server(pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, path: str = "/", *, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def cut(run: Path, done: int) -> list[dict[str, object]]:
    """Leave a run its first steps, and return the rows of the others."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:done]))
    return rows[done:]


def test_it_is_the_report_and_follows_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 6)
    later = cut(run, 4)
    with served(live_pages([run])) as server:
        status, text = ask(server)
        assert status == 200
        report = write_report(run).read_text()
        body = re.compile(r'<header class="title">.*</section>', re.S)
        assert body.search(text)[0] == body.search(report)[0]  # type: ignore[index]
        assert 'data-version="' in text
        assert 'data-version="' not in report
        assert f'data-version="{ask(server, "/version")[1]}"' in text
        append_line(run / "metrics.jsonl", later[0])
        after = LivePage([run], lambda live: live.version).html()
        server.pages["/"]._again = 0.0
        assert ask(server, "/version")[1] == after
        assert f'data-version="{after}"' in ask(server)[1]
        assert "<td>5</td>" in ask(server)[1]


def test_nothing_is_written_and_nothing_is_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 3)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir()}
    with served(live_pages([run])) as server:
        assert ask(server)[0] == 200
        assert ask(server, method="HEAD") == (200, "")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(server, method=method)[0] == 501
        for path in (
            "/config.yaml",
            "/../r/config.yaml",
            "/%2e%2e/config.yaml",
            "//version/x",
            "/1/",
            "/versions",
        ):
            assert ask(server, path)[0] == 404
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir()} == before


def test_only_this_machine_and_only_its_own_address(tmp_path: Path) -> None:
    with served(live_pages([write_run(tmp_path / "r", 2)])) as server:
        assert server.server_address[0] == "127.0.0.1"
        port = server.server_address[1]
        assert ask(server, "/version", host=f"localhost:{port}")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1"):
            assert ask(server, "/version", host=host)[0] == 403  # a name that somebody points here
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex(("127.0.0.2", port)) != 0


def test_it_is_drawn_when_somebody_looks_and_rests(tmp_path: Path) -> None:
    drawn: list[Live] = []

    def draw(live: Live) -> str:
        drawn.append(live)
        time.sleep(0.05)
        return live.version

    (tmp_path / "metrics.jsonl").write_text("1")
    page = LivePage([tmp_path], draw, rest=1000.0)
    for text in ("12", "123"):
        (tmp_path / "metrics.jsonl").write_text(text)
    assert drawn == []
    assert page.html() == page.html() == page.version == drawn[0].version
    (tmp_path / "metrics.jsonl").write_text("1234")
    assert page.html() == drawn[0].version != version_of([tmp_path])  # it rests
    assert len(drawn) == 1
    page._again = 0.0
    assert page.version == version_of([tmp_path])
    assert page.html() == drawn[1].version
    (tmp_path / "report.html").write_text("what is drawn of it is nothing new")
    page._again = 0.0
    assert page.html() == drawn[1].version
    assert len(drawn) == 2


def test_a_file_that_cannot_be_read_keeps_the_page_of_before(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("1")
    broken = False

    def draw(live: Live) -> str:
        if broken:
            raise ValueError("half written")
        return "whole"

    page = LivePage([tmp_path], draw, rest=0.0)
    with served({"/": page}) as server:
        assert ask(server) == (200, "whole")
        broken = True
        (tmp_path / "metrics.jsonl").write_text("12")
        assert ask(server) == (200, "whole")
    with served({"/": LivePage([tmp_path], draw)}) as server:
        assert ask(server) == (503, "ValueError: half written")


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    with served(live_pages([tmp_path / "r"])) as server:
        assert "There is no run in" in ask(server)[1]
        write_run(tmp_path / "r", 2)
        server.pages["/"]._again = 0.0
        assert "There is no run in" not in ask(server)[1]


def test_several_runs_are_laid_over_one_another_each_with_its_page(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", 3), tmp_path / "none", write_run(tmp_path / "c", 5)]
    with served(live_pages(runs)) as server:
        text = ask(server)[1]
        assert re.findall(r'<a href="(/\d/)">', text) == ["/1/", "/2/", "/3/"]
        assert "none: There is no run in" in text
        assert "Curves" in ask(server, "/3/")[1]
        versions = [ask(server, f"{path}version")[1] for path in ("/", "/1/", "/3/")]
        assert len(set(versions)) == 3
    with pytest.raises(ConfigError, match="each once"):
        live_pages([runs[0], runs[0]])


def test_the_process_beside_a_run_ends_with_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 2)
    command = [sys.executable, "-m", "klent", "watch", str(run), "--until-input-ends"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert re.fullmatch(r"watch: http://127\.0\.0\.1:\d+/\n", line)
        process.stdin.close()  # as when the run's process is gone
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
