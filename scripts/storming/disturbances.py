"""Kinds of cases that disturb the environment of a run: damaged files, changed times, a full disk, a closed output."""

import os
import resource
import signal
import subprocess
import time

from .case import EXIT_STOPPED, EXIT_TRANSIENT, CaseFailed, Skipped
from .clock import Clock
from .kinds import CONT, HUP, KILL, KINDS, QUIT, TERM, damage, kind
from .process import send
from .runs import ID, RUNS

# The size of the small disk: a run needs space for 7 states and the released files to start.
DISK_SIZE = 400 << 20
__all__ = ["KINDS"]


def interrupt_with_states(case, count):
    """Kills or stops a run when it has `count` training states; returns its folder and its states, empty if the run is finished."""
    run, root = case.start(), case.folder.path / RUNS
    delay = case.random.random() * 1.5 * case.storm.step_seconds[case.task.name]
    if not run.wait_until(lambda: len(list(root.glob("[!l]*/*_step_*"))) >= count, delay):
        case.log(f"{count} training states exist + {1000 * delay:.1f} ms: too late, the program has exited")
        case.wait(run, [0])
    elif case.random.random() < 0.3:
        case.stop(run, [TERM])
        case.wait(run, [EXIT_STOPPED])
    else:
        case.power_off(run)
    folder = case.folder.run()
    return folder, [] if case.folder.is_finished() else case.folder.states(folder)


@kind
def damaged_newest(case):
    """The newest training state is damaged: the previous one is used, with a warning; without another one the run restarts."""
    folder, states = interrupt_with_states(case, case.random.choice([1, 2, 2]))
    if not states:
        return
    case.damaged += 1
    kind_of_damage = damage(case, states[-1])
    run = case.start()
    case.wait(run, [0])
    message = run.read_output()[1].decode("utf-8", "replace")
    if kind_of_damage != "removed" and states[-1].name not in message:
        case.add_problem(f"{states[-1].name} was {kind_of_damage}, without a warning that names it: {message[:300]}")
    if kind_of_damage != "removed" and len(states) == 1 and "the run restarts" not in message:
        case.add_problem(f"the only training state was {kind_of_damage}, without a warning that the run restarts: {message[:300]}")


@kind
def damaged_all(case):
    """All training states are damaged: the run restarts, with a warning."""
    folder, states = interrupt_with_states(case, case.random.choice([1, 2, 3]))
    if not states:
        return
    case.damaged += len(states)
    kinds_of_damage = [damage(case, state, ("truncated", "flipped", "emptied", "zeros")) for state in states]
    run = case.start()
    case.wait(run, [0])
    message = run.read_output()[1].decode("utf-8", "replace")
    if "the run restarts" not in message:
        case.add_problem(f"all training states were {', '.join(kinds_of_damage)}, without a warning that the run restarts: {message[:300]}")


@kind
def damaged_best(case):
    """The best training state, which is not the newest, is damaged. The run still releases a model, maybe another one."""
    folder, states = interrupt_with_states(case, 4)
    best = (case.folder.record(folder).get("best") or {}).get("step") if folder else None
    best_states = [state for state in states[:-1] if best is not None and state.stem.endswith(f"_{best:08}")]
    if not best_states:
        return
    case.damaged, case.exact = case.damaged + 1, False
    kind_of_damage = damage(case, best_states[0])
    code = case.wait(case.start(), [0])
    if code != 0:
        case.add_problem(f"the best training state, {best_states[0].name}, was {kind_of_damage}: the run cannot be finished")
        raise CaseFailed


# For the generator, the newest state is always the best.
damaged_best.task = "classifier"


@kind
def damaged_record(case):
    """run.json, config.toml, … of the run is damaged. `--run-id` resumes it; an unreadable configuration may be an error."""
    case.mode = "id"
    folder, states = interrupt_with_states(case, 1)
    if not states:
        return
    path = folder / case.random.choice(["run.json", "config.toml", "lock", "training.log"])
    damage(case, path, ("truncated", "emptied", "zeros", "removed"))
    run = case.start()
    if case.wait(run, [0, 1] if path.name == "config.toml" else [0]) == 1:
        if path.name not in run.read_output()[1].decode("utf-8", "replace"):
            case.add_problem(f"the error does not name {path.name}")
        path.unlink()


