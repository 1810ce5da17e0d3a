"""A server that gets damaged requests, and starting one with damaged files."""

import http.client
import json
import os
import re
import signal
import tempfile
import threading
import time

from . import process

LIMITS = ["--max-count", "4", "--max-steps", "8", "--queue", "64", "--timeout", "120"]
TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "json": "application/json"}
LISTENING = re.compile(rb"listening at http://127\.0\.0\.1:(\d+)/")


class Server:
    """A process that serves, with its output in files."""

    def __init__(self, command, folder):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.began = time.monotonic()
        self.process = process.start(command, folder, self.out, self.err)
        self.ended = threading.Event()
        threading.Thread(target=self.wait, daemon=True).start()

    def wait(self):
        self.code, self.memory = process.reap(self.process)
        self.ended.set()

    def said(self, file):
        # The server writes at the position that reading would move.
        return os.pread(file.fileno(), 16 << 20, 0)

    def ready(self, limit):
        """Waits until it can serve or has ended. Whether it can; `None` when it is too late."""
        while time.monotonic() - self.began < limit:
            if self.ended.wait(0.01):
                return False
            if b"ready after" in self.said(self.err):
                self.port = int(LISTENING.search(self.said(self.out))[1])
                return True
        return None

    def request(self, method, path, body=None, kind=None, limit=150):
        """Status and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stop(self, limit, sent=signal.SIGTERM):
        """What became of it."""
        late = False
        if not self.ended.is_set():
            self.process.send_signal(sent)
            if not self.ended.wait(limit):
                late = True
                process.end(self.process)
                self.ended.wait()
        return process.Result(self.code, self.said(self.out), self.said(self.err), time.monotonic() - self.began, self.memory, late)


def start_and_stop(command, folder, limit):
    """Starts a server, and stops it when it can serve; what it then says of its models is part of the output."""
    server = Server(command, folder)
    ready = server.ready(limit)
    models = b""
    if ready:
        try:
            models = server.request("GET", "/v1/models")[1]
        except OSError as error:
            models = str(error).encode()
    result = server.stop(60 if ready is not None else 0)
    result.out += models
    result.timed_out = ready is None or result.timed_out
    return result


def problems(status, body, limit):
    """What is wrong with an answer to a damaged request."""
    if status >= 500:
        return [f"server: status {status}: {body[:200]!r}"]
    if status < 400:
        return []
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return [f"server: status {status} without problem details: {body[:200]!r}"]
    found = []
    strange = process.unprintable(detail)
    if strange is not None or "\n" in detail:
        found.append(f"server: the detail has the control character U+{ord(strange or chr(10)):04X}")
    if len(detail.encode()) > limit:
        found.append(f"server: a detail of {len(detail.encode())} bytes")
    return found


def multipart(name, data):
    boundary = b"----fuzz7MA4YWxkTrZu0gW"
    head = b'Content-Disposition: form-data; name="image"; filename="%s"\r\n\r\n' % name.encode()
    body = b"--" + boundary + b"\r\n" + head + data + b"\r\n--" + boundary + b"--\r\n"
    return body, "multipart/form-data; boundary=" + boundary.decode()
