"""The kinds of cases by what a run finds otherwise than it left it: damaged files, other times, a full disk, an output that nobody reads."""

import os
import resource
import signal
import subprocess
import time

from .case import STOPPED, TRANSIENT, Failed, Skipped
from .clock import Clock
from .kinds import CONT, HUP, KILL, KINDS, QUIT, TERM, damage, kind
from .process import send
from .runs import ID, RUNS

# Room for the states of a run, and for what it says: 7 states and the released files must have room before it begins.
DISK = 400 << 20
__all__ = ["KINDS"]


def killed_with(case, count):
    """A run that was killed or stopped when it had at least `count` training states: its folder, and its states. None if it ended before."""
    run, root = case.begin(), case.folder.path / RUNS
    delay = case.random.random() * 1.5 * case.storm.step_seconds[case.task.name]
    if not run.until(lambda: len(list(root.glob("[!l]*/*_step_*"))) >= count, delay):
        case.note(f"{count} training states are there + {1000 * delay:.1f} ms: too late, the program has ended")
        case.end(run, [0])
    elif case.random.random() < 0.3:
        case.stop(run, [TERM])
        case.end(run, [STOPPED])
    else:
        case.power_off(run)
    folder = case.folder.run()
    return folder, [] if case.folder.is_finished() else case.folder.states(folder)


@kind
def damaged_newest(case):
    """The newest training state is damaged: the one before is used, with a warning; of an only one the run begins again."""
    folder, states = killed_with(case, case.random.choice([1, 2, 2]))
    if not states:
        return
    case.damaged += 1
    way = damage(case, states[-1])
    run = case.begin()
    case.end(run, [0])
    said = run.said()[1].decode("utf-8", "replace")
    if way != "removed" and states[-1].name not in said:
        case.problem(f"{states[-1].name} was {way}, and no warning names it: {said[:300]}")
    if way != "removed" and len(states) == 1 and "the run begins again" not in said:
        case.problem(f"the only training state was {way}, and no warning says that the run begins again: {said[:300]}")


@kind
def damaged_all(case):
    """All training states are damaged: the run begins again, with a warning."""
    folder, states = killed_with(case, case.random.choice([1, 2, 3]))
    if not states:
        return
    case.damaged += len(states)
    ways = [damage(case, state, ("truncated", "flipped", "emptied", "zeros")) for state in states]
    run = case.begin()
    case.end(run, [0])
    said = run.said()[1].decode("utf-8", "replace")
    if "the run begins again" not in said:
        case.problem(f"all training states were {', '.join(ways)}, and no warning says that the run begins again: {said[:300]}")


@kind
def damaged_best(case):
    """The best training state, which is not the newest, is damaged. What is released then may be another, but something is."""
    folder, states = killed_with(case, 4)
    best = (case.folder.record(folder).get("best") or {}).get("step") if folder else None
    named = [state for state in states[:-1] if best is not None and state.stem.endswith(f"_{best:08}")]
    if not named:
        return
    case.damaged, case.exact = case.damaged + 1, False
    way = damage(case, named[0])
    code = case.end(case.begin(), [0])
    if code != 0:
        case.problem(f"the best training state, {named[0].name}, was {way}: the run cannot be finished")
        raise Failed


# The generator's newest state is its best.
damaged_best.task = "classifier"


@kind
def damaged_record(case):
    """run.json, config.toml, … of the run is damaged. By `--run-id` it goes on; a configuration that cannot be read may be an error."""
    case.mode = "id"
    folder, states = killed_with(case, 1)
    if not states:
        return
    path = folder / case.random.choice(["run.json", "config.toml", "lock", "training.log"])
    damage(case, path, ("truncated", "emptied", "zeros", "removed"))
    run = case.begin()
    if case.end(run, [0, 1] if path.name == "config.toml" else [0]) == 1:
        if path.name not in run.said()[1].decode("utf-8", "replace"):
            case.problem(f"the error does not name {path.name}")
        path.unlink()


@kind
def torn_metrics(case):
    """The last line of metrics.jsonl is torn, as a kill in the middle of a write or a loss of power leaves it."""
    for _ in range(2):
        folder, states = killed_with(case, 1)
        if not states:
            return
        newest, path = case.folder.newest(folder), folder / "metrics.jsonl"
        line = next((line for line in case.reference.lines if f'"step":{newest + 1},'.encode() in line), b'{"step":99}\n')
        with open(path, "ab") as file:
            file.write(case.random.choice([line[: case.random.randrange(1, len(line))], bytes(200), line[:-1] + b"\x00" * 8, b"\xff\xfe{"]))
        case.disturbed += 1
        case.note("a torn line at the end of metrics.jsonl")


@kind
def times_of_files(case):
    """The times of all files are in the future, long ago, or in another order, as after a clock that jumped or a copy."""
    for _ in range(2):
        folder, states = killed_with(case, case.random.choice([1, 2]))
        if not states:
            return
        ways = {"ahead": lambda: time.time() + 30 * 86400, "long ago": lambda: 0, "mixed": lambda: case.random.random() * 4e9}
        way = case.random.choice(list(ways))
        for path in (case.folder.path / RUNS).rglob("*"):
            os.utime(path, times=(ways[way](),) * 2, follow_symlinks=False)
        case.disturbed += 1
        case.note(f"times of files: {way}")


@kind
def times_ahead(case):
    """Training processes are killed more often than there are retries, each after a new state, and an old state's time is in the future."""
    run, root, seen = case.begin(), case.folder.path / RUNS, 0
    steps = range(case.task.every, case.task.steps + 1, case.task.every)
    for step in steps:
        name = f"*/{case.task.name}_step_{step:08}.safetensors"
        if not run.until(lambda: any(root.glob(name)), 0):
            break
        if step == steps[0]:
            for path in root.glob("[!l]*/*_step_*"):
                os.utime(path, times=(time.time() + 86400,) * 2)
        case.signal(run, KILL, "worker")
        seen += 1
    case.note(f"{seen} kills, each after a new state")
    # The slow task has fewer states than there are retries.
    case.end(run, [0])