@kind
def torn_metrics(case):
    """The last line of metrics.jsonl is incomplete, as after a kill or a power failure during a write."""
    for _ in range(2):
        folder, states = interrupt_with_states(case, 1)
        if not states:
            return
        newest, path = case.folder.newest(folder), folder / "metrics.jsonl"
        line = next((line for line in case.reference.lines if f'"step":{newest + 1},'.encode() in line), b'{"step":99}\n')
        with open(path, "ab") as file:
            file.write(case.random.choice([line[: case.random.randrange(1, len(line))], bytes(200), line[:-1] + b"\x00" * 8, b"\xff\xfe{"]))
        case.disturbed += 1
        case.log("an incomplete line at the end of metrics.jsonl")


@kind
def times_of_files(case):
    """The times of all files are in the future, long ago, or in another order, as after a clock change or a copy."""
    for _ in range(2):
        folder, states = interrupt_with_states(case, case.random.choice([1, 2]))
        if not states:
            return
        times = {"ahead": lambda: time.time() + 30 * 86400, "long ago": lambda: 0, "mixed": lambda: case.random.random() * 4e9}
        choice = case.random.choice(list(times))
        for path in (case.folder.path / RUNS).rglob("*"):
            os.utime(path, times=(times[choice](),) * 2, follow_symlinks=False)
        case.disturbed += 1
        case.log(f"times of files: {choice}")


@kind
def times_ahead(case):
    """More kills of training processes than retries, each after a new state, with an old state's time in the future."""
    run, root, kills = case.start(), case.folder.path / RUNS, 0
    steps = range(case.task.save_interval, case.task.steps + 1, case.task.save_interval)
    for step in steps:
        name = f"*/{case.task.name}_step_{step:08}.safetensors"
        if not run.wait_until(lambda: any(root.glob(name)), 0):
            break
        if step == steps[0]:
            for path in root.glob("[!l]*/*_step_*"):
                os.utime(path, times=(time.time() + 86400,) * 2)
        case.signal(run, KILL, "worker")
        kills += 1
    case.log(f"{kills} kills, each after a new state")
    # The slow task has fewer states than retries.
    case.wait(run, [0])


@kind
def clock_jumps(case):
    """The system clock jumps between two calls and while the run trains."""
    clock = Clock(case.storm.folder, case.folder.path)
    case.environment.update(clock.environment())
    jumps = [-20 * 365 * 86400, -86400, -3600, 3600, 86400, 10 * 365 * 86400]
    for _ in case.rounds():
        clock.set(case.random.choice(jumps))
        run = case.start()
        if case.wait_for_moment(run, ["step", "state", "writing"]):
            clock.set(case.random.choice(jumps))
            case.disturbed += 1
            case.log(f"the clock jumps to {clock.shift:+} s")
        if not case.wait_for_moment(run):
            case.wait(run, [0])
        elif case.random.random() < 0.5:
            case.power_off(run)
        else:
            case.stop(run)
            case.wait(run, [EXIT_STOPPED])
    clock.check(case)


@kind
def leftovers(case):
    """Temporary files of an earlier process with the same process id exist, as in a restarted container."""
    root = case.folder.path

    def before():
        for folder in [root, root / RUNS, root / RUNS / ID, case.folder.output]:
            if folder.is_dir():
                (folder / f".writing-{os.getpid()}.tmp").touch()

    for is_last in (False, False, True):
        run = case.start(before=before)
        case.disturbed += 1
        case.own_files += [folder / f".writing-{run.pid}.tmp" for folder in [root, root / RUNS, root / RUNS / ID, case.folder.output]]
        if not is_last and case.wait_for_moment(run):
            case.power_off(run)
        else:
            case.wait(run, [0])


# A full disk, and a closed output.


