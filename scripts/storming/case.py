"""A case: starts a run, disturbs and restarts it until it is finished, and checks the result."""

import json
import os
import signal
import time

from fuzzing.process import CRASHES, MAX_MESSAGE_LINE, MAX_OUTPUT_LINE, text_problems

from .process import LIMIT, RESPONSE_LIMIT, RunningProgram, find_in, reap, send
from .runs import ID, MAX_STATES, RUNS, SHARED, Folder, digest

EXIT_STOPPED, EXIT_TRANSIENT = 75, 74
# The signals that stop a run.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# The ways to select a run: `--run-id`, `--resume auto`, or `--resume` with its folder once it exists.
MODES = ["id", "auto", "path"]


class Skipped(Exception):
    """The reason why a kind cannot run on this machine."""


class CaseFailed(Exception):
    """A failure after which a case cannot continue."""


class Case:
    def __init__(self, storm, number, kind, folder, task, mode, random):
        self.storm, self.number, self.kind, self.task, self.mode, self.random = storm, number, kind, task, mode, random
        self.folder = Folder(folder, task)
        self.reference = storm.references[task.name]
        self.history, self.problems, self.orphans, self.start_time = [], [], [], time.monotonic()
        # Counts disturbances, to detect cases in which all of them came too late.
        self.disturbed = self.starts = 0
        # True if the run must match the reference exactly, and if all calls have the same flags.
        self.exact, self.is_same_call = True, True
        # Files that the case made, and the number of training states that it damaged.
        self.own_files, self.damaged = [], 0
        self.environment, self.metrics = storm.environment(folder), {}

    def log(self, text):
        self.history.append(f"{time.monotonic() - self.start_time:7.3f} s  {text}")

    def add_problem(self, text):
        self.log(f"PROBLEM: {text}")
        self.problems.append(text)

    def rounds(self, max_rounds=3):
        """Yields a random number of times until the run is finished."""
        for _ in range(self.random.randint(1, max_rounds)):
            if not self.is_finished():
                yield

    def is_finished(self):
        return self.folder.is_finished() and all((self.folder.output / name).is_file() for name in self.task.outputs[:2])

    def start(self, more=(), mode=None, **options):
        """Starts the command that starts or resumes the run."""
        mode, recorded = mode or self.mode, self.folder.recorded_runs()
        selection = {"id": ["--run-id", ID], "auto": ["--resume", "auto"], "path": []}[mode]
        if mode == "path" and recorded:
            selection = ["--resume", f"{RUNS}/{self.folder.run().name}"]
        paths = [folder / "metrics.jsonl" for folder in self.folder.runs()]
        # The inodes of earlier logs: a resumed process writes a new file.
        self.metrics = {path: path.stat().st_ino for path in paths if path.exists()}
        command = [self.storm.program, "train", *self.task.arguments, *SHARED, *selection, *more]
        run = RunningProgram(command, self.folder.path, self.environment, **options)
        self.starts += 1
        self.log(f"start {self.starts}: {' '.join([*selection, *more])}")
        return run

    def wait_for_moment(self, run, only=None):
        """Waits for a random moment; True if the program is still running. The random numbers do not depend on its progress."""
        share, delay_share, choice = self.random.random(), self.random.random(), self.random.random()
        names = only or ["start", "worker", "record", "step", "step", "state", "writing", "writing", "released", "finished", "output", "finished_message"]
        name = names[int(choice * len(names))]
        condition, text = getattr(self, f"at_{name}")(run, share)
        max_delays = {"start": 0.05, "worker": 0.1, "released": 0.05, "finished": 0.02, "output": 0.02, "finished_message": 0.02}
        delay = delay_share**2 * max_delays.get(name, 1.2 * self.storm.step_seconds[self.task.name])
        is_running = run.wait_until(condition, delay)
        self.log(f"{text} + {1000 * delay:.1f} ms{'' if is_running else ': too late, the program has exited'}")
        return is_running

    def at_start(self, run, share):
        return lambda: True, "start"

    def at_worker(self, run, share):
        return lambda: run.worker() is not None, "the training process exists"

    def at_record(self, run, share):
        root = self.folder.path / RUNS
        return lambda: any(root.glob("*/run.json")), "run.json exists"

    def at_step(self, run, share):
        """The program logs a step after the newest training state."""
        newest = self.folder.newest() + 1
        step = min(newest + int(share * (self.task.steps - newest + 1)), self.task.steps)
        before = self.metrics

        def happened():
            for path in (self.folder.path / RUNS).glob("*/metrics.jsonl"):
                try:
                    if not path.parent.is_symlink() and before.get(path) != path.stat().st_ino and f'"step":{step},'.encode() in path.read_bytes():
                        return True
                except OSError:
                    pass
            return False

        return happened, f"step {step} is logged"

    def at_state(self, run, share):
        newest, interval = self.folder.newest(), self.task.save_interval
        saves = range((newest // interval + 1) * interval, self.task.steps + 1, interval) or [self.task.steps]
        name = f"{self.task.name}_step_{saves[int(share * len(saves))]:08}.safetensors"
        root = self.folder.path / RUNS
        return lambda: any(root.glob(f"*/{name}")), f"{name} exists"

    def at_writing(self, run, share):
        """The program writes its nth temporary file."""
        root, number, seen = self.folder.path, 1 + int(share * 12), set()

        def happened():
            for folder in (*(root / RUNS).glob("*/"), self.folder.output):
                try:
                    seen.update(name for name in os.listdir(folder) if name.startswith(".writing-"))
                except OSError:
                    pass
            return len(seen) >= number

        return happened, f"temporary file {number} exists"

    def at_released(self, run, share):
        root = self.folder.path / RUNS
        return lambda: any(root.glob(f"*/{self.task.released}.pt")), "the run's folder contains a released file"

    def at_finished(self, run, share):
        return self.folder.is_finished, "run.json has the status finished"

    def at_output(self, run, share):
        return lambda: self.folder.output.is_dir() and bool(os.listdir(self.folder.output)), "the output contains a file"

    def at_finished_message(self, run, share):
        return lambda: os.fstat(run.out.fileno()).st_size > 0 and b"finished: " in run.read_output()[0], "the program reports that it is finished"

    def signal(self, run, number, target="program"):
        """Sends a signal; returns the training process at that time."""
        worker = run.signal(number, target) or run.worker()
        self.disturbed += 1
        self.log(f"{signal.Signals(number).name} to {target}")
        return worker

    def stop(self, run, numbers=STOP_SIGNALS, targets=("program",)):
        self.signal(run, self.random.choice(numbers), self.random.choice(targets))
        self.stop_time = time.monotonic()

    def orphan(self, worker):
        """Records a training process whose parent was killed."""
        if worker:
            self.orphans.append(worker)

    def wait(self, run, codes, limit=LIMIT, errors=None):
        """Waits for the program and returns its exit code.

        The code must be one of `codes`, or 0 if the run is finished. `errors` are the accepted numbers of error lines; the default depends on
        the code.
        """
        code = run.wait(limit)
        out, err = run.read_output()
        text = err.decode("utf-8", "replace")
        self.log(f"exit code {code}" + "".join(f"\n           | {line}" for line in text.splitlines()[-12:]))
        if code is None:
            self.add_problem(f"start {self.starts}: still running after {limit} s")
            raise CaseFailed
        codes = set(codes)
        if code < 0 and run.signalled == (-code, False):
            # The signal arrived before the handler was installed.
            codes.add(code)
        if code == 0 and 0 not in codes and not self.folder.is_finished():
            self.add_problem(f"start {self.starts}: exit code 0, but the run is not finished")
        elif code != 0 and code not in codes:
            self.add_problem(f"start {self.starts}: exit code {code}, expected {' or '.join(map(str, sorted(codes | {0})))}: {last_line(text)}")
        if run.output == "files":
            self.problems += text_problems(out, MAX_OUTPUT_LINE, "output") + text_problems(err, MAX_MESSAGE_LINE, "message")
        crash = next((crash for crash in CRASHES if crash in text), None)
        if crash:
            self.add_problem(f"start {self.starts}: {crash}: {last_line(text)}")
        messages = [line for line in text.splitlines() if line.startswith("error: ")]
        expected = errors if errors is not None else {1: [1], EXIT_TRANSIENT: range(0, 8)}.get(code, [0])
        if len(messages) not in expected:
            self.add_problem(f"start {self.starts}: {len(messages)} errors with exit code {code}: {' / '.join(messages)[:300]}")
        if code in (1, EXIT_TRANSIENT) and not text.strip():
            self.add_problem(f"start {self.starts}: exit code {code} without a message")
        if code == EXIT_STOPPED and "stopped" not in text and errors is None:
            self.add_problem(f"start {self.starts}: exit code {EXIT_STOPPED} without a message that the run was stopped: {last_line(text)}")
        return code

    def wait_for_orphan(self, worker):
        """Waits until a training process exits after its parent was killed; returns its exit code."""
        code = reap(worker, RESPONSE_LIMIT)
        self.log(f"orphaned training process: exit code {code}")
        if code is None and os.path.exists(f"/proc/{worker}/stat"):
            self.add_problem(f"a training process whose parent was killed is still running after {RESPONSE_LIMIT} s")
            send(worker, signal.SIGKILL)
        return code

    def wait_for_orphans(self):
        for worker in self.orphans:
            self.wait_for_orphan(worker)
        self.orphans = []

    def power_off(self, run):
        """Kills all processes at the same time."""
        worker = run.worker()
        send(worker, signal.SIGSTOP)
        send(run.pid, signal.SIGKILL)
        send(worker, signal.SIGKILL)
        self.disturbed += 1
        self.log("SIGKILL to all")
        self.wait(run, [-signal.SIGKILL])
        if worker:
            reap(worker, RESPONSE_LIMIT)

    def finish(self):
        """Resumes the run without disturbance until it is finished, and checks the result."""
        self.wait(self.start(), [0])
        self.wait_for_orphans()
        alive = find_in(self.folder.path)
        if alive:
            self.add_problem(f"{len(alive)} processes of the run remain")
        for path in self.own_files:
            path.unlink(missing_ok=True)
        for text in self.reference.differences(self.folder, self.exact, self.is_same_call):
            self.add_problem(text)
        states = self.folder.states(next(iter(run for run in self.folder.runs() if self.folder.is_finished(run)), None))
        if len(states) > MAX_STATES + self.damaged:
            self.add_problem(f"{len(states)} training states remain, expected at most {MAX_STATES}")
        self.check_list()
        stray_runs = [run for run in self.folder.runs() if not self.folder.is_finished(run)]
        for run in stray_runs:
            # Before it has a configuration, a run cannot be resumed, and the command starts another one.
            if self.mode == "id" or self.folder.states(run):
                self.add_problem(f"another run was started: {run.name}")
        self.storm.stray_runs += len(stray_runs)
        if self.random.random() < 0.3 and not self.problems:
            self.call_again()

    def check_list(self):
        runs = self.storm.call(self.folder.path, self.environment, "runs", "--json")
        if runs.returncode:
            self.add_problem(f"`runs` exited with {runs.returncode}: {last_line(runs.stderr.decode('utf-8', 'replace'))}")
            return
        finished = [run for run in json.loads(runs.stdout) if run["status"] == "finished"]
        if len(finished) != 1 or (self.exact and finished[0]["loss"]["value"] != [m["loss"] for m in self.reference.metrics if "loss" in m][-1]):
            self.add_problem(f"`runs` does not list one finished run with the loss of the last step: {[run['status'] for run in finished]}")

    def call_again(self):
        """Calls the same command again, which must not change the output."""
        names = [path for path in self.folder.output.iterdir() if path.is_file()]
        before = {path: digest(path) for path in names}
        mode = self.mode if self.mode != "path" else "auto"
        self.wait(self.start(mode=mode), [0])
        after = {path: digest(path) for path in self.folder.output.iterdir() if path.is_file()}
        if before != after:
            self.add_problem("the same command after the end changed the released files")


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
