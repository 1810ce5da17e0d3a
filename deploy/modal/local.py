"""Modal in miniature: the very container code of run.py, in processes of this machine.

    python deploy/modal/local.py --root DIR --binary target/release/tiny-cats \\
        train dit data/cats --run-id ID --timeout 3600 --max-retries 3 --steps=1000

DIR/data and DIR/outputs stand for the volumes. An attempt is a process with a folder of its own below
DIR/containers, into which the volume is copied when it begins; only what it commits outlives it. One that is
interrupted (SIGINT, SIGTERM) or killed is followed by another with the same input, which is no retry; one
that fails or takes longer than its timeout is retried, after ever longer waits.
"""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import options
import run

PR_SET_CHILD_SUBREAPER = 36


def sync(source, target, known):
    """Brings to `target` what is new in `source` since `known`, file by file as a volume does, and returns
    what is known then."""
    now = {}
    for path in source.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink() or path.is_file():
                now[path.relative_to(source)] = (path.lstat().st_mtime_ns, path.lstat().st_size)
    new = target.parent / f".copy-{os.getpid()}"
    for name in [name for name, about in now.items() if known.get(name) != about]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source / name, new, follow_symlinks=False)
            os.replace(new, target / name)
    for name in known.keys() - now.keys():
        (target / name).unlink(missing_ok=True)
    return now


class Container:
    """A folder with the data and a copy of the volume."""

    def __init__(self, call):
        self.root, self.known = Path(call["root"]), {}
        (self.root / "containers").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.root / "containers"))
        (folder / "data").symlink_to(self.root / "data")
        self.place = run.Place(folder, call["binary"])
        self.place.outputs.mkdir()
        self.reload()

    def reload(self):
        (self.root / "outputs").mkdir(exist_ok=True)
        self.known = sync(self.root / "outputs", self.place.outputs, self.known)

    def commit(self):
        self.known = sync(self.place.outputs, self.root / "outputs", self.known)
        states = sorted(path.name for path in self.known if "_step_" in path.name)
        with open(self.root / "commits.jsonl", "a", encoding="utf8") as file:
            file.write(json.dumps({"container": self.place.root.name, "states": states}) + "\n")


def attempt(call):
    """The process that is a container."""
    run.SETTINGS["time"].update(call["time"])
    container = Container(call)
    try:
        result = run.train(call["task"], call["request"], container.place, container.commit)
        run.write_atomically(result_of(call), json.dumps({"result": result}))
    except run.Ended as ended:
        run.write_atomically(result_of(call).parent / "error.json", json.dumps({"error": str(ended)}))
        sys.exit(f"error: {type(ended).__name__}: {ended}")
    finally:
        shutil.rmtree(container.place.root, ignore_errors=True)


def result_of(call):
    return Path(call["root"]) / "calls" / call["id"] / "result.json"


def keep(call):
    """What Modal does with a call: attempt after attempt, until one succeeds or the retries are used up."""
    folder = result_of(call).parent
    run.write_atomically(folder / "pid", str(os.getpid()))
    # What a killed attempt leaves behind becomes this process's child, to end as it does with a container.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    failures, delay = 0, call["retries"]["initial_delay_s"]
    while True:
        process = subprocess.Popen([sys.executable, __file__, "--attempt"], stdin=subprocess.PIPE, text=True)
        run.write_atomically(folder / "attempt", str(process.pid))
        with process.stdin as stdin:
            json.dump(call, stdin)
        try:
            code = process.wait(call["request"]["timeout"])
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
        end_children()
        if code == 0:
            return 0
        if code is not None and code < 0:
            print(f"interrupted by signal {-code}: the same input again", file=sys.stderr)
            continue
        failures += 1
        if failures > call["max_retries"]:
            print(f"given up after {failures} failures", file=sys.stderr)
            error = run.read_json(folder / "error.json") or {"error": "it took too long"}
            run.write_atomically(result_of(call), json.dumps(error))
            return 1
        why = "timed out" if code is None else "failed"
        print(f"{why}: retry {failures} of {call['max_retries']} in {delay:g} s", file=sys.stderr)
        time.sleep(delay)
        delay = min(delay * call["retries"]["backoff"], call["retries"]["most_delay_s"])


def end_children():
    def children():
        return [
            int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if parent(stat) == os.getpid()
        ]

    while found := children():
        for child in found:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def state_and_parent(stat):
    """A process's state and its parent; Z, as if it were dead and not yet buried, where there is none."""
    with contextlib.suppress(OSError):
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "Z", None


def parent(stat):
    return state_and_parent(stat)[1]


class Spawned:
    """A call that is kept by a process of its own."""

    def __init__(self, root, id):
        self.id, self.folder = id, root / "calls" / id

    def get(self, timeout):
        end = time.monotonic() + timeout
        while True:
            # Before the result is read, since a keeper ends once it has written it.
            keeper = run.read_json(self.folder / "pid")
            alone = keeper is not None and state_and_parent(Path(f"/proc/{keeper}/stat"))[0] == "Z"
            if (answer := run.read_json(self.folder / "result.json")) is not None:
                if "error" in answer:
                    raise run.Failed(answer["error"])
                return answer["result"]
            if alone:
                raise run.Killed("nobody keeps this call any more")
            if time.monotonic() >= end:
                raise TimeoutError
            time.sleep(0.05)


def sweep(asked, common):
    container, root = Container(common), Path(common["root"])

    def spawn(task, request):
        call = {**common, "id": secrets.token_hex(4), "task": task, "request": request}
        run.write_atomically(result_of(call).parent / "call.json", json.dumps(call))
        keeper = subprocess.Popen(
            [sys.executable, __file__, "--keep", str(result_of(call).parent / "call.json")],
            start_new_session=True,
        )
        run.write_atomically(result_of(call).parent / "pid", str(keeper.pid))
        return Spawned(root, call["id"])

    request = options.request_of(asked)
    request["train"]["device"] = None
    try:
        return run.sweep(
            request, container.place, container.commit, container.reload, spawn, lambda id: Spawned(root, id)
        )
    finally:
        shutil.rmtree(container.place.root, ignore_errors=True)


def main(words):
    if words[:1] == ["--attempt"]:
        return attempt(json.load(sys.stdin))
    if words[:1] == ["--keep"]:
        return keep(json.loads(Path(words[1]).read_text("utf8")))
    parser = options.Parser(prog="local.py", add_help=False)
    parser.add_argument("--root", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--heartbeat", type=float, default=run.SETTINGS["time"]["heartbeat_s"])
    parser.add_argument("--initial-delay", type=float, default=run.SETTINGS["retries"]["initial_delay_s"])
    here, rest = parser.parse_known_args(words)
    asked = options.parse(rest)
    common = {
        "id": secrets.token_hex(4),
        "root": str(Path(here.root).resolve()),
        "binary": str(Path(here.binary).resolve()),
        "time": {"heartbeat_s": here.heartbeat},
        "retries": {**run.SETTINGS["retries"], "initial_delay_s": here.initial_delay},
    }
    if asked.command not in ("train", "sweep"):
        parser.error(f"{asked.command} is run by tiny-cats itself here")
    common["max_retries"] = asked.max_retries
    if asked.command == "sweep":
        try:
            print(sweep(asked, common))
            return 0
        except run.Ended as ended:
            sys.exit(f"error: {ended}")
    return keep({**common, "task": asked.task, "request": {**options.request_of(asked), "device": None}})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
