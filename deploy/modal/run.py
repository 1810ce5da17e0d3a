"""The container's code, independent of the cloud provider: it runs the engine, the program `tiny-cats`, as a child
process, stops it in time and records its cost.

A run consists of *attempts*, one per container. The next attempt sees only what was committed to the volume: the
engine's training states and `cloud.json`, the record of all attempts and their cost.

It imports only the standard library, so that local.py can run it without Modal.
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
# The engine's exit codes: a transient error outlasted its retries; it was stopped and can be resumed.
EXIT_TRANSIENT, EXIT_STOPPED = 74, 75


# --- Errors ---


class AttemptError(Exception):
    """An attempt that ended before the run was finished."""

    outcome, status, permanent = "failed", "stopped", False


class TimeLimitReached(AttemptError):
    """The attempt reached its time limit; the next attempt resumes."""

    outcome = "timed out"


class EngineKilled(AttemptError):
    """The engine was killed; the next attempt resumes."""


class TransientError(AttemptError):
    """A transient error outlasted the engine's retries; the next attempt resumes, perhaps on another machine."""


class BudgetExhausted(AttemptError):
    """The budget is spent; a new call with a larger budget resumes."""

    outcome, permanent = "budget", True


class PermanentError(AttemptError):
    """An error that a retry would repeat."""

    status, permanent = "failed", True


# --- Files and processes ---


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The engine's working directory, which contains the volumes: `data/cats` means the same as on the user's machine."""

    root: Path = Path("/")
    binary: str = "tiny-cats"
    libraries: str = ""
    threads: int | None = None  # number of compute threads; a container sees all cores of its host but may use fewer

    @property
    def outputs(self):
        return self.root / "outputs"

    def write_files(self, files):
        """Writes the files from the user's machine to the paths where the engine looks for them."""
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text, "utf8")

    def process_options(self):
        """Options of subprocess: the working directory, and the environment without the user's credentials."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "AWS_"))}
        if self.libraries:
            paths = [variables.get("LD_LIBRARY_PATH"), self.libraries]
            variables["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
        if self.threads:
            variables.setdefault("RAYON_NUM_THREADS", str(self.threads))
        return {"cwd": self.root, "env": variables, "encoding": "utf8", "errors": "replace"}

    def run(self, arguments, **options):
        return subprocess.run([self.binary, *arguments], **self.process_options(), **options)


def write_atomically(path, text):
    """Writes a file so that readers see either the old or the new contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with open(new, "w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.replace(new, path)
    except OSError as error:  # some network mounts cannot replace a file by renaming
        print(f"{path}: renaming failed ({error}), written in place", file=sys.stderr)
        path.write_text(text, "utf8")
        with contextlib.suppress(OSError):
            new.unlink()


def read_json(path):
    """Reads a JSON file; returns None if it is missing or invalid."""
    try:
        return json.loads(path.read_text("utf8"))
    except (OSError, ValueError):
        return None


def read_state_file(path, check, advice):
    """Reads a JSON file that only this program writes; returns {} if it is missing.

    A damaged file raises an error and stays: starting over could spend money twice.
    """
    try:
        state = json.loads(path.read_text("utf8"))
        check(state)
        return state
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:100]
        raise PermanentError(f"{path.name} is damaged: {reason}; {advice}") from None


# --- Prices ---


def visible_gpus():
    """The names of this container's GPUs, as reported by the driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def name_words(name):
    """The words of a GPU's name, such as the driver's `NVIDIA A100-SXM4-40GB`."""
    return set(re.split(r"[\s-]+", name))


def gpu_type(gpu):
    """The GPU's type without count and `!`: `A10` for `A10:2`. Prices are by type."""
    return gpu.partition(":")[0].rstrip("!")


def gpu_count(gpu):
    return int(gpu.partition(":")[2] or 1)


