"""A real HTTP server on loopback with the faults of real ones, in a thread of the test."""

from __future__ import annotations

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

Plan = dict[str, list[str]]


class Server:
    """Serves a folder.

    Attributes:
        plans: For a file's name what its next answers are: ``cut`` (half of it, then the connection ends), ``wrong``
            (one bit flipped), ``stall`` (half of it, then nothing until :attr:`go_on` is set), a status, or ``ok``;
            after the last one all is well.
        asked: The names in the order in which they were asked for.
        stalled: Set when an answer stands still.
        go_on: Lets it end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.plans = folder, defaultdict(list)
        self.asked: list[str] = []
        self.stalled, self.go_on = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/some/shards"

    def close(self) -> None:
        """Stop; later calls are refused."""
        self.go_on.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Give one answer."""
        name = Path(urlsplit(handler.path).path).name
        self.asked.append(name)
        what = self.plans[name].pop(0) if self.plans[name] else "ok"
        path = self.folder / name
        if what.isdigit() or not path.is_file():
            handler.send_error(int(what) if what.isdigit() else 404)
            return
        content = bytearray(path.read_bytes())
        if what == "wrong":
            content[len(content) // 2] ^= 1
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2 if what in ("cut", "stall") else len(content)
        handler.wfile.write(content[:half])
        if what == "stall":
            handler.wfile.flush()
            self.stalled.set()
            self.go_on.wait(60)
        handler.close_connection = half < len(content)
