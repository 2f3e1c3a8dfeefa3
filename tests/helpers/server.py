"""A local server that simulates interrupted and failed downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """Files, behaviour and requests of the server."""

    files: dict[str, bytes]  # path → content
    statuses: list[int | None] = field(default_factory=list)  # error codes of the next answers
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers are cut off
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header or None)
    url: str = ""


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            served.requests.append((self.path, self.headers.get("Range")))
            status = served.statuses.pop(0) if served.statuses else None
            if status or self.path not in served.files:
                self.send_error(status or 404)
                return
            content = served.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            cut = served.cuts.pop(0) if served.cuts else None
            self.wfile.write(content[:cut])
            self.close_connection = cut is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # interrupted connections are expected
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
