"""What runs in the cloud, and knows nothing of it: the engine as a child process, watched, stopped and
accounted for.

A container makes *attempts* at a run. Between two of them only what was committed to the volume is left, and
that is all the next one goes by: the engine's training states, and `cloud.json` beside them, which says what
happened and what it cost.

Only the standard library is imported; local.py runs the same here, without Modal.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import deque
from pathlib import Path

SETTINGS = tomllib.loads((Path(__file__).parent / "settings.toml").read_text("utf8"))
# The engine's exit codes: it gave up on what may pass; it was stopped, and can go on.
TRANSIENT, STOPPED = 74, 75


# --- How an attempt ends other than well ---


class Ended(Exception):
    """An attempt that did not finish the run."""

    outcome, status, permanent = "failed", "stopped", False


class Unfinished(Ended):
    """Its time was up: the next attempt goes on."""

    outcome = "timed out"


class Killed(Ended):
    """Something killed the engine: the next attempt goes on."""


class MayPass(Ended):
    """The engine gave up on an error that may pass: the next attempt goes on, perhaps on another machine."""


class BudgetSpent(Ended):
    """What it may cost is spent: a new call with a larger budget goes on."""

    outcome, permanent = "budget", True


class Failed(Ended):
    """Trying again would fail again."""

    status, permanent = "failed", True


# --- Where things are ---


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the engine works: the folder with the volumes, so that `data/cats` means there what it means at
    home."""

    root: Path = Path("/")
    binary: str = "tiny-cats"
    libraries: str = ""
    threads: int | None = None  # to compute with; a container sees all its host's cores and may use few

    @property
    def outputs(self):
        return self.root / "outputs"

    def put(self, files):
        """Writes files that were read at home to where the engine looks for them."""
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text, "utf8")

    def options(self):
        """Where a process works, and the environment without what would let it act as the user."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "AWS_"))}
        if self.libraries:
            own["LD_LIBRARY_PATH"] = ":".join(filter(None, [own.get("LD_LIBRARY_PATH"), self.libraries]))
        if self.threads:
            own.setdefault("RAYON_NUM_THREADS", str(self.threads))
        return {"cwd": self.root, "env": own, "encoding": "utf8", "errors": "replace"}

    def run(self, arguments, **options):
        return subprocess.run([self.binary, *arguments], **self.options(), **options)


def write_atomically(path, text):
    """Writes a file so that a reader sees all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with open(new, "w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.replace(new, path)
    except OSError as error:  # some network mounts cannot rename over a file
        print(f"{path}: renaming failed ({error}), written in place", file=sys.stderr)
        path.write_text(text, "utf8")
        with contextlib.suppress(OSError):
            new.unlink()


def read_json(path):
    """What a file holds; None where there is none, or no JSON."""
    try:
        return json.loads(path.read_text("utf8"))
    except (OSError, ValueError):
        return None


def read_kept(path, check, otherwise):
    """What a file holds that only this program writes; {} where there is none. One that is damaged is left as
    it is: beginning it anew could cost money twice."""
    try:
        kept = json.loads(path.read_text("utf8"))
        check(kept)
        return kept
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"[:100]
        raise Failed(f"{path.name} is damaged: {why}, {otherwise}") from None


# --- Prices ---


def gpus_here():
    """The GPUs' names, by their driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        out = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in out.splitlines() if line.strip()]


def words(name):
    """Those of a GPU's name: it is an NVIDIA A100-SXM4-40GB to its driver."""
    return set(re.split(r"[\s-]+", name))


def card(gpu):
    """What A10:2 and H100! are: the price is that of the card."""
    return gpu.partition(":")[0].rstrip("!")


def count_of(gpu):
    return int(gpu.partition(":")[2] or 1)


def hourly(devices, gpu, asked, listed, region=None):
    """Dollars an hour of a container that has these GPUs, having asked for `gpu`; None where nobody knows.

    `asked` is what the caller says of whole containers, {"A10": 1.42} or {"A10": {"hour": 1.42, "device":
    "A10"}}, the device being words that the card has in its name; `listed` is what `tiny-cats plan prices
    --json` says of a GPU, a core and a GiB where Modal chooses the region.
    """
    known = {}
    for name, row in ((listed or {}).get("gpus") or {}).items():
        known.update({alias: row for alias in (name, *row.get("aliases", []))})
    if asked:
        rows = {name: row if isinstance(row, dict) else {"hour": row} for name, row in asked.items()}
    elif known and devices:
        container = SETTINGS["container"]
        rest = container["cpu"] * listed["cpu_core_hour"]
        rest += container["memory_mib"] / 1024 * listed["memory_gib_hour"]
        times = SETTINGS["price"]["region"] if region else 1
        rows = {
            name: {**row, "hour": (row["hour"] * len(devices) + rest) * times} for name, row in known.items()
        }
    else:
        return None
    # Of several prices of a card, for one and for two of them, the highest.
    dearest = sorted(rows.items(), key=lambda item: item[1]["hour"])
    rows, fits = {card(name): row for name, row in dearest}, []
    for name, row in rows.items():
        device = row.get("device") or known.get(name, {}).get("device") or name.replace("-", " ")
        if devices and words(device) <= words(devices[0]):
            fits.append((len(words(device)), row["hour"]))
    if fits:  # "A100 40GB" says more than "A100"
        return max(fits)[1]
    # A card under another name counts as the dearest that was asked for, so that a budget holds.
    may_be = [rows.get(card(name)) for name in gpu.split(",")]
    return None if None in may_be else max(row["hour"] for row in may_be)


def price(place, request):
    """The GPU that this container really has, and its dollars an hour."""
    devices, listed = gpus_here(), None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = place.run(["plan", "prices", "--json"], capture_output=True, timeout=60)
        listed = json.loads(answer.stdout) if answer.returncode == 0 else None
    asked = request.get("prices")
    return (devices or [None])[0], hourly(devices, request["gpu"], asked, listed, request.get("region"))


# --- The record ---


def check_record(known):
    """Raises where what is counted on is not there."""
    numbers = [known.get(name, 0) for name in ("heartbeat", "heartbeat_s")]
    for attempt in known["attempts"]:
        numbers.append(attempt["begun"])
        # None: it still runs, and its price is unknown.
        numbers += [attempt[name] for name in ("ended", "price_per_hour") if attempt[name] is not None]
        if not isinstance(attempt["outcome"], str):
            raise ValueError("expected an outcome")
    if not known["attempts"] or not all(number >= 0 and math.isfinite(number) for number in numbers):
        raise ValueError("expected attempts with times and prices")


class Record:
    """`cloud.json` in a run's folder."""

    def __init__(self, path, request):
        self.path, self.lock = path, threading.Lock()
        known = read_kept(path, check_record, "remove it to begin its accounts anew")
        self.attempts = known.get("attempts", [])
        self.heartbeat = known.get("heartbeat")
        self.status, self.error, self.by = known.get("status"), known.get("error"), known.get("call")
        self.request = request
        # A container that is gone leaves "running" behind, but no fresh heartbeat.
        life = 3 * (known.get("heartbeat_s") or SETTINGS["time"]["heartbeat_s"])
        left = (self.heartbeat or 0) + life - time.time()
        if self.status == "running" and self.by != request["call"] and left > 0:
            raise Failed(f"another call trains this run; if it is gone, try again in {left:.0f} s")

    def begin(self, device, dollars_per_hour):
        """Notes a new attempt. One before it that has no end was killed, after its heartbeat."""
        for attempt in self.attempts:
            if attempt["ended"] is None:
                attempt.update(ended=max(self.heartbeat or 0, attempt["begun"]), outcome="lost")
        self.attempts.append(
            {
                "begun": time.time(),
                "ended": None,
                "gpu": device,
                "price_per_hour": dollars_per_hour,
                "container": os.environ.get("MODAL_TASK_ID"),
                "outcome": "running",
            }
        )
        self.status, self.error = "running", None
        self.save()

    def end(self, outcome, status, error=None):
        self.attempts[-1].update(ended=time.time(), outcome=outcome)
        self.status, self.error = status, error
        self.save()

    def seconds(self, attempt):
        return max(0.0, (attempt["ended"] or time.time()) - attempt["begun"])

    def dollars(self, otherwise=None):
        """What all attempts cost so far, those of unknown price at another; None if there is none either."""
        prices = [attempt["price_per_hour"] or otherwise for attempt in self.attempts]
        if None in prices:
            return None
        return sum(
            self.seconds(attempt) * price / 3600 for attempt, price in zip(self.attempts, prices, strict=True)
        )

    def seconds_left(self, budget):
        """How long the budget lasts at this container's price."""
        price = self.attempts[-1]["price_per_hour"]
        if price is None:
            raise Failed("--max-cost needs a price, and none is known for this GPU: give --price-per-hour")
        return (budget - self.dollars(price)) * 3600 / price

    def spent(self):
        dollars = self.dollars(self.attempts[-1]["price_per_hour"])
        return f"${dollars:.2f} of ${self.request['max_cost']:g} are spent; a larger --max-cost goes on"

    def summary(self):
        dollars = self.dollars()
        return {
            "status": self.status,
            "preemptions": sum(attempt["outcome"] == "preempted" for attempt in self.attempts),
            "seconds": round(sum(map(self.seconds, self.attempts)), 3),
            "dollars": None if dollars is None else round(dollars, 6),
        }

    def save(self):
        with self.lock:
            self.heartbeat = time.time()
            record = {
                "provider": "modal",
                "app": SETTINGS["app"]["name"],
                "call": self.request["call"],
                "region": self.request.get("region") or os.environ.get("MODAL_REGION"),
                **self.summary(),
                "error": self.error,
                "gpu": self.request["gpu"],
                "price_per_hour": self.attempts[-1]["price_per_hour"],
                "max_cost": self.request.get("max_cost"),
                "attempts": self.attempts,
                "heartbeat": self.heartbeat,
                "heartbeat_s": SETTINGS["time"]["heartbeat_s"],
            }
            write_atomically(self.path, json.dumps(record, indent=2) + "\n")


# --- An attempt ---


def refuse_credentials(words):
    """An address with a password in it would be in every log."""
    # What is before a host; or a colon and later an @, since a password may hold anything, a / as well.
    for word in words:
        if re.search(r"://([^/?#]*|.*:.*)@", word, re.DOTALL):
            raise Failed(
                "an address must not hold credentials: keep them in a Modal secret (TINY_CATS_SECRETS)"
            )


def train(task, request, place, commit):
    """Begins a run or goes on with it, and returns what it came to only if it is finished. What else goes
    wrong is raised as Ended, by which a sweep tells it from trouble in asking after a call."""
    try:
        return trained(task, request, place, commit)
    except Ended:
        raise
    except Exception as error:
        raise Ended(f"{type(error).__name__}: {error}") from error


def trained(task, request, place, commit):
    folder = place.outputs / request.get("runs", "runs") / request["run"]
    request = {**request, "gpu": request.get("gpu") or SETTINGS["gpu"][task]}
    # By its count: the card that is there may be any of those that were asked for.
    cores = int(SETTINGS["container"]["cpu"]) // count_of(request["gpu"])
    place = dataclasses.replace(place, threads=max(cores, 1))
    record = Record(folder / "cloud.json", request)
    # Modal tries every exception again. What this very call has met for good is met again at once, not
    # trained at thrice.
    if record.by == request["call"] and record.error is not None:
        raise (Failed if record.status == "failed" else BudgetSpent)(record.error)
    begun = time.monotonic()
    with sigterm_is_an_interrupt():
        record.begin(*price(place, request))
        outcome, status, error = "failed", "stopped", None
        try:
            commit()  # a kill leaves no time to say that this container was paid for
            with Heart(record, folder, commit):
                attempt(task, request, place, record, folder, begun)
            outcome, status = "finished", "finished"
        except Ended as ended:
            outcome, status, error = ended.outcome, ended.status, str(ended) if ended.permanent else None
            raise
        except KeyboardInterrupt:
            outcome = "preempted"  # and raised: a normal return would be reported as success
            raise
        except BaseException as stop:
            outcome = "cancelled" if type(stop).__name__ == "InputCancellation" else "failed"
            raise
        finally:
            with no_more_interrupts():
                record.end(outcome, status, error)
                commit()
    return {"run": request["run"], "folder": str(folder.relative_to(place.outputs)), **record.summary()}


def attempt(task, request, place, record, folder, begun):
    """Runs the engine once, and raises unless it has finished."""
    refuse_credentials(request["arguments"])
    times, timeout = SETTINGS["time"], request["timeout"]
    # Of a short timeout, no more than half is for stopping.
    limit = max(timeout - times["stop_before_s"], timeout / 2) - (time.monotonic() - begun)
    left = record.seconds_left(request["max_cost"]) if request.get("max_cost") else None
    if left is not None and left <= 0:
        raise BudgetSpent(record.spent())
    stop_after = limit if left is None else min(limit, left)
    place.put(request.get("files", {}))
    released = request.get("released") or folder.relative_to(place.root)
    arguments = ["train", task, *request["arguments"]]
    for flag, value in (("--device", request.get("device")), ("--num-workers", place.threads)):
        if value and not any(word.split("=")[0] == flag for word in arguments):
            arguments.append(f"{flag}={value}")
    arguments += [
        f"--runs-dir={folder.parent.relative_to(place.root)}",
        f"--run-id={folder.name}",
        f"--output={released}" + ("/cats_model.pt" if task == "classifier" else ""),
        f"--max-time={int(stop_after * 1000)}ms",
    ]
    code, said = engine(place, arguments)
    status = (read_json(folder / "run.json") or {}).get("status")
    if code == 0 and status != "finished":
        raise Failed(f"the engine reported success, but its record says {status}")
    if code == STOPPED and stop_after == left:
        raise BudgetSpent(record.spent())
    if code == STOPPED:
        raise Unfinished(f"stopped after {stop_after:.0f} s; the next attempt goes on")
    if code == TRANSIENT:
        raise MayPass(said or "the engine gave up on an error that may pass")
    if code < 0:
        raise Killed(f"the engine was killed by signal {-code}; the next attempt goes on")
    if code != 0:
        raise Failed(said or f"the engine ended with exit code {code}")


def engine(place, arguments):
    """Runs the engine to its end: its exit code, and the error it said last. When this process is
    interrupted, the engine is told to save and stop."""
    # In a session of its own: it is told by us alone, however long after an interrupt to all of a process group.
    child = subprocess.Popen(
        [place.binary, *arguments],
        **place.options(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said = deque(maxlen=200)

    def hand_on():
        for line in child.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            said.append(line.strip())

    reader = threading.Thread(target=hand_on, daemon=True)
    reader.start()
    try:
        code = child.wait()
        reader.join(5)
        lines = [line for line in said if line]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return code, (errors or lines or [""])[-1][:300]
    except BaseException:
        with no_more_interrupts():
            child.terminate()
            try:
                child.wait(SETTINGS["time"]["grace_s"])
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        raise


class Heart:
    """A thread that shows that the attempt lives, and commits training states as they come."""

    def __init__(self, record, folder, commit):
        self.record, self.folder, self.commit = record, folder, commit
        self.stop, self.seen = threading.Event(), self.states()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def states(self):
        return {path.name for path in self.folder.glob("*_step_*.safetensors")}

    def beat(self):
        while not self.stop.wait(SETTINGS["time"]["heartbeat_s"]):
            try:
                self.record.save()
                if (states := self.states()) != self.seen:
                    self.commit()
                    self.seen = states
            except Exception as error:  # the next one may do better, and the last commit must
                print(f"the volume could not be written: {error}", file=sys.stderr)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        with no_more_interrupts():
            self.stop.set()
            self.thread.join()


@contextlib.contextmanager
def signals(which, handler):
    """Handles signals in some way for a while; only a process's main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in which}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def sigterm_is_an_interrupt():
    return signals([signal.SIGTERM], signal.default_int_handler)


def no_more_interrupts():
    """What is being saved is saved: the kill comes soon enough."""
    return signals([signal.SIGINT, signal.SIGTERM], signal.SIG_IGN)


# --- Sweeps ---


def sweep(request, place, commit, reload, spawn, attach, ended=lambda error: False):
    """Has a sweep's jobs trained, so many at once, and collects what came of them. One that fails ends no
    other.

    `spawn(task, request)` begins a training and `attach(id)` finds it again; both give something with an `id`
    and `get(timeout)`, which raises the built-in TimeoutError while it runs, and Ended or what `ended` knows
    once it has failed. Anything else says nothing of the call, and ends this. The ids are kept in calls.json,
    so that no job is trained twice at once when this is begun anew.
    """
    place.put(request["train"]["files"])
    file = request["file"]
    answer = place.run(["sweep", file, "--dry-run", "--json"], stdout=subprocess.PIPE)
    if answer.returncode != 0:
        raise Failed(f"{file}: its jobs could not be told (exit code {answer.returncode})")
    jobs, folder = json.loads(answer.stdout), place.outputs / "runs/sweeps" / Path(file).stem
    shares = request.get("shares")
    if shares and (unnamed := [job["name"] for job in jobs if job["name"] not in shares]):
        raise Failed(f"--shares says nothing of {unnamed[0]}")

    def check(known):
        if not all(call.keys() >= {"id", "sweep"} for call in known.values()):
            raise ValueError("expected calls")

    calls = read_kept(folder / "calls.json", check, "remove it once no call of this sweep runs any more")

    def note(name, **what):
        calls[name] = {"sweep": request["call"], **what}
        write_atomically(folder / "calls.json", json.dumps(calls, indent=2) + "\n")
        commit()

    def status(name, file):
        return (read_json(folder / name / name / file) or {}).get("status")

    def share(name):
        if shares:
            return shares[name]
        return request["max_cost"] / len(jobs) if request["max_cost"] else None

    def poll(call, timeout):
        """What came of a call, None while it runs, and its error."""
        try:
            call.get(timeout=timeout)
        except TimeoutError:
            return None, None
        except Exception as error:
            if isinstance(error, Ended) or ended(error):
                return "failed", str(error)[:300] or type(error).__name__
            raise
        return "finished", None

    def begin(job):
        """The job's call, or None if there is nothing to do."""
        name, known = job["name"], calls.get(job["name"], {})
        own = known.get("sweep") == request["call"]
        if known and "outcome" not in known:
            call = attach(known["id"])
            if own or poll(call, 0)[0] is None:
                return call
        if own or status(name, "run.json") == "finished":
            return None
        if status(name, "cloud.json") == "failed" and not request["retry_failed"]:
            print(f"{name}: failed before; --retry-failed tries it again")
            return None
        _, task, *arguments = job["arguments"]
        runs = (folder / name).relative_to(place.outputs)
        asked = {
            **request["train"],
            "call": secrets.token_hex(8),
            "run": name,
            "runs": str(runs),
            "released": f"outputs/{runs}",
            "arguments": arguments + request["train"]["arguments"],
            "max_cost": share(name),
        }
        call = spawn(task, asked)
        note(name, id=call.id)
        print(f"{name}: {call.id}", flush=True)
        return call

    def collect(**options):
        """Has the program note in sweep.json what the jobs' folders hold."""
        reload()
        done = place.run(["sweep", file, "--runs-dir=outputs/runs", "--collect"], **options)
        commit()
        return done

    waiting, running = list(jobs), {}
    while waiting or running:
        while waiting and len(running) < request["parallel"]:
            job = waiting.pop(0)
            if call := begin(job):
                running[job["name"]] = call
        for name, call in list(running.items()):
            outcome, error = poll(call, 1)
            if outcome is None:
                continue
            note(name, id=call.id, outcome=outcome, **({"error": error} if error else {}))
            print(f"{name}: {error or outcome}", flush=True)
            del running[name]
            collect(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    collected = collect()
    finished = sum(status(job["name"], "run.json") == "finished" for job in jobs)
    if collected.returncode != 0 or finished == 0:
        raise Failed(f"{finished} of {len(jobs)} jobs are finished")
    return {"folder": str(folder.relative_to(place.outputs)), "jobs": len(jobs), "finished": finished}
