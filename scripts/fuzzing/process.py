"""Runs the program, and checks every run."""

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata

MAX_MEMORY = 2 << 30
# The limit of the address space, so that a run cannot exhaust the memory of the machine.
ADDRESS_SPACE = 16 << 30
# The maximum length of a line on stderr; a longer one may repeat the contents of a hostile file.
MAX_MESSAGE_LINE = 600
# The maximum length of a line on stdout, which may contain lists of classes.
MAX_OUTPUT_LINE = 4000
CRASHES = ["panicked at", "internal error", "overflowed its stack", "memory allocation of", "AddressSanitizer", "RUST_BACKTRACE"]
# Lines that stderr may contain besides the error.
ALLOWED_LINES = re.compile(r"(skipped |the same file|warning|note|WARN|ERROR|\d+ of \d+ |.*: assumed |.* has (only one|no) (\w+ )?image)", re.I)


class Result:
    """The result of a process: exit code (negative for a signal), output, seconds, and peak memory in bytes."""

    def __init__(self, code, out, err, seconds, memory, timed_out):
        self.code, self.out, self.err = code, out, err
        self.seconds, self.memory, self.timed_out = seconds, memory, timed_out

    @property
    def output(self):
        return self.out + b"\n" + self.err


def environment(folder):
    """The environment of a run: no user settings, no network, and one thread, because several runs share the machine."""
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    own = {
        "HOME": str(folder),
        "TINY_CATS_CACHE": os.path.join(folder, "cache"),
        "RAYON_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
    }
    # `cloud` requires a program for the container image, which is not used here.
    own["TINY_CATS_BINARY"] = sys.executable
    return {**inherited, **own, "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}


def set_limits():
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start(command, folder, out, err):
    return subprocess.Popen(
        [str(c) for c in command], cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        start_new_session=True, preexec_fn=set_limits,
    )  # fmt: skip


def kill_group(process):
    """Kills a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reap(process):
    """Waits for a process; returns its exit code and the peak memory of it and its children in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(command, folder, timeout):
    """Runs a command in a folder with a timeout in seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start_time = time.monotonic()
        process = start(command, folder, out, err)
        timed_out = threading.Event()

        def stop():
            timed_out.set()
            kill_group(process)

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            code, memory = reap(process)
        except BaseException:
            kill_group(process)
            raise
        finally:
            timer.cancel()
        seconds = time.monotonic() - start_time
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(16 << 20))
        return Result(code, *texts, seconds, memory, timed_out.is_set())


def find_unprintable(text):
    """Returns the first control character, line separator or bidirectional formatting character, or None."""
    special = "\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return next((c for c in text if c not in "\n\t" and (unicodedata.category(c) == "Cc" or c in special)), None)


def find_problems(result, names, is_verbose, is_complete, json=False):
    """Returns the problems of a run. An incomplete run must report an error in one line with one of `names`."""
    problems = []
    output = result.output.decode("utf-8", "replace")
    if result.timed_out:
        return [f"hang: still running after {result.seconds:.0f} s"]
    crash = next((text for text in CRASHES if text in output), None)
    if result.code < 0:
        problems.append(f"crash: killed by {signal.Signals(-result.code).name}")
    elif result.code == 101 or crash:
        problems.append(f"crash: exit code {result.code}, {crash or 'a panic'}")
    if result.memory > MAX_MEMORY:
        problems.append(f"memory: {result.memory / 2**30:.1f} GiB")
    if problems:
        return problems
    # JSON escapes special characters.
    stdout_problems = [] if json else text_problems(result.out, MAX_OUTPUT_LINE, "output")
    return stdout_problems + text_problems(result.err, MAX_MESSAGE_LINE, "message") + ([] if is_complete else error_problems(result, names, is_verbose))


def text_problems(data, max_line, name):
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return [f"{name}: not UTF-8"]
    found = []
    character = find_unprintable(text)
    if character is not None:
        found.append(f"{name}: contains the control character U+{ord(character):04X}")
    line = max(text.split("\n"), key=len)
    if len(line.encode()) > max_line:
        found.append(f"{name}: a line of {len(line.encode())} bytes")
    return found


def error_lines(result):
    return [line for line in result.err.decode("utf-8", "replace").split("\n") if line]


def errors(result):
    return [line for line in error_lines(result) if line.startswith(("error: ", "verify-checkpoint: "))]


def error_problems(result, names, is_verbose):
    """Checks that an error is one line that names the file."""
    lines, messages = error_lines(result), errors(result)
    if not messages:
        # The report of a verification is a result, not an error.
        if result.code == 0 or b"\n  format " in result.out:
            return []
        return [f"error: exit code {result.code} without a line that starts with `error: `"]
    found = []
    if len(messages) > 1:
        found.append(f"error: {len(messages)} lines that start with `error: `")
    others = [line for line in lines if line not in messages and not ALLOWED_LINES.match(line)]
    if others and not is_verbose:
        found.append("error: more than one line: " + others[0][:200])
    if not any(name in line for name in names for line in (lines if is_verbose else messages)):
        found.append("error: does not name the file: " + messages[0][:200])
    return found
