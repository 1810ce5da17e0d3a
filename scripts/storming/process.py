"""Starts and watches the program, and sends signals to it and to its training process."""

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

# The interval between checks for an event, in seconds.
POLL_INTERVAL = 0.0003
# The time limit of a run, in seconds; runs are much shorter.
LIMIT = 120
# The time limit for the response to a signal, or for the exit of an orphaned process, in seconds.
RESPONSE_LIMIT = 20
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """Makes this process the parent of orphaned training processes, to get their exit codes."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reset_signals(ignored, before):
    """Sets the default action of all signals in a new process, and ignores those in `ignored`."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if before:
        before()


def send(process, number):
    """Sends a signal; ignores a process that has exited."""
    if process:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            pass


def state(process):
    """Returns the letter of a process's state, or None if it does not exist."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def has_handler(process, number):
    """True if a process has a handler for a signal."""
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    line = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def find_in(folder):
    """Returns the running processes whose working directory is `folder`."""
    processes = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd") == str(folder) and state(name) not in ("Z", "X", None):
                processes.append(int(name))
        except OSError:
            pass
    return processes


def reap(process, limit):
    """Waits for an adopted process; returns its exit code, negative for a signal, or None after `limit` seconds or if it is not a child."""
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


class RunningProgram:
    """A running program. Its output goes to files, to pipes that can be closed, or to a terminal."""

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
            inherited = before

            def before():
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
                if inherited:
                    inherited()

        for end in [*self.pipes, *([self.terminal] if self.terminal else [])]:
            os.set_blocking(end, False)
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env=environment, stdin=streams[0], stdout=streams[1], stderr=streams[2],
            start_new_session=True, preexec_fn=lambda: reset_signals(ignored, before),
        )  # fmt: skip
        self.start_time = time.monotonic()
        for end in close:
            os.close(end)
        self.pid = self.process.pid

    def worker(self):
        """Returns the training process, or None."""
        try:
            children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def signal(self, number, target):
        """Sends a signal to the `program`, to the `worker`, to `all` processes, or to the program's `group`."""
        worker = self.worker() if target in ("worker", "all") else None
        self.signalled = (number, has_handler(self.pid, number)) if target != "worker" else None
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
        """Reads the output from pipes or a terminal, so that the program never blocks."""
        for end, file in zip([self.terminal, *self.pipes], [self.err, self.out, self.err]):
            try:
                file.write(os.read(end, 1 << 16) if end else b"")
            except OSError:
                pass

    def close(self):
        """Closes the read ends of the pipes, or the terminal."""
        for end in [*self.pipes, *([self.terminal] if self.terminal else [])]:
            os.close(end)
        self.pipes, self.terminal = [], None

    def has_exited(self):
        self.drain()
        return self.process.poll() is not None

    def wait_until(self, condition, delay):
        """Waits until `condition` returns True, and `delay` seconds more; True if the program is still running."""
        while not condition():
            if self.has_exited() or time.monotonic() - self.start_time > LIMIT:
                return False
            time.sleep(POLL_INTERVAL)
        end = time.monotonic() + delay
        while time.monotonic() < end and not self.has_exited():
            time.sleep(min(POLL_INTERVAL, max(0, end - time.monotonic())))
        return not self.has_exited()

    def wait(self, limit=LIMIT):
        """Waits for the program; returns its exit code, negative for a signal, or None after `limit` seconds."""
        end = time.monotonic() + limit
        while not self.has_exited():
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        self.close()
        return self.process.returncode

    def read_output(self):
        """Returns the output on stdout, and on stderr or the terminal."""
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read())
        return texts
