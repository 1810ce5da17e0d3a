"""The kinds of cases by what is done to the processes of a run: signals, kills, pauses, and a second command."""

import signal
import time

from .case import STOPPED, TRANSIENT
from .process import send
from .runs import RETRIES

TERM, INT, HUP, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
# Two signals that come within a second are one.
LATER = 1.0
KINDS = {}


def kind(function):
    KINDS[function.__name__.replace("_", "-")] = function
    return function


# Signals that ask a run to stop.


@kind
def stop_program(case):
    """SIGTERM, SIGINT or SIGHUP to the program."""
    for _ in case.rounds():
        run = case.begin()
        if case.moment(run):
            case.stop(run)
        case.end(run, [STOPPED])


@kind
def stop_worker(case):
    """The same signals to the training process: before it has a handler, a signal kills it, and it is restarted."""
    for _ in case.rounds():
        run = case.begin()
        if case.moment(run):
            case.stop(run, targets=["worker"])
        case.end(run, [STOPPED])


@kind
def stop_all(case):
    """The same to all processes at once, as systemd and Slurm do, or to the program's process group, as a terminal does."""
    for _ in case.rounds():
        run = case.begin()
        if case.moment(run):
            case.stop(run, targets=["all", "group"])
        case.end(run, [STOPPED])


@kind
def stop_twice(case):
    """Two signals: within a second they are one; later the second ends the program at once."""
    for _ in case.rounds(2):
        run, wait = case.begin(), case.random.choice([0, 0.02, 0.3, 1.3])
        second = case.random.choice([TERM, INT])
        if case.moment(run):
            if wait > LATER:
                # So that it cannot end in between.
                worker = run.worker()
                send(worker, STOP)
            case.stop(run, [TERM])
            time.sleep(wait)
            case.signal(run, second)
            if wait > LATER:
                send(worker, CONT)
        case.end(run, [STOPPED] + ([128 + second] if wait > LATER else []), errors=[0])


@kind
def stop_early(case):
    """A signal in the first 50 ms."""
    for _ in range(6):
        run = case.begin()
        if case.moment(run, ["start"]):
            case.stop(run, targets=["program", "all"])
        case.end(run, [STOPPED])


@kind
def pause(case):
    """SIGSTOP and SIGCONT to the program, the training process or both; SIGTSTP, as from a terminal."""
    for _ in case.rounds():
        run = case.begin()
        if case.moment(run):
            number, target = case.random.choice([(STOP, "program"), (STOP, "worker"), (STOP, "all"), (signal.SIGTSTP, "program")])
            worker = case.signal(run, number, target)
            time.sleep(case.random.choice([0, 0.05, 0.5]))
            send(run.pid, CONT)
            if number == STOP:
                send(worker, CONT)
        case.end(run, [0])


@kind
def pause_and_stop(case):
    """A signal while the training process, or everything, is paused."""
    for _ in case.rounds(2):
        run = case.begin()
        if case.moment(run):
            worker = case.signal(run, STOP, case.random.choice(["worker", "all"]))
            case.stop(run)
            time.sleep(case.random.choice([0, 0.2]))
            send(run.pid, CONT)
            send(worker, CONT)
        case.end(run, [STOPPED])


@kind
def ignored_signals(case):
    """Begun with SIGHUP ignored, as by nohup, or with SIGINT and SIGQUIT ignored, as by a script's `&`."""
    for _ in case.rounds(2):
        ignored = case.random.choice([[HUP], [HUP, INT, QUIT], [INT, QUIT]])
        run, number = case.begin(ignored=ignored), case.random.choice(ignored)
        if case.moment(run):
            case.signal(run, number, case.random.choice(["program", "worker", "all"]))
            if case.random.random() < 0.5:
                case.stop(run, [TERM])
        # SIGINT stops a run even so: docs/training.md excepts SIGHUP alone.
        case.end(run, [0, STOPPED])
        if run.signalled and run.signalled[0] in (HUP, QUIT) and run.process.returncode == STOPPED:
            case.problem(f"{signal.Signals(run.signalled[0]).name} was ignored when it was begun, and stopped it")


# Killed processes.


def quit_or_kill(case, run, number):
    """Kills the program alone. Its training process saves and ends by itself; the same command waits for it."""
    worker = case.signal(run, number)
    step = max((line["step"] for folder in case.folder.runs() for line in case.folder.metrics(folder) if line), default=0)
    case.end(run, [-number])
    wait = case.random.random() < 0.4
    if worker and wait:
        code = case.ended_alone(worker)
        # In an early step of the slow task it has time for no other three.
        if code == 0 and case.task.name == "dit" and step + 4 <= case.task.steps:
            case.problem(f"a training process whose parent was killed after step {step} went on to the end")
    case.orphan(None if wait else worker)


@kind
def kill_program(case):
    """SIGKILL to the program; the same command comes at once, while the training process still saves, or later."""
    for _ in case.rounds():
        run = case.begin()
        if case.moment(run):
            quit_or_kill(case, run, KILL)
        else:
            case.end(run, [0])


