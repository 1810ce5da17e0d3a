"""One case: a run that is begun, disturbed and begun again until it has finished, and what must then hold."""

import json
import os
import signal
import time

from fuzzing.process import CRASHES, LONGEST_LINE, LONGEST_OUTPUT, text_problems

from .process import ANSWER, LIMIT, Started, inside, reap, send
from .runs import ID, MOST_STATES, RUNS, SHARED, Folder, digest

STOPPED, TRANSIENT = 75, 74
# What asks a run to stop.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# How a run is named: by `--run-id`, by `--resume auto`, or by its folder once it has one.
MODES = ["id", "auto", "path"]


class Skipped(Exception):
    """A kind that cannot be tried on this machine, and why."""


class Failed(Exception):
    """A case that cannot go on, and why."""


class Case:
    def __init__(self, storm, number, kind, folder, task, mode, random):
        self.storm, self.number, self.kind, self.task, self.mode, self.random = storm, number, kind, task, mode, random
        self.folder = Folder(folder, task)
        self.reference = storm.references[task.name]
        self.history, self.problems, self.orphans, self.began = [], [], [], time.monotonic()
        # What is done to the case, so that it is seen when none of it was in time.
        self.disturbed = self.starts = 0
        # Whether the run ends in the reference's bytes, and whether all calls have the same flags.
        self.exact, self.is_same_call = True, True
        # Files that the case itself made, and training states that it damaged.
        self.planted, self.damaged = [], 0
        self.environment, self.metrics = storm.environment(folder), {}

    def note(self, text):
        self.history.append(f"{time.monotonic() - self.began:7.3f} s  {text}")

    def problem(self, text):
        self.note(f"WRONG: {text}")
        self.problems.append(text)

    def rounds(self, most=3):
        """As often as the case says, unless the run has finished before."""
        for _ in range(self.random.randint(1, most)):
            if not self.finished():
                yield

    def finished(self):
        return self.folder.is_finished() and all((self.folder.output / name).is_file() for name in self.task.outputs[:2])

    def begin(self, more=(), mode=None, **options):
        """Starts the command that starts or resumes the run."""
        mode, recorded = mode or self.mode, self.folder.recorded()
        named = {"id": ["--run-id", ID], "auto": ["--resume", "auto"], "path": []}[mode]
        if mode == "path" and recorded:
            named = ["--resume", f"{RUNS}/{self.folder.run().name}"]
        paths = [folder / "metrics.jsonl" for folder in self.folder.runs()]
        # What was logged before: a process that goes on writes the file anew.
        self.metrics = {path: path.stat().st_ino for path in paths if path.exists()}
        command = [self.storm.program, "train", *self.task.arguments, *SHARED, *named, *more]
        run = Started(command, self.folder.path, self.environment, **options)
        self.starts += 1
        self.note(f"start {self.starts}: {' '.join([*named, *more])}")
        return run

    def moment(self, run, only=None):
        """Waits for a moment that the seed chooses; whether the program still ran then. The numbers drawn do not depend on how far it is."""
        share, late, which = self.random.random(), self.random.random(), self.random.random()
        names = only or ["start", "worker", "record", "step", "step", "state", "writing", "writing", "released", "finished", "output", "said"]
        name = names[int(which * len(names))]
        happened, text = getattr(self, f"at_{name}")(run, share)
        short = {"start": 0.05, "worker": 0.1, "released": 0.05, "finished": 0.02, "output": 0.02, "said": 0.02}
        delay = late**2 * short.get(name, 1.2 * self.storm.step_seconds[self.task.name])
        there = run.until(happened, delay)
        self.note(f"{text} + {1000 * delay:.1f} ms{'' if there else ': too late, the program has ended'}")
        return there

    def at_start(self, run, share):
        return lambda: True, "start"

    def at_worker(self, run, share):
        return lambda: run.worker() is not None, "the training process is there"

    def at_record(self, run, share):
        root = self.folder.path / RUNS
        return lambda: any(root.glob("*/run.json")), "run.json is there"

    def at_step(self, run, share):
        """A later step than those of any state is logged since the program was started."""
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
        newest, every = self.folder.newest(), self.task.every
        saves = range((newest // every + 1) * every, self.task.steps + 1, every) or [self.task.steps]
        name = f"{self.task.name}_step_{saves[int(share * len(saves))]:08}.safetensors"
        root = self.folder.path / RUNS
        return lambda: any(root.glob(f"*/{name}")), f"{name} is there"

    def at_writing(self, run, share):
        """A temporary file is there, which may be the first or a later one."""
        place, number, seen = self.folder.path, 1 + int(share * 12), set()

        def happened():
            for folder in (*(place / RUNS).glob("*/"), self.folder.output):
                try:
                    seen.update(name for name in os.listdir(folder) if name.startswith(".writing-"))
                except OSError:
                    pass
            return len(seen) >= number

        return happened, f"temporary file {number} is there"

    def at_released(self, run, share):
        root = self.folder.path / RUNS
        return lambda: any(root.glob(f"*/{self.task.released}.pt")), "the run's folder has a released file"

    def at_finished(self, run, share):
        return self.folder.is_finished, "run.json says finished"

    def at_output(self, run, share):
        return lambda: self.folder.output.is_dir() and bool(os.listdir(self.folder.output)), "the output has a file"

    def at_said(self, run, share):
        return lambda: os.fstat(run.out.fileno()).st_size > 0 and b"finished: " in run.said()[0], "it says that it has finished"

    def signal(self, run, number, target="program"):
        """Sends a signal; the training process that was there then."""
        worker = run.signal(number, target) or run.worker()
        self.disturbed += 1
        self.note(f"{signal.Signals(number).name} to {target}")
        return worker

    def stop(self, run, numbers=STOPS, targets=("program",)):
        self.signal(run, self.random.choice(numbers), self.random.choice(targets))
        self.asked = time.monotonic()

    def orphan(self, worker):
        """Remembers a training process whose parent was killed."""
        if worker:
            self.orphans.append(worker)

    def end(self, run, codes, limit=LIMIT, errors=None):
        """Waits for the program. Its exit code must be one of `codes`, or 0 of a run that has finished. Its errors must be lines: as many as
        `errors`, or those that go with the code. Returns the code."""
        code = run.end(limit)
        out, err = run.said()
        text = err.decode("utf-8", "replace")
        self.note(f"exit code {code}" + "".join(f"\n           | {line}" for line in text.splitlines()[-12:]))
        if code is None:
            self.problem(f"start {self.starts}: not ended after {limit} s")
            raise Failed
        codes = set(codes)
        if code < 0 and run.signalled == (-code, False):
            # Before it had a handler, the system ended it.
            codes.add(code)
        if code == 0 and 0 not in codes and not self.folder.is_finished():
            self.problem(f"start {self.starts}: exit code 0 and the run has not finished")
        elif code != 0 and code not in codes:
            self.problem(f"start {self.starts}: exit code {code}, expected {' or '.join(map(str, sorted(codes | {0})))}: {last(text)}")
        if run.output == "files":
            self.problems += text_problems(out, LONGEST_OUTPUT, "output") + text_problems(err, LONGEST_LINE, "message")
        crash = next((crash for crash in CRASHES if crash in text), None)
        if crash:
            self.problem(f"start {self.starts}: {crash}: {last(text)}")
        told = [line for line in text.splitlines() if line.startswith("error: ")]
        expected = errors if errors is not None else {1: [1], TRANSIENT: range(0, 8)}.get(code, [0])
        if len(told) not in expected:
            self.problem(f"start {self.starts}: {len(told)} errors with exit code {code}: {' / '.join(told)[:300]}")
        if code in (1, TRANSIENT) and not text.strip():
            self.problem(f"start {self.starts}: exit code {code} and not a word")
        if code == STOPPED and "stopped" not in text and errors is None:
            self.problem(f"start {self.starts}: exit code {STOPPED} without a word about having stopped: {last(text)}")
        return code

    def ended_alone(self, worker):
        """A training process whose parent was killed ends by itself: its exit code."""
        code = reap(worker, ANSWER)
        self.note(f"training process without its parent: exit code {code}")
        if code is None and os.path.exists(f"/proc/{worker}/stat"):
            self.problem(f"a training process whose parent was killed has not ended after {ANSWER} s")
            send(worker, signal.SIGKILL)
        return code

    def ended_orphans(self):
        for worker in self.orphans:
            self.ended_alone(worker)
        self.orphans = []

    def power_off(self, run):
        """Kills all processes in the same moment."""
        worker = run.worker()
        send(worker, signal.SIGSTOP)
        send(run.pid, signal.SIGKILL)
        send(worker, signal.SIGKILL)
        self.disturbed += 1
        self.note("SIGKILL to all")
        self.end(run, [-signal.SIGKILL])
        if worker:
            reap(worker, ANSWER)

    def finish(self):
        """Goes on undisturbed to the end, and compares."""
        self.end(self.begin(), [0])
        self.ended_orphans()
        alive = inside(self.folder.path)
        if alive:
            self.problem(f"{len(alive)} processes of the run are left")
        for path in self.planted:
            path.unlink(missing_ok=True)
        for text in self.reference.differences(self.folder, self.exact, self.is_same_call):
            self.problem(text)
        states = self.folder.states(next(iter(run for run in self.folder.runs() if self.folder.is_finished(run)), None))
        if len(states) > MOST_STATES + self.damaged:
            self.problem(f"{len(states)} training states are kept, not at most {MOST_STATES}")
        self.listed()
        strays = [run for run in self.folder.runs() if not self.folder.is_finished(run)]
        for run in strays:
            # In its first moments a run is not known by its configuration yet, and another begins.
            if self.mode == "id" or self.folder.states(run):
                self.problem(f"another run was begun: {run.name}")
        self.storm.strays += len(strays)
        if self.random.random() < 0.3 and not self.problems:
            self.call_again()

    def listed(self):
        runs = self.storm.call(self.folder.path, self.environment, "runs", "--json")
        if runs.returncode:
            self.problem(f"`runs` ends with exit code {runs.returncode}: {last(runs.stderr.decode('utf-8', 'replace'))}")
            return
        said = [run for run in json.loads(runs.stdout) if run["status"] == "finished"]
        if len(said) != 1 or (self.exact and said[0]["loss"]["value"] != [m["loss"] for m in self.reference.metrics if "loss" in m][-1]):
            self.problem(f"`runs` does not say that it has finished with the loss of its last step: {[run['status'] for run in said]}")

    def call_again(self):
        """The same command after the end changes nothing."""
        names = [path for path in self.folder.output.iterdir() if path.is_file()]
        before = {path: digest(path) for path in names}
        mode = self.mode if self.mode != "path" else "auto"
        self.end(self.begin(mode=mode), [0])
        after = {path: digest(path) for path in self.folder.output.iterdir() if path.is_file()}
        if before != after:
            self.problem("the same command after the end changed what was released")


def last(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