@kind
def clock_jumps(case):
    """The system's clock jumps, between two calls and while the run trains."""
    clock = Clock(case.storm.folder, case.folder.path)
    case.environment.update(clock.environment())
    jumps = [-20 * 365 * 86400, -86400, -3600, 3600, 86400, 10 * 365 * 86400]
    for _ in case.rounds():
        clock.set(case.random.choice(jumps))
        run = case.begin()
        if case.moment(run, ["step", "state", "writing"]):
            clock.set(case.random.choice(jumps))
            case.disturbed += 1
            case.note(f"the clock jumps to {clock.shift:+} s")
        if not case.moment(run):
            case.end(run, [0])
        elif case.random.random() < 0.5:
            case.power_off(run)
        else:
            case.stop(run)
            case.end(run, [STOPPED])
    clock.check(case)


@kind
def leftovers(case):
    """Temporary files of an earlier process with the same number are there, as in a container, whose numbers begin anew each time."""
    root = case.folder.path

    def before():
        for folder in [root, root / RUNS, root / RUNS / ID, case.folder.output]:
            if folder.is_dir():
                (folder / f".writing-{os.getpid()}.tmp").touch()

    for last in (False, False, True):
        run = case.begin(before=before)
        case.disturbed += 1
        case.planted += [folder / f".writing-{run.pid}.tmp" for folder in [root, root / RUNS, root / RUNS / ID, case.folder.output]]
        if not last and case.moment(run):
            case.power_off(run)
        else:
            case.end(run, [0])


# A disk that is full, and an output that nobody reads.


@kind
def full_disk(case):
    """The disk becomes full while the run trains: one line, and with room again it goes on."""
    if os.geteuid() != 0:
        raise Skipped("mounting a small file system takes root")
    place = case.folder.path / case.random.choice([RUNS, RUNS, case.folder.output.name])
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        raise Skipped(f"mount: {mounted.stderr.decode('utf-8', 'replace').strip()}")
    case.storm.mounts.append(place)
    filler = place / "filler"
    for _ in case.rounds(2):
        run = case.begin()
        if case.moment(run, ["worker", "record", "step", "state", "writing", "released", "output"]):
            left = int(case.random.choice([0, 0.001, 0.01, 0.3, 0.99]) * case.reference.state_bytes)
            fill(filler, left)
            case.disturbed += 1
            case.note(f"{place.name} is full but for {left} bytes")
            if case.random.random() < 0.3:
                case.stop(run)
        code = case.end(run, [1, STOPPED])
        error = next((line for line in run.said()[1].decode("utf-8", "replace").splitlines() if line.startswith("error: ")), "")
        if code == 1 and place.name not in error:
            case.problem(f"the error does not name what is full: {error}")
        filler.unlink(missing_ok=True)
        left = [name for name in case.folder.temporary() if not name.endswith(f".writing-{run.pid}.tmp")]
        if code == 1 and left:
            case.problem(f"after a full disk temporary files are left: {', '.join(left)}")
    case.planted.append(filler)


def fill(path, left):
    """Writes zeros until there is no room, and gives some back."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 20)):
                pass
        except OSError:
            pass
        file.truncate(max(0, path.stat().st_size - left))


@kind
def file_limit(case):
    """No file may grow beyond a limit, as with a quota: an error of writing, or a signal that kills."""
    for _ in case.rounds(2):
        most = case.reference.state_bytes
        limit = int(64e3 * (1.2 * most / 64e3) ** case.random.random())
        ignored = case.random.choice([[signal.SIGXFSZ], [signal.SIGXFSZ], []])
        run = case.begin(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), ignored=ignored)
        case.disturbed += 1
        case.note(f"files of at most {limit} bytes, SIGXFSZ {'ignored' if ignored else 'kills'}")
        case.end(run, [1] if ignored else [TRANSIENT])


@kind
def closed_output(case):
    """Nobody reads what it prints any more."""
    for _ in case.rounds(2):
        run = case.begin(output="pipes")
        if case.moment(run):
            run.close()
            case.disturbed += 1
            case.note("the pipes are closed")
        case.end(run, [0])


@kind
def terminal(case):
    """On a terminal: Ctrl-C, Ctrl-Z and going on, Ctrl-\\, and a terminal that goes away, also under nohup."""
    for _ in case.rounds():
        what = case.random.choice(["Ctrl-C", "Ctrl-Z", "Ctrl-\\", "closed", "closed under nohup"])
        run = case.begin(output="terminal", ignored=[HUP] if "nohup" in what else [])
        there = case.moment(run, ["worker", "record", "step", "step", "state", "writing", "writing", "released", "finished", "output"])
        worker = run.worker()
        if not there or worker is None:
            case.end(run, [0])
            continue
        case.disturbed += 1
        case.note(what)
        if what.startswith("closed"):
            run.close()
        else:
            os.write(run.terminal, {"Ctrl-C": b"\x03", "Ctrl-Z": b"\x1a", "Ctrl-\\": b"\x1c"}[what])
        if what == "Ctrl-Z":
            time.sleep(case.random.choice([0.05, 0.3]))
            send(run.pid, CONT)
        # What a terminal that is gone was told is not known.
        case.end(run, {"Ctrl-C": [STOPPED], "Ctrl-\\": [-QUIT], "closed": [STOPPED]}.get(what, [0]), errors=[0] if what == "Ctrl-C" else range(2))
        case.orphan(worker if what == "Ctrl-\\" else None)
