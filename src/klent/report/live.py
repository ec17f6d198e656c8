"""Pages that follow a run: drawn again when its files have changed and somebody looks, for this machine alone."""

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
REST = 4.0
"""A page that took a second to draw is not drawn again for so many: a large run must not keep a core busy."""

_PASSED_OVER = (".lock", ".owner", "report.html", "report", "rewards.log")
_drawing = threading.Lock()  # one page at a time: matplotlib is not made for threads


class Live(NamedTuple):
    """What a page needs to follow a run; empty on a page that is a file."""

    script: str = ""
    version: str = ""

    @property
    def hash(self) -> str:
        """What the page's policy names the script by."""
        return hash_of(self.script)


NOT_LIVE = Live()


def hash_of(script: str) -> str:
    """What a page's policy names a script by that it lets run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


class LivePage:
    """A page of some folders, drawn when it is asked for and its files have changed since.

    Args:
        folders: their files decide whether there is something new.
        draw: makes the HTML.
        rest: seconds without drawing, for each second that drawing took.
    """

    def __init__(self, folders: Sequence[Path], draw: Callable[[Live], str], rest: float = REST) -> None:
        self._folders, self._draw, self._rest = folders, draw, rest
        self._script = Path(__file__).with_name("live.js").read_text("utf-8")
        self._drawn = Live(), ""
        self._again = 0.0

    @property
    def version(self) -> str:
        """What a page is compared with: that of the files, or the drawn page's own while it must rest."""
        drawn = self._drawn[0].version
        return drawn if drawn and time.monotonic() < self._again else version_of(self._folders)

    def html(self) -> str:
        """The page as of now; where it cannot be drawn, as a file is half written, that of before."""
        with _drawing:
            version = self.version
            if version != self._drawn[0].version:
                began = time.monotonic()
                live = Live(self._script, version)
                try:
                    self._drawn = live, self._draw(live)
                except Exception:
                    if not self._drawn[1]:
                        raise
                now = time.monotonic()
                self._again = now + self._rest * (now - began)
            return self._drawn[1]


def version_of(folders: Sequence[Path]) -> str:
    """Changes whenever a file of these folders does: of their names, sizes and times, and not of what they hold."""
    digest = hashlib.blake2b(digest_size=12)
    for folder in folders:
        for file, size, changed in sorted(_files(folder)):
            digest.update(f"{file}\0{size}\0{changed}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    for file in folder.glob("*"):
        if file.name in _PASSED_OVER or file.name.startswith("."):
            continue
        try:
            status = file.stat()
        except OSError:  # it went away since it was listed
            continue
        yield str(file), status.st_size, status.st_mtime_ns


class Server(ThreadingHTTPServer):
    """Serves pages on the loopback interface, and takes nothing.

    Args:
        pages: by path, ``/`` among them.
        port: 0 = any that is free.

    Attributes:
        last_asked: seconds on the monotonic clock of the last request; None before the first.
    """

    daemon_threads = True

    def __init__(self, pages: Mapping[str, LivePage], port: int = 0) -> None:
        self.pages = pages
        self.last_asked: float | None = None
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a reader that went away while it was answered."""

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    """GET of a page, and of its ``version``; anything else is refused."""

    server: Server
    server_version, sys_version = "klent", ""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.server.last_asked = time.monotonic()
        status, kind, text = self._found()
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _found(self) -> tuple[HTTPStatus, str, str]:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (
            f"{HOST}:{port}",
            f"localhost:{port}",
        ):  # a name of somebody else's
            return HTTPStatus.FORBIDDEN, "text/plain", "this page is served to its own address only"
        path = self.path.partition("?")[0]
        folder, _, name = path.rpartition("/")
        page = self.server.pages.get(f"{folder}/")
        if page is None or name not in ("", "version"):
            return HTTPStatus.NOT_FOUND, "text/plain", "there is no such page"
        if name == "version":
            return HTTPStatus.OK, "text/plain", page.version
        try:
            return HTTPStatus.OK, "text/html", page.html()
        except (
            Exception
        ) as error:  # a file half written, or a folder that went away: the next request tries again
            return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{type(error).__name__}: {error}"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