@kind
def kill_at_birth(case):
    """SIGKILL to the program in the moment in which it makes the training process."""
    for _ in range(12):
        run, wait = case.begin(), case.random.choice([0, 0, 0.0001, 0.0003, 0.001, 0.003])
        # Without a pause: it is a matter of microseconds.
        while run.worker() is None and run.process.poll() is None:
            pass
        end = time.monotonic() + wait
        while time.monotonic() < end:
            pass
        worker = run.worker()
        send(run.pid, KILL)
        case.disturbed += 1
        case.note(f"SIGKILL to the program {1000 * wait:.1f} ms after the training process was there")
        case.end(run, [-KILL])
        if worker:
            case.ended_alone(worker)
        if case.finished():
            case.problem("a training process whose parent was killed before it began went on to the end")
            break


@kind
def kill_worker(case):
    """SIGKILL to the training process, which is restarted."""
    run = case.begin()
    for _ in range(case.random.randint(1, 3)):
        if case.moment(run):
            case.signal(run, KILL, "worker")
    case.end(run, [0])


@kind
def kill_worker_always(case):
    """SIGKILL to each training process, until the program gives up."""
    run, killed, end = case.begin(), set(), time.monotonic() + 60
    case.moment(run)
    while not run.ended() and time.monotonic() < end:
        worker = run.worker()
        if worker and worker not in killed:
            time.sleep(case.random.random() * 0.02)
            send(worker, KILL)
            killed.add(worker)
            case.disturbed += 1
        time.sleep(0.0005)
    case.note(f"SIGKILL to {len(killed)} training processes")
    code = case.end(run, [TRANSIENT])
    said = run.said()[1].decode("utf-8", "replace")
    if code == TRANSIENT and f"given up after {RETRIES} retries" not in said:
        case.problem(f"it gave up without saying so: {said[-300:]}")


@kind
def kill_all(case):
    """SIGKILL to all processes at once, as when the power goes."""
    for _ in case.rounds():
        run = case.begin()
        if case.moment(run):
            case.power_off(run)
        else:
            case.end(run, [0])


@kind
def quit_program(case):
    """SIGQUIT to the program, to the training process, or both."""
    for _ in case.rounds():
        run, target = case.begin(), case.random.choice(["program", "worker", "all"])
        if not case.moment(run):
            case.end(run, [0])
        elif target == "program":
            quit_or_kill(case, run, QUIT)
        else:
            worker = case.signal(run, QUIT, target)
            case.end(run, [-QUIT, 0])
            case.orphan(worker if target == "all" else None)


@kind
def wait_for_orphan(case):
    """The program is killed and its training process pauses: the same command waits for it, and stops when it is told to."""
    run = case.begin()
    if not case.moment(run, ["step", "state", "writing"]):
        case.end(run, [0])
        return
    worker = run.worker()
    send(worker, STOP)
    case.signal(run, KILL)
    case.end(run, [-KILL])
    again = case.begin()
    time.sleep(0.3)
    if case.random.random() < 0.4:
        case.stop(again)
        case.end(again, [STOPPED])
        again = case.begin()
        time.sleep(0.1)
    send(worker, CONT)
    case.orphan(worker)
    case.end(again, [0])


@kind
def second_command(case):
    """The same command again while the run trains: it waits, and goes on or gives up with exit code 74."""
    case.is_same_call = False
    run = case.begin()
    if not case.moment(run, ["record", "step", "state"]):
        case.end(run, [0])
        return
    mode = "auto" if case.mode == "path" else case.mode
    worker, paused = run.worker(), case.random.random() < 0.5
    if paused:
        send(worker, STOP)
    wait = case.random.choice(["100ms", "1s"])
    other = case.begin(["--retry-max", wait], mode=mode)
    case.disturbed += 1
    if case.random.random() < 0.3:
        time.sleep(0.05)
        case.stop(other)
    case.end(other, [STOPPED, TRANSIENT, 0])
    if paused:
        send(worker, CONT)
    case.end(run, [0])


def damage(case, path, ways=("truncated", "flipped", "emptied", "zeros", "half zeros", "removed")):
    """Damages a file; how."""
    data, way = bytearray(path.read_bytes()), case.random.choice(ways)
    at = int(case.random.random() * len(data))
    if way == "removed":
        path.unlink()
    else:
        if way == "flipped":
            # The header is small beside the tensors, and is met as often.
            at = at % 4096 if case.random.random() < 0.3 else at
            data[at] ^= 1 << case.random.randrange(8)
        elif way == "half zeros":
            data[at:] = bytes(len(data) - at)
        else:
            data = {"truncated": data[:at], "emptied": b"", "zeros": bytes(len(data))}[way]
        path.write_bytes(data)
    case.disturbed += 1
    case.note(f"{path.name} {way}" + (f" at byte {at}" if way in ("truncated", "flipped", "half zeros") else ""))
    return way


@kind
def mixed(case):
    """Signals, kills and a damaged state in turn."""
    for _ in range(case.random.randint(2, 5)):
        if case.finished():
            break
        run = case.begin()
        if not case.moment(run):
            case.end(run, [0])
            continue
        what = case.random.choice(["stop", "kill", "worker", "power", "quit"])
        if what == "stop":
            case.stop(run, targets=["program", "all", "worker"])
            case.end(run, [STOPPED])
        elif what in ("kill", "quit"):
            quit_or_kill(case, run, KILL if what == "kill" else QUIT)
        elif what == "worker":
            case.signal(run, KILL, "worker")
            if case.moment(run):
                case.stop(run)
            case.end(run, [STOPPED])
        else:
            case.power_off(run)
        states = case.folder.states()
        if len(states) > 1 and not case.folder.is_finished() and case.random.random() < 0.2:
            case.ended_orphans()
            case.damaged += 1
            damage(case, states[-1])
