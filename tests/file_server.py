# mypy: ignore-errors
"""A server that gives one file, well or badly, as it is told."""

import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat

import numpy as np

CONTENT = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
SIZE = len(CONTENT)
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each request by the next behaviour of its script; the last one stays."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.closing = threading.Event()

    def behave(self, *names):
        self.asked.clear()
        self.script = chain(names, repeat(names[-1]))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        behaviour = next(self.server.script)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.asked.append(start)
        getattr(self, behaviour)(start)

    def answer(self, body, status=200, send=None, **headers):
        self.send_response(status)
        headers = {"Content_Length": len(body), "Content_Type": "application/zip", **headers}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body[:send])

    def part(self, start, body=CONTENT, send=None, told=None):
        told = start if told is None else told
        extent = f"bytes {told}-{len(body) - 1}/{len(body)}"
        self.answer(body[start:], 206, send, Content_Range=extent)

    def good(self, start):
        self.part(start) if start else self.answer(CONTENT)

    def breaks(self, start):
        if start:
            self.part(start, send=60_000)
        else:
            self.answer(CONTENT, send=60_000)

    def silent(self, start):
        self.close_connection = True

    def no_range(self, start):
        self.answer(CONTENT)

    def elsewhere(self, start):
        self.part(start, told=start + 7)

    def beyond(self, start):
        self.answer(b"", 416) if start else self.good(start)

    def lies(self, start):
        body = bytes(len(CONTENT))
        self.part(start, body) if start else self.answer(body)

    def longer(self, start):
        self.answer(CONTENT + b"more")

    def endless(self, start):
        self.answer(CONTENT + b"more", Content_Length=None)

    def page(self, start):
        self.answer(b"<html>log in</html>", Content_Type="text/html; charset=utf-8")

    def disguised(self, start):
        self.answer(b"\n<!DOCTYPE html>" + CONTENT, Content_Length=len(CONTENT))

    def empty(self, start):
        self.answer(b"", Content_Length=None)

    def drips(self, start):
        """A byte now and then, for ever, each in time."""
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        self.end_headers()
        with suppress(OSError):
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()

    def dripping_head(self, start):
        with suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()

    def to_a_file(self, start):
        self.answer(b"", 302, Location="file:///etc/passwd")

    def to_ftp(self, start):
        self.answer(b"", 302, Location="ftp://127.0.0.1/file.bin")

    def error_404(self, start):
        self.answer(b"no", 404)

    def error_403(self, start):
        self.answer(b"no", 403)

    def error_500(self, start):
        self.answer(b"no", 500)

    def log_message(self, *arguments):
        pass