def hourly_price(devices, gpu, prices, price_list, region=None):
    """Dollars per hour of a container with the GPUs `devices` that was requested with `gpu`; None if unknown.

    `prices` are the caller's prices of containers by GPU, {"A10": 1.42} or {"A10": {"hour": 1.42, "device": "A10"}},
    where `device` is words of the driver's name. `price_list` is the output of `tiny-cats plan prices --json`: prices
    of a GPU, a core and a GiB, without a requested region.
    """
    known = {}
    for name, row in ((price_list or {}).get("gpus") or {}).items():
        known.update({alias: row for alias in (name, *row.get("aliases", []))})
    if prices:
        rows = {name: row if isinstance(row, dict) else {"hour": row} for name, row in prices.items()}
    elif known and devices:
        container = SETTINGS["container"]
        rest = container["cpu"] * price_list["cpu_core_hour"]
        rest += container["memory_mib"] / 1024 * price_list["memory_gib_hour"]
        factor = SETTINGS["price"]["region"] if region else 1
        rows = {
            name: {**row, "hour": (row["hour"] * len(devices) + rest) * factor} for name, row in known.items()
        }
    else:
        return None
    # A GPU can have several prices, such as for one and for two of them: use the highest.
    by_price = sorted(rows.items(), key=lambda item: item[1]["hour"])
    rows, matches = {gpu_type(name): row for name, row in by_price}, []
    for name, row in rows.items():
        device = row.get("device") or known.get(name, {}).get("device") or name.replace("-", " ")
        if devices and name_words(device) <= name_words(devices[0]):
            matches.append((len(name_words(device)), row["hour"]))
    if matches:  # "A100 40GB" is more specific than "A100"
        return max(matches)[1]
    # Assume the most expensive requested GPU for an unknown name, so that the cost stays below the budget.
    requested = [rows.get(gpu_type(name)) for name in gpu.split(",")]
    return None if None in requested else max(row["hour"] for row in requested)


def gpu_and_price(workspace, request):
    """The name of this container's GPU and the container's price in dollars per hour."""
    devices, price_list = visible_gpus(), None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = workspace.run(["plan", "prices", "--json"], capture_output=True, timeout=60)
        price_list = json.loads(answer.stdout) if answer.returncode == 0 else None
    price = hourly_price(devices, request["gpu"], request.get("prices"), price_list, request.get("region"))
    return (devices or [None])[0], price


# --- The record ---


def check_record(record):
    """Raises an error if the record lacks a required field or has an invalid value."""
    numbers = [record.get(name, 0) for name in ("heartbeat", "heartbeat_s")]
    for attempt in record["attempts"]:
        numbers.append(attempt["begun"])
        # None: the attempt has not ended, or its price is unknown.
        numbers += [attempt[name] for name in ("ended", "price_per_hour") if attempt[name] is not None]
        if not isinstance(attempt["outcome"], str):
            raise ValueError("expected an outcome")
    if not record["attempts"] or not all(number >= 0 and math.isfinite(number) for number in numbers):
        raise ValueError("expected attempts with times and prices")


