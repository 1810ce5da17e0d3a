"""A small simulation of Modal that runs the container code, run.py, in local processes.

    python deploy/modal/local.py --root DIR --binary target/release/tiny-cats \\
        train dit data/cats --run-id ID --timeout 3600 --max-retries 3 --steps=1000

DIR/data and DIR/outputs stand for the volumes. Each attempt is a process with its own folder in DIR/containers, which
starts with a copy of the volume; only committed changes are kept. An interrupted (SIGINT, SIGTERM) or killed attempt
restarts with the same input, which does not count as a retry. A failed or timed out attempt is retried with backoff.
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
    """Copies the changes of `source` since `known` to `target`, file by file as a volume does.

    Returns the current times and sizes of the files: the next `known`.
    """
    current = {}
    for path in source.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink() or path.is_file():
                current[path.relative_to(source)] = (path.lstat().st_mtime_ns, path.lstat().st_size)
    temporary = target.parent / f".copy-{os.getpid()}"
    for name in [name for name, stat in current.items() if known.get(name) != stat]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source / name, temporary, follow_symlinks=False)
            os.replace(temporary, target / name)
    for name in known.keys() - current.keys():
        (target / name).unlink(missing_ok=True)
    return current


class Container:
    """The folder of a container: the data, and a copy of the output volume."""

    def __init__(self, call):
        self.root, self.known = Path(call["root"]), {}
        (self.root / "containers").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.root / "containers"))
        (folder / "data").symlink_to(self.root / "data")
        self.workspace = run.Workspace(folder, call["binary"])
        self.workspace.outputs.mkdir()
        self.reload()

    def reload(self):
        (self.root / "outputs").mkdir(exist_ok=True)
        self.known = sync(self.root / "outputs", self.workspace.outputs, self.known)

    def commit(self):
        self.known = sync(self.workspace.outputs, self.root / "outputs", self.known)
        states = sorted(path.name for path in self.known if "_step_" in path.name)
        with open(self.root / "commits.jsonl", "a", encoding="utf8") as file:
            file.write(json.dumps({"container": self.workspace.root.name, "states": states}) + "\n")


def attempt(call):
    """Runs one attempt; its process stands for a container."""
    run.SETTINGS["time"].update(call["time"])
    container = Container(call)
    try:
        result = run.train(call["task"], call["request"], container.workspace, container.commit)
        run.write_atomically(result_file(call), json.dumps({"result": result}))
    except run.AttemptError as error:
        run.write_atomically(result_file(call).parent / "error.json", json.dumps({"error": str(error)}))
        sys.exit(f"error: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(container.workspace.root, ignore_errors=True)


def result_file(call):
    return Path(call["root"]) / "calls" / call["id"] / "result.json"


def supervise(call):
    """Runs attempts of a call as Modal does, until one succeeds or no retries are left."""
    folder = result_file(call).parent
    run.write_atomically(folder / "pid", str(os.getpid()))
    # Adopts the children of a killed attempt, so that they can be killed too, as with a container.
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
        kill_children()
        if code == 0:
            return 0
        if code is not None and code < 0:
            print(f"interrupted by signal {-code}: restarting with the same input", file=sys.stderr)
            continue
        failures += 1
        if failures > call["max_retries"]:
            print(f"no retries left after {failures} failures", file=sys.stderr)
            error = run.read_json(folder / "error.json") or {"error": "timed out"}
            run.write_atomically(result_file(call), json.dumps(error))
            return 1
        reason = "timed out" if code is None else "failed"
        print(f"{reason}: retry {failures} of {call['max_retries']} in {delay:g} s", file=sys.stderr)
        time.sleep(delay)
        delay = min(delay * call["retries"]["backoff"], call["retries"]["most_delay_s"])


def kill_children():
    def children():
        return [
            int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if parent(stat) == os.getpid()
        ]

    while pids := children():
        for child in pids:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def state_and_parent(stat):
    """Returns the state and the parent of a process; ("Z", None) if it does not exist."""
    with contextlib.suppress(OSError):
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "Z", None


def parent(stat):
    return state_and_parent(stat)[1]


class LocalCall:
    """A call whose attempts are run by a supervisor process."""

    def __init__(self, root, id):
        self.id, self.folder = id, root / "calls" / id

    def get(self, timeout):
        end = time.monotonic() + timeout
        while True:
            # Check before reading the result: the supervisor exits after writing it.
            supervisor = run.read_json(self.folder / "pid")
            has_exited = supervisor is not None and state_and_parent(Path(f"/proc/{supervisor}/stat"))[0] == "Z"
            if (answer := run.read_json(self.folder / "result.json")) is not None:
                if "error" in answer:
                    raise run.PermanentError(answer["error"])
                return answer["result"]
            if has_exited:
                raise run.EngineKilled("the supervisor of this call was killed")
            if time.monotonic() >= end:
                raise TimeoutError
            time.sleep(0.05)


def sweep(args, common):
    container, root = Container(common), Path(common["root"])

    def spawn(task, request):
        call = {**common, "id": secrets.token_hex(4), "task": task, "request": request}
        run.write_atomically(result_file(call).parent / "call.json", json.dumps(call))
        supervisor = subprocess.Popen(
            [sys.executable, __file__, "--supervise", str(result_file(call).parent / "call.json")],
            start_new_session=True,
        )
        run.write_atomically(result_file(call).parent / "pid", str(supervisor.pid))
        return LocalCall(root, call["id"])

    request = options.build_request(args)
    request["train"]["device"] = None
    try:
        return run.sweep(
            request, container.workspace, container.commit, container.reload, spawn, lambda id: LocalCall(root, id)
        )
    finally:
        shutil.rmtree(container.workspace.root, ignore_errors=True)


def main(arguments):
    if arguments[:1] == ["--attempt"]:
        return attempt(json.load(sys.stdin))
    if arguments[:1] == ["--supervise"]:
        return supervise(json.loads(Path(arguments[1]).read_text("utf8")))
    parser = options.Parser(prog="local.py", add_help=False)
    parser.add_argument("--root", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--heartbeat", type=float, default=run.SETTINGS["time"]["heartbeat_s"])
    parser.add_argument("--initial-delay", type=float, default=run.SETTINGS["retries"]["initial_delay_s"])
    local, rest = parser.parse_known_args(arguments)
    args = options.parse(rest)
    common = {
        "id": secrets.token_hex(4),
        "root": str(Path(local.root).resolve()),
        "binary": str(Path(local.binary).resolve()),
        "time": {"heartbeat_s": local.heartbeat},
        "retries": {**run.SETTINGS["retries"], "initial_delay_s": local.initial_delay},
    }
    if args.command not in ("train", "sweep"):
        parser.error(f"{args.command}: run tiny-cats directly instead")
    common["max_retries"] = args.max_retries
    if args.command == "sweep":
        try:
            print(sweep(args, common))
            return 0
        except run.AttemptError as error:
            sys.exit(f"error: {error}")
    return supervise({**common, "task": args.task, "request": {**options.build_request(args), "device": None}})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
