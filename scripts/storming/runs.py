"""What is trained, what a run that was left alone ends in, and what a run's folder holds."""

import dataclasses
import hashlib
import json
import pathlib

RUNS, OUTPUT, ID = "runs", "out", "storm"
# Metrics of how fast it went, which differ from run to run.
VOLATILE = {"items_per_second", "memory_bytes", "waited"}
# Training states that a run keeps: the newest five, and the best.
MOST_STATES = 6
RETRIES = 5
SHARED = ["--augmentation-level", "basic", "--log-interval", "1", "--runs-dir", RUNS, "--retry-initial", "10ms", "--max-retries", str(RETRIES)]


@dataclasses.dataclass
class Task:
    name: str
    arguments: list
    # The released files' name without extension, and what is written beside them.
    released: str
    reports: list
    steps: int
    every: int

    @property
    def outputs(self):
        return [f"{self.released}.pt", f"{self.released}.safetensors", *self.reports]


TASKS = [
    Task(
        "dit",
        ["dit", "synth", "--output", OUTPUT, "--image-size", "16", "--size", "nano", "--batch-size", "8", "--lr", "1e-3", "--sample-interval",
         "0", "--steps", "8", "--save-interval", "2"],
        "tinydit_final", [], 8, 2,
    ),
    Task(
        "classifier",
        ["classifier", "synth", "--output", f"{OUTPUT}/m.pt", "--width", "8", "--image-size", "32", "--batch-size", "16", "--lr", "3e-3",
         "--ema-beta", "0.9", "--epochs", "8"],
        "m", [f"m_{part}.{kind}" for part in ("validation", "test") for kind in ("json", "png")], 16, 2,
    ),
]  # fmt: skip


class Folder:
    """A folder in which a task is trained, with its runs, its output and a cache of its own."""

    def __init__(self, path, task):
        self.path, self.task, self.output = pathlib.Path(path), task, pathlib.Path(path) / OUTPUT

    def runs(self):
        """The folders of runs, the oldest first."""
        root = self.path / RUNS
        return sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink()) if root.is_dir() else []

    def recorded(self):
        return [run for run in self.runs() if (run / "run.json").is_file()]

    def run(self):
        """The folder of the run that got furthest, if there is any."""
        return max(self.runs(), key=lambda run: (self.is_finished(run), self.newest(run), run.name), default=None)

    def states(self, run=None):
        run = run or self.run()
        return sorted(run.glob("*_step_*.safetensors")) if run else []

    def newest(self, run=None):
        """The step of the newest training state; 0 where there is none."""
        states = self.states(run) if run or self.runs() else []
        return int(states[-1].stem.rpartition("_")[2]) if states else 0

    def record(self, run):
        try:
            return json.loads((run / "run.json").read_text())
        except (OSError, ValueError):
            return {}

    def is_finished(self, run=None):
        runs = [run] if run else self.runs()
        return any(self.record(run).get("status") == "finished" for run in runs)

    def metrics(self, run):
        """The lines of metrics.jsonl without what differs from run to run; what is no JSON is `None`."""
        lines = []
        try:
            text = (run / "metrics.jsonl").read_bytes().decode("utf-8", "replace")
        except OSError:
            return lines
        for line in text.split("\n")[:-1] + ([text.split("\n")[-1]] if not text.endswith("\n") and text else []):
            try:
                lines.append({key: value for key, value in json.loads(line).items() if key not in VOLATILE})
            except (ValueError, AttributeError):
                lines.append(None)
        return lines

    def temporary(self):
        """Temporary files that were left, but for those of the cache, which are removed after a day."""
        found = [p for p in self.path.rglob("*") if (p.name.endswith(".tmp") or p.name.startswith(".writing-"))]
        return sorted(str(p.relative_to(self.path)) for p in found if p.relative_to(self.path).parts[0] != "cache")


def contents(path):
    """What a training state holds: each field of its metadata as JSON, and the digest of each tensor."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    held = json.loads(header.pop("__metadata__")["tiny-cats-state"])["meta"]
    found = {f"{name}.{key}": value for name, fields in held.items() if isinstance(fields, dict) for key, value in fields.items()}
    found |= {name: value for name, value in held.items() if not isinstance(value, dict)}
    tensors = {name: [end + at for at in about["data_offsets"]] for name, about in header.items()}
    return found | {name: hashlib.sha256(data[first:after]).hexdigest() for name, (first, after) in tensors.items()}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Reference:
    """What a run that was left alone ends in."""

    def __init__(self, folder):
        run, task = folder.run(), folder.task
        self.outputs = {name: (folder.output / name).read_bytes() for name in task.outputs}
        self.metrics, self.best = folder.metrics(run), folder.record(run)["best"]
        self.state = contents(folder.states(run)[-1])
        self.configuration = (run / "config.toml").read_bytes()
        self.state_bytes = folder.states(run)[-1].stat().st_size
        self.lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        self.problems = [f"the reference has no {name}" for name in ("loss.png", "training.log") if not (run / name).is_file()]

    def differences(self, folder, exact=True, is_same_call=True):
        """What is otherwise in a folder whose run has finished. Of one that is not `exact`, other weights may have been released; where not
        all calls were the same, states and configuration say so."""
        task, run = folder.task, next((run for run in folder.runs() if folder.is_finished(run)), None)
        if run is None:
            return ["no run says in run.json that it has finished"]
        found = []
        for name in task.outputs:
            path = folder.output / name
            if not path.is_file():
                found.append(f"{path.relative_to(folder.path)} was not written")
            elif exact and path.read_bytes() != self.outputs[name]:
                found.append(f"{path.relative_to(folder.path)} differs from that of a run that was left alone")
        others = sorted({path.name for path in folder.output.iterdir()} - set(task.outputs)) if folder.output.is_dir() else []
        found += [f"{folder.output.name}/{name} was not to be there" for name in others if not name.startswith(".")]
        for name in task.outputs[:2]:
            if not (run / name).is_file() or (exact and (run / name).read_bytes() != self.outputs[name]):
                found.append(f"the run's own {name} differs")
        found += [f"the run's {name} was not written" for name in ("loss.png", "training.log") if not (run / name).is_file()]
        found += self.of_run(folder, run, is_same_call) if exact else []
        left = folder.temporary()
        if left:
            found.append(f"temporary files are left: {', '.join(left[:4])}")
        return found

    def of_run(self, folder, run, is_same_call):
        found, record, metrics = [], folder.record(run), folder.metrics(run)
        if metrics != self.metrics:
            first = next((i for i, (a, b) in enumerate(zip(metrics, self.metrics)) if a != b), min(len(metrics), len(self.metrics)))
            a, b = (lines[first] if first < len(lines) else "none" for lines in (metrics, self.metrics))
            found.append(f"metrics.jsonl differs from line {first + 1} on ({len(metrics)} lines): {a} instead of {b}")
        steps = {"step": folder.task.steps, "steps": folder.task.steps, "best": self.best, "error": None}
        found += [f"run.json: {key} is {record.get(key)}, not {value}" for key, value in steps.items() if record.get(key) != value]
        states = folder.states(run)
        last = contents(states[-1]) if states else {}
        for name in sorted(self.state.keys() | last.keys()) if is_same_call else []:
            if self.state.get(name) != last.get(name):
                a, b = (json.dumps(held.get(name)) for held in (last, self.state))
                at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), 0)
                first = max(0, at - 20)
                found.append(f"the last training state: {name} has …{a[first : at + 60]}… instead of …{b[first : at + 60]}…")
                break
        if is_same_call and (run / "config.toml").read_bytes() != self.configuration:
            found.append("config.toml differs")
        return found