class Record:
    """`cloud.json` in a run's folder."""

    def __init__(self, path, request):
        self.path, self.lock = path, threading.Lock()
        record = read_state_file(path, check_record, "remove it to start a new record")
        self.attempts = record.get("attempts", [])
        self.heartbeat = record.get("heartbeat")
        self.status, self.error, self.call = record.get("status"), record.get("error"), record.get("call")
        self.request = request
        # A killed container leaves the status "running", but its heartbeat becomes old.
        timeout = 3 * (record.get("heartbeat_s") or SETTINGS["time"]["heartbeat_s"])
        remaining = (self.heartbeat or 0) + timeout - time.time()
        if self.status == "running" and self.call != request["call"] and remaining > 0:
            raise PermanentError(f"another call trains this run; if it was killed, retry in {remaining:.0f} s")

    def start_attempt(self, device, dollars_per_hour):
        """Records a new attempt. An earlier attempt without an end was killed after its last heartbeat."""
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

    def end_attempt(self, outcome, status, error=None):
        self.attempts[-1].update(ended=time.time(), outcome=outcome)
        self.status, self.error = status, error
        self.save()

    def seconds(self, attempt):
        return max(0.0, (attempt["ended"] or time.time()) - attempt["begun"])

    def dollars(self, default_price=None):
        """The cost of all attempts, with a default for unknown prices; None if a price is unknown without a default."""
        prices = [attempt["price_per_hour"] or default_price for attempt in self.attempts]
        if None in prices:
            return None
        return sum(
            self.seconds(attempt) * price / 3600 for attempt, price in zip(self.attempts, prices, strict=True)
        )

    def seconds_left(self, budget):
        """The seconds that the budget lasts at this container's price."""
        price = self.attempts[-1]["price_per_hour"]
        if price is None:
            raise PermanentError("--max-cost needs a price, but the price of this GPU is unknown: pass --price-per-hour")
        return (budget - self.dollars(price)) * 3600 / price

    def budget_message(self):
        dollars = self.dollars(self.attempts[-1]["price_per_hour"])
        return f"spent ${dollars:.2f} of ${self.request['max_cost']:g}; pass a larger --max-cost to resume"

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
    """Raises an error if a URL contains credentials, which would appear in logs."""
    # Matches user information before the host, or a colon followed by an @: a password may contain a slash.
    for word in words:
        if re.search(r"://([^/?#]*|.*:.*)@", word, re.DOTALL):
            raise PermanentError(
                "a URL must not contain credentials: put them into a Modal secret (TINY_CATS_SECRETS)"
            )


def train(task, request, workspace, commit):
    """Starts or resumes a run, and returns its summary if it is finished.

    All other errors become AttemptError, so that a sweep can distinguish a failed job from an unknown status.
    """
    try:
        return run_attempt(task, request, workspace, commit)
    except AttemptError:
        raise
    except Exception as error:
        raise AttemptError(f"{type(error).__name__}: {error}") from error


def run_attempt(task, request, workspace, commit):
    """Runs one attempt and records it in `cloud.json`; commits the volume however it ends."""
    folder = workspace.outputs / request.get("runs", "runs") / request["run"]
    request = {**request, "gpu": request.get("gpu") or SETTINGS["gpu"][task]}
    # All acceptable GPUs have the same count.
    cores = int(SETTINGS["container"]["cpu"]) // gpu_count(request["gpu"])
    workspace = dataclasses.replace(workspace, threads=max(cores, 1))
    record = Record(folder / "cloud.json", request)
    # Modal retries every exception: raise a permanent error of this call again without training again.
    if record.call == request["call"] and record.error is not None:
        raise (PermanentError if record.status == "failed" else BudgetExhausted)(record.error)
    start = time.monotonic()
    with sigterm_as_interrupt():
        record.start_attempt(*gpu_and_price(workspace, request))
        outcome, status, error = "failed", "stopped", None
        try:
            commit()  # so that the cost of a killed container is recorded
            with Heartbeat(record, folder, commit):
                run_engine_once(task, request, workspace, record, folder, start)
            outcome, status = "finished", "finished"
        except AttemptError as e:
            outcome, status, error = e.outcome, e.status, str(e) if e.permanent else None
            raise
        except KeyboardInterrupt:
            outcome = "preempted"  # raised again: Modal would take a normal return for success
            raise
        except BaseException as e:
            outcome = "cancelled" if type(e).__name__ == "InputCancellation" else "failed"
            raise
        finally:
            with ignore_interrupts():
                record.end_attempt(outcome, status, error)
                commit()
    return {"run": request["run"], "folder": str(folder.relative_to(workspace.outputs)), **record.summary()}


