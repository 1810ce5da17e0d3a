"""Runs the server, with damaged requests or damaged model files."""

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
    """A server process with its output in files."""

    def __init__(self, command, folder):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.start = time.monotonic()
        self.process = process.start(command, folder, self.out, self.err)
        self.ended = threading.Event()
        threading.Thread(target=self.wait, daemon=True).start()

    def wait(self):
        self.code, self.memory = process.reap(self.process)
        self.ended.set()

    def read(self, file):
        # pread, because a read would move the position at which the server writes.
        return os.pread(file.fileno(), 16 << 20, 0)

    def wait_until_ready(self, timeout):
        """Waits until the server is ready (True) or has exited (False); returns None after `timeout` seconds."""
        while time.monotonic() - self.start < timeout:
            if self.ended.wait(0.01):
                return False
            if b"ready after" in self.read(self.err):
                self.port = int(LISTENING.search(self.read(self.out))[1])
                return True
        return None

    def request(self, method, path, body=None, content_type=None, timeout=150):
        """Sends a request; returns the status and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self, timeout, signum=signal.SIGTERM):
        """Stops the server and returns its result."""
        timed_out = False
        if not self.ended.is_set():
            self.process.send_signal(signum)
            if not self.ended.wait(timeout):
                timed_out = True
                process.end(self.process)
                self.ended.wait()
        return process.Result(self.code, self.read(self.out), self.read(self.err), time.monotonic() - self.start, self.memory, timed_out)


def start_and_stop(command, folder, timeout):
    """Starts a server and stops it when it is ready; its list of models is part of the output."""
    server = Server(command, folder)
    ready = server.wait_until_ready(timeout)
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


def find_problems(status, body, max_bytes):
    """Returns the problems of a response to a damaged request."""
    if status >= 500:
        return [f"server: status {status}: {body[:200]!r}"]
    if status < 400:
        return []
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return [f"server: status {status} without problem details: {body[:200]!r}"]
    problems = []
    character = process.find_unprintable(detail)
    if character is not None or "\n" in detail:
        problems.append(f"server: the detail contains the control character U+{ord(character or chr(10)):04X}")
    if len(detail.encode()) > max_bytes:
        problems.append(f"server: a detail of {len(detail.encode())} bytes")
    return problems


def multipart(name, data):
    boundary = b"----fuzz7MA4YWxkTrZu0gW"
    head = b'Content-Disposition: form-data; name="image"; filename="%s"\r\n\r\n' % name.encode()
    body = b"--" + boundary + b"\r\n" + head + data + b"\r\n--" + boundary + b"--\r\n"
    return body, "multipart/form-data; boundary=" + boundary.decode()
