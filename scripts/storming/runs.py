"""The training tasks, the references, and the contents of a run's folder."""

import dataclasses
import hashlib
import json
import pathlib

RUNS, OUTPUT, ID = "runs", "out", "storm"
# Metrics of speed and memory, which differ between runs.
VOLATILE = {"items_per_second", "memory_bytes", "waited"}
# The number of training states that a run keeps: the newest five, and the best.
MAX_STATES = 6
RETRIES = 5
SHARED = ["--augmentation-level", "basic", "--log-interval", "1", "--runs-dir", RUNS, "--retry-initial", "10ms", "--max-retries", str(RETRIES)]


@dataclasses.dataclass
class Task:
    name: str
    arguments: list
    # The name of the released files without extension, and other files next to them.
    released: str
    reports: list
    steps: int
    save_interval: int

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
    """The working folder of a task, with its runs, its output and its own cache."""

    def __init__(self, path, task):
        self.path, self.task, self.output = pathlib.Path(path), task, pathlib.Path(path) / OUTPUT

    def runs(self):
        """Returns the folders of runs, oldest first."""
        root = self.path / RUNS
        return sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink()) if root.is_dir() else []

    def recorded_runs(self):
        return [run for run in self.runs() if (run / "run.json").is_file()]

    def run(self):
        """Returns the folder of the run with the most progress, or None."""
        return max(self.runs(), key=lambda run: (self.is_finished(run), self.newest(run), run.name), default=None)

    def states(self, run=None):
        run = run or self.run()
        return sorted(run.glob("*_step_*.safetensors")) if run else []

    def newest(self, run=None):
        """Returns the step of the newest training state, or 0."""
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
        """Returns the lines of metrics.jsonl without volatile metrics; an invalid line is `None`."""
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

    def temporary_files(self):
        """Returns the remaining temporary files, except those of the cache, which are removed after a day."""
        paths = [p for p in self.path.rglob("*") if (p.name.endswith(".tmp") or p.name.startswith(".writing-"))]
        return sorted(str(p.relative_to(self.path)) for p in paths if p.relative_to(self.path).parts[0] != "cache")


def read_state(path):
    """Reads a training state: each field of its metadata, and the digest of each tensor."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = json.loads(header.pop("__metadata__")["tiny-cats-state"])["meta"]
    state = {f"{name}.{key}": value for name, fields in metadata.items() if isinstance(fields, dict) for key, value in fields.items()}
    state |= {name: value for name, value in metadata.items() if not isinstance(value, dict)}
    tensors = {name: [end + at for at in entry["data_offsets"]] for name, entry in header.items()}
    return state | {name: hashlib.sha256(data[start:end]).hexdigest() for name, (start, end) in tensors.items()}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Reference:
    """The result of an undisturbed run."""

    def __init__(self, folder):
        run, task = folder.run(), folder.task
        self.outputs = {name: (folder.output / name).read_bytes() for name in task.outputs}
        self.metrics, self.best = folder.metrics(run), folder.record(run)["best"]
        self.state = read_state(folder.states(run)[-1])
        self.configuration = (run / "config.toml").read_bytes()
        self.state_bytes = folder.states(run)[-1].stat().st_size
        self.lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        self.problems = [f"the reference lacks {name}" for name in ("loss.png", "training.log") if not (run / name).is_file()]

    def differences(self, folder, exact=True, is_same_call=True):
        """Returns the differences of a finished run. Unless `exact`, the released weights may differ; unless `is_same_call`, states and
        configuration may differ."""
        task, run = folder.task, next((run for run in folder.runs() if folder.is_finished(run)), None)
        if run is None:
            return ["no run.json has the status finished"]
        differences = []
        for name in task.outputs:
            path = folder.output / name
            if not path.is_file():
                differences.append(f"{path.relative_to(folder.path)} was not written")
            elif exact and path.read_bytes() != self.outputs[name]:
                differences.append(f"{path.relative_to(folder.path)} differs from the reference")
        unexpected = sorted({path.name for path in folder.output.iterdir()} - set(task.outputs)) if folder.output.is_dir() else []
        differences += [f"{folder.output.name}/{name} is unexpected" for name in unexpected if not name.startswith(".")]
        for name in task.outputs[:2]:
            if not (run / name).is_file() or (exact and (run / name).read_bytes() != self.outputs[name]):
                differences.append(f"the run's own {name} differs")
        differences += [f"the run's {name} was not written" for name in ("loss.png", "training.log") if not (run / name).is_file()]
        differences += self.run_differences(folder, run, is_same_call) if exact else []
        temporary = folder.temporary_files()
        if temporary:
            differences.append(f"temporary files remain: {', '.join(temporary[:4])}")
        return differences

    def run_differences(self, folder, run, is_same_call):
        differences, record, metrics = [], folder.record(run), folder.metrics(run)
        if metrics != self.metrics:
            first = next((i for i, (a, b) in enumerate(zip(metrics, self.metrics)) if a != b), min(len(metrics), len(self.metrics)))
            a, b = (lines[first] if first < len(lines) else "none" for lines in (metrics, self.metrics))
            differences.append(f"metrics.jsonl, line {first + 1} of {len(metrics)}: expected {b}, found {a}")
        steps = {"step": folder.task.steps, "steps": folder.task.steps, "best": self.best, "error": None}
        differences += [f"run.json: {key}: expected {value}, found {record.get(key)}" for key, value in steps.items() if record.get(key) != value]
        states = folder.states(run)
        last = read_state(states[-1]) if states else {}
        for name in sorted(self.state.keys() | last.keys()) if is_same_call else []:
            if self.state.get(name) != last.get(name):
                a, b = (json.dumps(state.get(name)) for state in (last, self.state))
                at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), 0)
                first = max(0, at - 20)
                differences.append(f"the last training state: {name}: expected …{b[first : at + 60]}…, found …{a[first : at + 60]}…")
                break
        if is_same_call and (run / "config.toml").read_bytes() != self.configuration:
            differences.append("config.toml differs")
        return differences