def run_engine_once(task, request, workspace, record, folder, start):
    """Runs the engine; raises an error unless the run is finished."""
    refuse_credentials(request["arguments"])
    times, timeout = SETTINGS["time"], request["timeout"]
    # Reserve at most half of a short timeout for stopping.
    limit = max(timeout - times["stop_before_s"], timeout / 2) - (time.monotonic() - start)
    budget_s = record.seconds_left(request["max_cost"]) if request.get("max_cost") else None
    if budget_s is not None and budget_s <= 0:
        raise BudgetExhausted(record.budget_message())
    stop_after = limit if budget_s is None else min(limit, budget_s)
    workspace.write_files(request.get("files", {}))
    released = Path(request.get("released") or folder.relative_to(workspace.root))
    arguments = ["train", task, *request["arguments"]]
    for flag, value in (("--device", request.get("device")), ("--num-workers", workspace.threads)):
        if value and not any(word.split("=")[0] == flag for word in arguments):
            arguments.append(f"{flag}={value}")
    arguments += [
        f"--runs-dir={folder.parent.relative_to(workspace.root)}",
        f"--run-id={folder.name}",
        f"--output={released / SETTINGS['tasks'][task]}",
        f"--max-time={int(stop_after * 1000)}ms",
    ]
    code, message = run_engine(workspace, arguments)
    status = (read_json(folder / "run.json") or {}).get("status")
    if code == 0 and status != "finished":
        raise PermanentError(f"the engine exited with 0, but run.json has the status {status}")
    if code == EXIT_STOPPED and stop_after == budget_s:
        raise BudgetExhausted(record.budget_message())
    if code == EXIT_STOPPED:
        raise TimeLimitReached(f"stopped after {stop_after:.0f} s; the next attempt resumes")
    if code == EXIT_TRANSIENT:
        raise TransientError(message or "a transient error outlasted the engine's retries")
    if code < 0:
        raise EngineKilled(f"the engine was killed by signal {-code}; the next attempt resumes")
    if code != 0:
        raise PermanentError(message or f"the engine exited with {code}")