@kind
def full_disk(case):
    """The disk becomes full while the run trains: a one-line error, and with space again the run resumes."""
    if os.geteuid() != 0:
        raise Skipped("mounting a small file system requires root")
    folder = case.folder.path / case.random.choice([RUNS, RUNS, case.folder.output.name])
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=755", "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode:
        raise Skipped(f"mount: {result.stderr.decode('utf-8', 'replace').strip()}")
    case.storm.mounts.append(folder)
    filler = folder / "filler"
    for _ in case.rounds(2):
        run = case.start()
        if case.wait_for_moment(run, ["worker", "record", "step", "state", "writing", "released", "output"]):
            free = int(case.random.choice([0, 0.001, 0.01, 0.3, 0.99]) * case.reference.state_bytes)
            fill(filler, free)
            case.disturbed += 1
            case.log(f"{folder.name} has {free} free bytes")
            if case.random.random() < 0.3:
                case.stop(run)
        code = case.wait(run, [1, EXIT_STOPPED])
        error = next((line for line in run.read_output()[1].decode("utf-8", "replace").splitlines() if line.startswith("error: ")), "")
        if code == 1 and folder.name not in error:
            case.add_problem(f"the error does not name the full folder: {error}")
        filler.unlink(missing_ok=True)
        temporary = [name for name in case.folder.temporary_files() if not name.endswith(f".writing-{run.pid}.tmp")]
        if code == 1 and temporary:
            case.add_problem(f"temporary files remain after a full disk: {', '.join(temporary)}")
    case.own_files.append(filler)


def fill(path, free):
    """Fills the disk with zeros, and then frees `free` bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 20)):
                pass
        except OSError:
            pass
        file.truncate(max(0, path.stat().st_size - free))


@kind
def file_limit(case):
    """Files have a maximum size, as with a quota: a write error, or a signal that kills."""
    for _ in case.rounds(2):
        max_size = case.reference.state_bytes
        limit = int(64e3 * (1.2 * max_size / 64e3) ** case.random.random())
        ignored = case.random.choice([[signal.SIGXFSZ], [signal.SIGXFSZ], []])
        run = case.start(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), ignored=ignored)
        case.disturbed += 1
        case.log(f"files of at most {limit} bytes, SIGXFSZ {'ignored' if ignored else 'kills'}")
        case.wait(run, [1] if ignored else [EXIT_TRANSIENT])


@kind
def closed_output(case):
    """The reader of the output closes its pipes."""
    for _ in case.rounds(2):
        run = case.start(output="pipes")
        if case.wait_for_moment(run):
            run.close()
            case.disturbed += 1
            case.log("the pipes are closed")
        case.wait(run, [0])


@kind
def terminal(case):
    """On a terminal: Ctrl-C, Ctrl-Z and resuming, Ctrl-\\, and a terminal that closes, also under nohup."""
    for _ in case.rounds():
        action = case.random.choice(["Ctrl-C", "Ctrl-Z", "Ctrl-\\", "closed", "closed under nohup"])
        run = case.start(output="terminal", ignored=[HUP] if "nohup" in action else [])
        is_running = case.wait_for_moment(run, ["worker", "record", "step", "step", "state", "writing", "writing", "released", "finished", "output"])
        worker = run.worker()
        if not is_running or worker is None:
            case.wait(run, [0])
            continue
        case.disturbed += 1
        case.log(action)
        if action.startswith("closed"):
            run.close()
        else:
            os.write(run.terminal, {"Ctrl-C": b"\x03", "Ctrl-Z": b"\x1a", "Ctrl-\\": b"\x1c"}[action])
        if action == "Ctrl-Z":
            time.sleep(case.random.choice([0.05, 0.3]))
            send(run.pid, CONT)
        # Messages to a closed terminal are unknown.
        case.wait(run, {"Ctrl-C": [EXIT_STOPPED], "Ctrl-\\": [-QUIT], "closed": [EXIT_STOPPED]}.get(action, [0]), errors=[0] if action == "Ctrl-C" else range(2))
        case.orphan(worker if action == "Ctrl-\\" else None)
