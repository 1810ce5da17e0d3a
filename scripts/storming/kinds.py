"""Kinds of cases that disturb the processes of a run: signals, kills, pauses, and a second command."""

import signal
import time

from .case import EXIT_STOPPED, EXIT_TRANSIENT
from .process import send
from .runs import RETRIES

TERM, INT, HUP, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
# Two signals within this time, in seconds, count as one.
SIGNAL_WINDOW = 1.0
KINDS = {}


def kind(function):
    KINDS[function.__name__.replace("_", "-")] = function
    return function


# Signals that stop a run.


@kind
def stop_program(case):
    """SIGTERM, SIGINT or SIGHUP to the program."""
    for _ in case.rounds():
        run = case.start()
        if case.wait_for_moment(run):
            case.stop(run)
        case.wait(run, [EXIT_STOPPED])


@kind
def stop_worker(case):
    """The same signals to the training process. Before it has a handler, a signal kills it, and it is restarted."""
    for _ in case.rounds():
        run = case.start()
        if case.wait_for_moment(run):
            case.stop(run, targets=["worker"])
        case.wait(run, [EXIT_STOPPED])


@kind
def stop_all(case):
    """The same signals to all processes, as from systemd and Slurm, or to the process group, as from a terminal."""
    for _ in case.rounds():
        run = case.start()
        if case.wait_for_moment(run):
            case.stop(run, targets=["all", "group"])
        case.wait(run, [EXIT_STOPPED])


@kind
def stop_twice(case):
    """Two signals: within a second they count as one; a later second one stops the program immediately."""
    for _ in case.rounds(2):
        run, wait = case.start(), case.random.choice([0, 0.02, 0.3, 1.3])
        second = case.random.choice([TERM, INT])
        if case.wait_for_moment(run):
            if wait > SIGNAL_WINDOW:
                # Pause it, so that it cannot exit between the signals.
                worker = run.worker()
                send(worker, STOP)
            case.stop(run, [TERM])
            time.sleep(wait)
            case.signal(run, second)
            if wait > SIGNAL_WINDOW:
                send(worker, CONT)
        case.wait(run, [EXIT_STOPPED] + ([128 + second] if wait > SIGNAL_WINDOW else []), errors=[0])


@kind
def stop_early(case):
    """A signal in the first 50 ms."""
    for _ in range(6):
        run = case.start()
        if case.wait_for_moment(run, ["start"]):
            case.stop(run, targets=["program", "all"])
        case.wait(run, [EXIT_STOPPED])


@kind
def pause(case):
    """SIGSTOP and SIGCONT to the program, the training process or both; SIGTSTP, as from a terminal."""
    for _ in case.rounds():
        run = case.start()
        if case.wait_for_moment(run):
            number, target = case.random.choice([(STOP, "program"), (STOP, "worker"), (STOP, "all"), (signal.SIGTSTP, "program")])
            worker = case.signal(run, number, target)
            time.sleep(case.random.choice([0, 0.05, 0.5]))
            send(run.pid, CONT)
            if number == STOP:
                send(worker, CONT)
        case.wait(run, [0])


@kind
def pause_and_stop(case):
    """A signal while the training process, or everything, is paused."""
    for _ in case.rounds(2):
        run = case.start()
        if case.wait_for_moment(run):
            worker = case.signal(run, STOP, case.random.choice(["worker", "all"]))
            case.stop(run)
            time.sleep(case.random.choice([0, 0.2]))
            send(run.pid, CONT)
            send(worker, CONT)
        case.wait(run, [EXIT_STOPPED])


@kind
def ignored_signals(case):
    """Started with SIGHUP ignored, as by nohup, or with SIGINT and SIGQUIT ignored, as by `&` in a script."""
    for _ in case.rounds(2):
        ignored = case.random.choice([[HUP], [HUP, INT, QUIT], [INT, QUIT]])
        run, number = case.start(ignored=ignored), case.random.choice(ignored)
        if case.wait_for_moment(run):
            case.signal(run, number, case.random.choice(["program", "worker", "all"]))
            if case.random.random() < 0.5:
                case.stop(run, [TERM])
        # SIGINT stops a run anyway: according to docs/training.md, only SIGHUP can be ignored.
        case.wait(run, [0, EXIT_STOPPED])
        if run.signalled and run.signalled[0] in (HUP, QUIT) and run.process.returncode == EXIT_STOPPED:
            case.add_problem(f"{signal.Signals(run.signalled[0]).name} was ignored at the start, but stopped the run")


# Killed processes.


def kill_program_only(case, run, number):
    """Kills only the program. Its training process saves and exits by itself; the next command waits for it."""
    worker = case.signal(run, number)
    step = max((line["step"] for folder in case.folder.runs() for line in case.folder.metrics(folder) if line), default=0)
    case.wait(run, [-number])
    waits = case.random.random() < 0.4
    if worker and waits:
        code = case.wait_for_orphan(worker)
        # The orphan notices it within three steps of the fast task.
        if code == 0 and case.task.name == "dit" and step + 4 <= case.task.steps:
            case.add_problem(f"a training process whose parent was killed after step {step} continued to the end")
    case.orphan(None if waits else worker)


@kind
def kill_program(case):
    """SIGKILL to the program; the next command starts while the training process still saves, or later."""
    for _ in case.rounds():
        run = case.start()
        if case.wait_for_moment(run):
            kill_program_only(case, run, KILL)
        else:
            case.wait(run, [0])