def run_engine(workspace, arguments):
    """Runs the engine and returns its exit code and last error message.

    If this process is interrupted, it sends SIGTERM to the engine, which saves and stops.
    """
    # A new session, so that only this process signals the engine, not a signal to the process group.
    child = subprocess.Popen(
        [workspace.binary, *arguments],
        **workspace.process_options(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    last_lines = deque(maxlen=200)

    def forward_stderr():
        for line in child.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last_lines.append(line.strip())

    reader = threading.Thread(target=forward_stderr, daemon=True)
    reader.start()
    try:
        code = child.wait()
        reader.join(5)
        lines = [line for line in last_lines if line]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return code, (errors or lines or [""])[-1][:300]
    except BaseException:
        with ignore_interrupts():
            child.terminate()
            try:
                child.wait(SETTINGS["time"]["grace_s"])
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        raise


class Heartbeat:
    """A thread that updates the record's heartbeat and commits new training states."""

    def __init__(self, record, folder, commit):
        self.record, self.folder, self.commit = record, folder, commit
        self.stop, self.committed = threading.Event(), self.state_names()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def state_names(self):
        return {path.name for path in self.folder.glob("*_step_*.safetensors")}

    def run(self):
        while not self.stop.wait(SETTINGS["time"]["heartbeat_s"]):
            try:
                self.record.save()
                if (names := self.state_names()) != self.committed:
                    self.commit()
                    self.committed = names
            except Exception as error:  # the next heartbeat retries; errors of the final commit are raised
                print(f"cannot write to the volume: {error}", file=sys.stderr)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        with ignore_interrupts():
            self.stop.set()
            self.thread.join()


@contextlib.contextmanager
def handle_signals(numbers, handler):
    """Sets the handler of signals within a `with` block. Outside the main thread, which alone can, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def sigterm_as_interrupt():
    return handle_signals([signal.SIGTERM], signal.default_int_handler)


def ignore_interrupts():
    """Ignores SIGINT and SIGTERM, so that saving completes. SIGKILL still ends the container in time."""
    return handle_signals([signal.SIGINT, signal.SIGTERM], signal.SIG_IGN)


# --- Sweeps ---


def sweep(request, workspace, commit, reload, spawn, attach, is_call_error=lambda error: False):
    """Trains the jobs of a sweep, several at once, and collects their results. A failed job does not stop the others.

    `spawn(task, request)` starts a training and `attach(id)` returns an existing one. Both return an object with `id`
    and `get(timeout)`, which raises TimeoutError while the training runs. After a failure it raises AttemptError or an
    error for which `is_call_error` is true. Any other error means that the status is unknown, and ends the sweep. The
    ids are saved in calls.json, so that a restarted sweep does not train a job twice.
    """
    workspace.write_files(request["train"]["files"])
    file = request["file"]
    answer = workspace.run(["sweep", file, "--dry-run", "--json"], stdout=subprocess.PIPE)
    if answer.returncode != 0:
        raise PermanentError(f"{file}: cannot list its jobs (exit code {answer.returncode})")
    jobs, folder = json.loads(answer.stdout), workspace.outputs / "runs/sweeps" / Path(file).stem
    shares = request.get("shares")
    if shares and (missing := [job["name"] for job in jobs if job["name"] not in shares]):
        raise PermanentError(f"--shares has no entry for {missing[0]}")

    def check(calls):
        if not all(call.keys() >= {"id", "sweep"} for call in calls.values()):
            raise ValueError("expected calls")

    calls = read_state_file(folder / "calls.json", check, "remove it when no call of this sweep is running")

    def save_call(name, **fields):
        calls[name] = {"sweep": request["call"], **fields}
        write_atomically(folder / "calls.json", json.dumps(calls, indent=2) + "\n")
        commit()

    def status(name, file):
        return (read_json(folder / name / name / file) or {}).get("status")

    def max_cost(name):
        if shares:
            return shares[name]
        return request["max_cost"] / len(jobs) if request["max_cost"] else None

    def poll(call, timeout):
        """The outcome of a call, None while it runs, and its error."""
        try:
            call.get(timeout=timeout)
        except TimeoutError:
            return None, None
        except Exception as error:
            if isinstance(error, AttemptError) or is_call_error(error):
                return "failed", str(error)[:300] or type(error).__name__
            raise
        return "finished", None

    def start_job(job):
        """Starts the job or attaches to its call; returns None if there is nothing to do."""
        name, saved = job["name"], calls.get(job["name"], {})
        is_own = saved.get("sweep") == request["call"]
        if saved and "outcome" not in saved:
            call = attach(saved["id"])
            if is_own or poll(call, 0)[0] is None:
                return call
        if is_own or status(name, "run.json") == "finished":
            return None
        if status(name, "cloud.json") == "failed" and not request["retry_failed"]:
            print(f"{name}: failed in an earlier call; pass --retry-failed to retry it")
            return None
        _, task, *arguments = job["arguments"]
        runs = (folder / name).relative_to(workspace.outputs)
        job_request = {
            **request["train"],
            "call": secrets.token_hex(8),
            "run": name,
            "runs": str(runs),
            "released": f"outputs/{runs}",
            "arguments": arguments + request["train"]["arguments"],
            "max_cost": max_cost(name),
        }
        call = spawn(task, job_request)
        save_call(name, id=call.id)
        print(f"{name}: {call.id}", flush=True)
        return call

    def collect(**options):
        """Updates sweep.json with the results in the jobs' folders."""
        reload()
        result = workspace.run(["sweep", file, "--runs-dir=outputs/runs", "--collect"], **options)
        commit()
        return result

    waiting, running = list(jobs), {}
    while waiting or running:
        while waiting and len(running) < request["parallel"]:
            job = waiting.pop(0)
            if call := start_job(job):
                running[job["name"]] = call
        for name, call in list(running.items()):
            outcome, error = poll(call, 1)
            if outcome is None:
                continue
            save_call(name, id=call.id, outcome=outcome, **({"error": error} if error else {}))
            print(f"{name}: {error or outcome}", flush=True)
            del running[name]
            collect(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    collected = collect()
    finished = sum(status(job["name"], "run.json") == "finished" for job in jobs)
    if collected.returncode != 0 or finished == 0:
        raise PermanentError(f"{finished} of {len(jobs)} jobs finished")
    return {"folder": str(folder.relative_to(workspace.outputs)), "jobs": len(jobs), "finished": finished}
