"""An HTTP server on loopback that can fail as real servers do, in a thread of the test."""

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
        plans: The next responses by file name: ``cut`` (half of it, then the connection ends), ``wrong`` (one bit
            flipped), ``stall`` (half of it, then nothing until :attr:`resumed` is set), a status, or ``ok``; after the
            last one all is well.
        requested: The requested names, in order.
        stalled: Set when a response stalls.
        resumed: Lets a stalled response end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.plans = folder, defaultdict(list)
        self.requested: list[str] = []
        self.stalled, self.resumed = threading.Event(), threading.Event()
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
        """The URL of the folder."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/some/shards"

    def close(self) -> None:
        """Stop; later connections are refused."""
        self.resumed.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Send one response."""
        name = Path(urlsplit(handler.path).path).name
        self.requested.append(name)
        plan = self.plans[name].pop(0) if self.plans[name] else "ok"
        path = self.folder / name
        if plan.isdigit() or not path.is_file():
            handler.send_error(int(plan) if plan.isdigit() else 404)
            return
        content = bytearray(path.read_bytes())
        if plan == "wrong":
            content[len(content) // 2] ^= 1
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2 if plan in ("cut", "stall") else len(content)
        handler.wfile.write(content[:half])
        if plan == "stall":
            handler.wfile.flush()
            self.stalled.set()
            self.resumed.wait(60)
        handler.close_connection = half < len(content)
