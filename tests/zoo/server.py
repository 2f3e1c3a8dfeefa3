"""A local server that simulates interrupted, stalled and failed downloads."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """Files, behaviour and requests of the server."""

    files: dict[str, bytes]  # path → content
    ranges: bool = True  # whether it supports range requests
    etag: str | None = '"1"'  # of every file; None: neither ETag nor Last-Modified is sent
    statuses: list[int] = field(default_factory=list)  # error codes of the next answers
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers are cut off
    stalls: list[int] = field(default_factory=list)  # bytes after which the next answers hang until the end
    pause: float = 0.0  # seconds after each byte
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header or None)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def next(self, queue: list):
        return queue.pop(0) if queue else None


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            served.requests.append((self.path, wanted))
            status = served.next(served.statuses)
            if status is None and self.path not in served.files:
                status = 404
            if status is not None:
                self.send_error(status)
                return
            content, start = served.files[self.path], 0
            unchanged = self.headers.get("If-Range") in (None, served.etag)
            found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
            if found and served.ranges and unchanged:
                start = int(found[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if served.etag is not None:
                self.send_header("ETag", served.etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            cut, stall = served.next(served.cuts), served.next(served.stalls)
            stop = min(x for x in (cut, stall, len(content)) if x is not None)
            for first in range(start, start + stop, 1 if served.pause else len(content)):
                self.wfile.write(content[first : start + stop][: 1 if served.pause else None])
                self.wfile.flush()
                if served.closing.wait(served.pause):
                    return
            if stall is not None:
                served.closing.wait()
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # interrupted connections are expected
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
