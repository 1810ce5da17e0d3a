"""Starting the program, watching it, and sending signals to it and to the process that trains."""

import ctypes
import fcntl
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import termios
import time

# How often an event is looked for, in seconds.
PAUSE = 0.0003
# No run of the storm takes nearly so long, in seconds.
LIMIT = 120
# A signal is answered, or a process without its parent ends, within so many seconds.
ANSWER = 20
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """Makes this process the parent of training processes whose own parent was killed, so that their exit codes are known."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reset(ignored, before):
    """Gives a new process the default action for every signal but those that are to be ignored."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if before:
        before()


def send(process, number):
    """Sends a signal; that there is no such process any more is no error."""
    if process:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            pass


def state(process):
    """The state of a process, a letter; none where there is no such process."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def catches(process, number):
    """Whether a process has a handler for a signal."""
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    line = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def inside(folder):
    """The live processes that were started in a folder."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd") == str(folder) and state(name) not in ("Z", "X", None):
                found.append(int(name))
        except OSError:
            pass
    return found


def reap(process, limit):
    """Waits for an adopted process: its exit status, negative for a signal; none where it does not end in time or is not ours."""
    end = time.monotonic() + limit
    while True:
        try:
            pid, status = os.waitpid(process, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


class Started:
    """A program that was started. Its output goes to files, to pipes whose other ends may be closed, or to a terminal."""

    def __init__(self, command, folder, environment, output="files", ignored=(), before=None):
        self.output, self.signalled, self.terminal, self.pipes = output, None, None, []
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        streams, close = (subprocess.DEVNULL, self.out, self.err), []
        if output == "pipes":
            ends = [os.pipe(), os.pipe()]
            self.pipes, close = [ends[0][0], ends[1][0]], [ends[0][1], ends[1][1]]
            streams = (subprocess.DEVNULL, *close)
        elif output == "terminal":
            self.terminal, inner = os.openpty()
            streams, close = (inner, inner, inner), [inner]
            mine = before

            def before():
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
                if mine:
                    mine()

        for end in [*self.pipes, *([self.terminal] if self.terminal else [])]:
            os.set_blocking(end, False)
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env=environment, stdin=streams[0], stdout=streams[1], stderr=streams[2],
            start_new_session=True, preexec_fn=lambda: reset(ignored, before),
        )  # fmt: skip
        self.began = time.monotonic()
        for end in close:
            os.close(end)
        self.pid = self.process.pid

    def worker(self):
        """The process that trains, if there is one now."""
        try:
            children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def signal(self, number, target):
        """Sends a signal to the `program`, to the `worker`, to `all` processes, or to the program's `group`."""
        worker = self.worker() if target in ("worker", "all") else None
        self.signalled = (number, catches(self.pid, number)) if target != "worker" else None
        if target == "group":
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass
        elif target != "worker":
            send(self.pid, number)
        send(worker, number)
        return worker

    def drain(self):
        """Takes what the program wrote to pipes or a terminal, so that it never waits for a reader."""
        for end, file in zip([self.terminal, *self.pipes], [self.err, self.out, self.err]):
            try:
                file.write(os.read(end, 1 << 16) if end else b"")
            except OSError:
                pass

    def close(self):
        """Closes the other ends of the pipes, or the terminal."""
        for end in [*self.pipes, *([self.terminal] if self.terminal else [])]:
            os.close(end)
        self.pipes, self.terminal = [], None

    def ended(self):
        self.drain()
        return self.process.poll() is not None

    def until(self, happened, delay):
        """Waits until `happened` says so, and then for `delay` seconds; whether the program still ran then."""
        while not happened():
            if self.ended() or time.monotonic() - self.began > LIMIT:
                return False
            time.sleep(PAUSE)
        end = time.monotonic() + delay
        while time.monotonic() < end and not self.ended():
            time.sleep(min(PAUSE, max(0, end - time.monotonic())))
        return not self.ended()

    def end(self, limit=LIMIT):
        """Waits for the program: its exit status, negative for a signal; none where it does not end in time."""
        end = time.monotonic() + limit
        while not self.ended():
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        self.close()
        return self.process.returncode

    def said(self):
        """What it wrote to the standard output, and to the standard error stream or the terminal."""
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read())
        return texts
