"""Running the program, and what must hold of every run."""

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

MOST_MEMORY = 2 << 30
# A run that asks for more than this is refused it, so that it ends and not the machine.
ADDRESS_SPACE = 16 << 30
# Of a line on the standard error stream; longer ones echo what a hostile file says.
LONGEST_LINE = 600
# Of a line on the standard output, which may hold lists of classes.
LONGEST_OUTPUT = 4000
CRASHES = ["panicked at", "internal error", "overflowed its stack", "memory allocation of", "AddressSanitizer", "RUST_BACKTRACE"]
# What the standard error stream may say beside the error.
REMARKS = re.compile(r"(skipped |the same file|warning|note|WARN|ERROR|\d+ of \d+ |.*: assumed |.* has (one|no) picture)", re.I)


class Result:
    """What became of a process: exit status (negative for a signal), output, seconds, and bytes of memory at most."""

    def __init__(self, code, out, err, seconds, memory, timed_out):
        self.code, self.out, self.err = code, out, err
        self.seconds, self.memory, self.timed_out = seconds, memory, timed_out

    @property
    def said(self):
        return self.out + b"\n" + self.err


def environment(folder):
    """The variables of a run: nothing of the user's, no network, and one thread, since several runs share the machine."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    ours = {
        "HOME": str(folder),
        "TINY_CATS_CACHE": os.path.join(folder, "cache"),
        "RAYON_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
    }
    # `cloud` asks for a program that can be sent to a GPU; none is sent.
    ours["TINY_CATS_BINARY"] = sys.executable
    return {**kept, **ours, "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}


def limited():
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start(command, folder, out, err):
    return subprocess.Popen(
        [str(c) for c in command], cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        start_new_session=True, preexec_fn=limited,
    )  # fmt: skip


def end(process):
    """Kills a process and those that it began."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reap(process):
    """Waits for a process. Exit status, and bytes of memory that it or one that it waited for had at most."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(command, folder, limit):
    """Runs a command in a folder, for at most so many seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = start(command, folder, out, err)
        late = threading.Event()

        def stop():
            late.set()
            end(process)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            code, memory = reap(process)
        except BaseException:
            end(process)
            raise
        finally:
            timer.cancel()
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(16 << 20))
        return Result(code, *texts, seconds, memory, late.is_set())


def unprintable(text):
    """The first character that changes how the line around it is shown: control characters, line separators, and writing directions."""
    direction = "\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return next((c for c in text if c not in "\n\t" and (unicodedata.category(c) == "Cc" or c in direction)), None)


def problems(result, names, chatty, finished, json=False):
    """What is wrong with a run, whatever it was given; one that is not `finished` must say why in one line with one of `names`."""
    found = []
    said = result.said.decode("utf-8", "replace")
    if result.timed_out:
        return [f"hang: not done after {result.seconds:.0f} s"]
    crash = next((text for text in CRASHES if text in said), None)
    if result.code < 0:
        found.append(f"crash: killed by {signal.Signals(-result.code).name}")
    elif result.code == 101 or crash:
        found.append(f"crash: exit code {result.code}, {crash or 'a panic'}")
    if result.memory > MOST_MEMORY:
        found.append(f"memory: {result.memory / 2**30:.1f} GiB")
    if found:
        return found
    # JSON is for programs, and has escapes of its own.
    output = [] if json else text_problems(result.out, LONGEST_OUTPUT, "output")
    return output + text_problems(result.err, LONGEST_LINE, "message") + ([] if finished else error_problems(result, names, chatty))


def text_problems(data, longest, what):
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return [f"{what}: not UTF-8"]
    found = []
    strange = unprintable(text)
    if strange is not None:
        found.append(f"{what}: contains the control character U+{ord(strange):04X}")
    line = max(text.split("\n"), key=len)
    if len(line.encode()) > longest:
        found.append(f"{what}: a line of {len(line.encode())} bytes")
    return found


def printed(result):
    return [line for line in result.err.decode("utf-8", "replace").split("\n") if line]


def errors(result):
    return [line for line in printed(result) if line.startswith(("error: ", "verify-checkpoint: "))]


def error_problems(result, names, chatty):
    """An error is one line, which names the file."""
    lines, told = printed(result), errors(result)
    if not told:
        # A verification's report is the answer, and not an error.
        if result.code == 0 or b"\n  format " in result.out:
            return []
        return [f"error: exit code {result.code} without a line that begins with `error: `"]
    found = []
    if len(told) > 1:
        found.append(f"error: {len(told)} lines that begin with `error: `")
    others = [line for line in lines if line not in told and not REMARKS.match(line)]
    if others and not chatty:
        found.append("error: more than one line: " + others[0][:200])
    if not any(name in line for name in names for line in (lines if chatty else told)):
        found.append("error: names no file: " + told[0][:200])
    return found