@kind
def kill_at_birth(case):
    """SIGKILL to the program at the moment when it starts the training process."""
    for _ in range(12):
        run, wait = case.start(), case.random.choice([0, 0, 0.0001, 0.0003, 0.001, 0.003])
        # Busy-wait, because the timing is in microseconds.
        while run.worker() is None and run.process.poll() is None:
            pass
        end = time.monotonic() + wait
        while time.monotonic() < end:
            pass
        worker = run.worker()
        send(run.pid, KILL)
        case.disturbed += 1
        case.log(f"SIGKILL to the program {1000 * wait:.1f} ms after the start of the training process")
        case.wait(run, [-KILL])
        if worker:
            case.wait_for_orphan(worker)
        if case.is_finished():
            case.add_problem("a training process whose parent was killed at its start continued to the end")
            break


@kind
def kill_worker(case):
    """SIGKILL to the training process, which is restarted."""
    run = case.start()
    for _ in range(case.random.randint(1, 3)):
        if case.wait_for_moment(run):
            case.signal(run, KILL, "worker")
    case.wait(run, [0])


@kind
def kill_worker_always(case):
    """SIGKILL to each training process, until the program gives up."""
    run, killed, end = case.start(), set(), time.monotonic() + 60
    case.wait_for_moment(run)
    while not run.has_exited() and time.monotonic() < end:
        worker = run.worker()
        if worker and worker not in killed:
            time.sleep(case.random.random() * 0.02)
            send(worker, KILL)
            killed.add(worker)
            case.disturbed += 1
        time.sleep(0.0005)
    case.log(f"SIGKILL to {len(killed)} training processes")
    code = case.wait(run, [EXIT_TRANSIENT])
    message = run.read_output()[1].decode("utf-8", "replace")
    if code == EXIT_TRANSIENT and f"given up after {RETRIES} retries" not in message:
        case.add_problem(f"it gave up without a message: {message[-300:]}")


@kind
def kill_all(case):
    """SIGKILL to all processes, as in a power failure."""
    for _ in case.rounds():
        run = case.start()
        if case.wait_for_moment(run):
            case.power_off(run)
        else:
            case.wait(run, [0])


@kind
def quit_program(case):
    """SIGQUIT to the program, to the training process, or both."""
    for _ in case.rounds():
        run, target = case.start(), case.random.choice(["program", "worker", "all"])
        if not case.wait_for_moment(run):
            case.wait(run, [0])
        elif target == "program":
            kill_program_only(case, run, QUIT)
        else:
            worker = case.signal(run, QUIT, target)
            case.wait(run, [-QUIT, 0])
            case.orphan(worker if target == "all" else None)


@kind
def wait_for_orphan(case):
    """The program is killed and its training process paused: the next command waits for it, and can be stopped."""
    run = case.start()
    if not case.wait_for_moment(run, ["step", "state", "writing"]):
        case.wait(run, [0])
        return
    worker = run.worker()
    send(worker, STOP)
    case.signal(run, KILL)
    case.wait(run, [-KILL])
    again = case.start()
    time.sleep(0.3)
    if case.random.random() < 0.4:
        case.stop(again)
        case.wait(again, [EXIT_STOPPED])
        again = case.start()
        time.sleep(0.1)
    send(worker, CONT)
    case.orphan(worker)
    case.wait(again, [0])


@kind
def second_command(case):
    """The same command while the run trains: it waits, and then resumes or gives up with exit code 74."""
    case.is_same_call = False
    run = case.start()
    if not case.wait_for_moment(run, ["record", "step", "state"]):
        case.wait(run, [0])
        return
    mode = "auto" if case.mode == "path" else case.mode
    worker, is_paused = run.worker(), case.random.random() < 0.5
    if is_paused:
        send(worker, STOP)
    wait = case.random.choice(["100ms", "1s"])
    other = case.start(["--retry-max", wait], mode=mode)
    case.disturbed += 1
    if case.random.random() < 0.3:
        time.sleep(0.05)
        case.stop(other)
    case.wait(other, [EXIT_STOPPED, EXIT_TRANSIENT, 0])
    if is_paused:
        send(worker, CONT)
    case.wait(run, [0])


def damage(case, path, kinds=("truncated", "flipped", "emptied", "zeros", "half zeros", "removed")):
    """Damages a file; returns the kind of damage."""
    data, kind = bytearray(path.read_bytes()), case.random.choice(kinds)
    at = int(case.random.random() * len(data))
    if kind == "removed":
        path.unlink()
    else:
        if kind == "flipped":
            # Damage the header often, although it is small.
            at = at % 4096 if case.random.random() < 0.3 else at
            data[at] ^= 1 << case.random.randrange(8)
        elif kind == "half zeros":
            data[at:] = bytes(len(data) - at)
        else:
            data = {"truncated": data[:at], "emptied": b"", "zeros": bytes(len(data))}[kind]
        path.write_bytes(data)
    case.disturbed += 1
    case.log(f"{path.name} {kind}" + (f" at byte {at}" if kind in ("truncated", "flipped", "half zeros") else ""))
    return kind


@kind
def mixed(case):
    """Signals, kills and a damaged state in turn."""
    for _ in range(case.random.randint(2, 5)):
        if case.is_finished():
            break
        run = case.start()
        if not case.wait_for_moment(run):
            case.wait(run, [0])
            continue
        action = case.random.choice(["stop", "kill", "worker", "power", "quit"])
        if action == "stop":
            case.stop(run, targets=["program", "all", "worker"])
            case.wait(run, [EXIT_STOPPED])
        elif action in ("kill", "quit"):
            kill_program_only(case, run, KILL if action == "kill" else QUIT)
        elif action == "worker":
            case.signal(run, KILL, "worker")
            if case.wait_for_moment(run):
                case.stop(run)
            case.wait(run, [EXIT_STOPPED])
        else:
            case.power_off(run)
        states = case.folder.states()
        if len(states) > 1 and not case.folder.is_finished() and case.random.random() < 0.2:
            case.wait_for_orphans()
            case.damaged += 1
            damage(case, states[-1])
