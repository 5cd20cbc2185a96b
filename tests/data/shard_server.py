"""An HTTP server on loopback that can fail as real servers do, in a thread of the test."""

from __future__ import annotations

import contextlib
import gzip
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
            flipped), ``stall`` (half of it, then nothing until :attr:`resumed` is set), ``endless`` (zeros until the
            client leaves), ``bomb`` (64 MiB of zeros as a compressed transfer), a status, an address to redirect to, or
            ``ok``; after the last one all is well.
        sent: Bytes of zeros sent by ``endless``.
        requested: The requested names, in order.
        stalled: Set when a response stalls.
        resumed: Lets a stalled response end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.plans = folder, defaultdict(list)
        self.requested: list[str] = []
        self.sent = 0
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
        if "://" in plan:
            handler.send_response(302)
            handler.send_header("Location", plan)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if plan in ("endless", "bomb"):
            self._send_too_much(handler, plan)
            return
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

    def _send_too_much(self, handler: BaseHTTPRequestHandler, plan: str) -> None:
        handler.close_connection = True
        handler.send_response(200)
        if plan == "bomb":
            content = gzip.compress(bytes(64 << 20))
            handler.send_header("Content-Encoding", "gzip")
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            with contextlib.suppress(ConnectionError):
                handler.wfile.write(content)
            return
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            while not self.resumed.is_set():
                handler.wfile.write(bytes(1 << 16))
                self.sent += 1 << 16
