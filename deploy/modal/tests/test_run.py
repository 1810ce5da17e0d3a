"""Tests of the container's code with the real program: interrupts, kills, timeouts and retries as at Modal.

TINY_CATS_BINARY_FOR_TESTS names the program that `cargo build` made.
"""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

MODAL = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(MODAL))

import run  # noqa: E402

# Shells start background jobs with SIGINT ignored, nohup ignores SIGHUP, and children inherit both. The tests send these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

BINARY = os.environ.get("TINY_CATS_BINARY_FOR_TESTS")
if not BINARY or not os.access(BINARY, os.X_OK):
    raise SystemExit("error: TINY_CATS_BINARY_FOR_TESTS must name the tiny-cats that `cargo build` made")

# Seconds until a test fails because a process hangs.
DEADLINE_S = 900
STEPS = 10
SMOKE = ["--config=smoke", "--size=nano", "--limit-files=24", "--save-interval=2", "--sample-interval=0"]
SECRETS = {
    "MODAL_TOKEN_ID": "ak-unseen",
    "MODAL_TOKEN_SECRET": "as-unseen",
    "AWS_SECRET_ACCESS_KEY": "aws-unseen",
}
RELEASED = ("tinydit_final.pt", "tinydit_final.safetensors")


def wait_for(condition, event, process=None, seconds=DEADLINE_S):
    """Waits for an event and returns the condition's result; the deadline is only for processes that hang."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process exited with {process.returncode} before {event}")
        if time.monotonic() > end:
            raise AssertionError(f"{event}: not within {seconds} s")
        time.sleep(0.02)
    return answer


class Cloud:
    """A folder with data, a fake `nvidia-smi`, and a script that logs the calls of the program."""

    def __init__(self, gpu=None):
        self.root = Path(tempfile.mkdtemp(prefix="tiny-cats-modal-"))
        (self.root / "data").symlink_to(DATA)
        self.binary = self.script(
            "tiny-cats", f'echo "$@" >>{self.root}/engine.txt; env >>{self.root}/env.txt; exec {BINARY} "$@"'
        )
        self.script("nvidia-smi", f'echo "{gpu}"' if gpu else "exit 9")
        self.log = self.root / "log.txt"
        self.calls_before, self.known = set(), set()

    def script(self, name, line):
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return path

    def pause_once(self, until, without="nothing"):
        """Pauses the engine once, after its first training state, while the shell command `until` runs.

        Removes arguments that match `without` from the engine's calls. Independent of the speed of this machine."""
        self.script(
            "tiny-cats",
            f'for word; do shift; case $word in {without}) ;; *) set -- "$@" "$word";; esac; done\n'
            f'[ "$1" = train ] && [ ! -e {self.root}/paused ] || exec {BINARY} "$@"\n'
            f'{BINARY} "$@" &\n'
            "engine=$!\n"
            "while kill -0 $engine && ! ls outputs/runs/r/*_step_* >/dev/null 2>&1; do sleep 0.02; done\n"
            f"touch {self.root}/paused\n"
            "worker=$(cat /proc/$engine/task/$engine/children)\n"
            f"kill -STOP $worker; {until}; kill -CONT $worker\n"
            "wait $engine",
        )

    def start(self, *words, heartbeat=0.05):
        command = [sys.executable, MODAL / "local.py", "--root", self.root, "--binary", self.binary]
        environment = {**os.environ, **SECRETS, "PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        self.calls_before = set(self.root.glob("calls/*"))
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [*map(str, command), f"--heartbeat={heartbeat}", "--initial-delay=0.05", *map(str, words)],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def train(self, *words, steps=STEPS, **options):
        words = ("--run-id=r", f"--steps={steps}", *SMOKE, *words)
        return self.start("train", "dit", "data/synth", *words, **options)

    def finish(self, process, code):
        """Waits for the end of a call and checks its exit code."""
        try:
            found = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            found = f"no exit within {DEADLINE_S} s"
        assert found == code, f"expected exit code {code}, found {found}:\n{self.log.read_text()[-3000:]}"

    def attempt(self, process, number):
        """Waits for the `number`th attempt and returns its process id."""

        def newest():
            calls = set(self.root.glob("calls/*")) - self.calls_before
            pids = {run.read_json(call / "attempt") for call in calls} - self.known - {None}
            return max(pids, default=None)

        pid = wait_for(newest, f"attempt {number}", process)
        self.known.add(pid)
        return pid

    def next_state(self, process):
        """Waits for a training state newer than those in the volume."""
        known = {path.name for path in (self.root / "outputs").rglob("*_step_*")}

        def newest():
            state = max(self.states(), default="")
            return state if state > max(known, default="") else None

        return wait_for(newest, "a training state", process)

    def await_commit(self, state, process):
        wait_for(lambda: state in self.commits()[-1], "its commit", process)

    def states(self):
        return {path.name for path in self.root.glob("containers/*/outputs/runs/r/*_step_*.safetensors")}

    def record(self, run_folder="runs/r"):
        return json.loads((self.root / "outputs" / run_folder / "cloud.json").read_text())

    def outcomes(self):
        return [attempt["outcome"] for attempt in self.record()["attempts"]]

    def trainings(self):
        lines = (self.root / "engine.txt").read_text().splitlines()
        return [line for line in lines if line.startswith("train ") and "--worker" not in line]

    def start_steps(self):
        """The steps from which the engine started or resumed, in order."""
        return [int(match[1]) for match in re.finditer(r"steps (\d+) to", self.log.read_text())]

    def released(self):
        return [(self.root / "outputs/runs/r" / name).read_bytes() for name in RELEASED]

    def committed(self):
        """The newest step that each container committed."""
        newest = {}
        for line in (self.root / "commits.jsonl").read_text().splitlines():
            commit = json.loads(line)
            states = [int(re.search(r"_step_(\d+)", name)[1]) for name in commit["states"]]
            newest[commit["container"]] = max(states, default=0)
        return list(newest.values())

    def commits(self):
        return [json.loads(line)["states"] for line in (self.root / "commits.jsonl").read_text().splitlines()]


def setUpModule():
    global DATA, HOME, REFERENCE, REFERENCE_S
    HOME = tempfile.TemporaryDirectory(prefix="tiny-cats-modal-")
    unittest.addModuleCleanup(HOME.cleanup)
    DATA = Path(HOME.name) / "data"
    subprocess.run(
        [BINARY, "data", "synth", DATA / "synth", "--per-class=8", "--size=32"],
        check=True,
        capture_output=True,
    )
    # The files released by an undisturbed run of the program.
    start = time.monotonic()
    subprocess.run(
        [
            BINARY,
            "train",
            "dit",
            "data/synth",
            f"--steps={STEPS}",
            *SMOKE,
            "--run-id=r",
            "--runs-dir=runs",
            "--output=runs/r",
        ],
        cwd=HOME.name,
        check=True,
        capture_output=True,
    )
    REFERENCE_S = time.monotonic() - start
    REFERENCE = [(Path(HOME.name) / "runs/r" / name).read_bytes() for name in RELEASED]


class Training(unittest.TestCase):
    def cloud(self, **options):
        cloud = Cloud(**options)
        self.addCleanup(shutil.rmtree, cloud.root, ignore_errors=True)
        return cloud

    def test_an_interrupted_run_releases_the_same_files_as_an_undisturbed_one(self):
        expected = ["preempted", "preempted", "lost", "finished"]
        # A run that finishes before a signal is repeated: a busy machine may delay this process for as long as a run takes.
        for _ in range(20):
            cloud = self.cloud()
            # Restarts after interrupts do not count as retries.
            process = cloud.train("--max-retries=0")
            with contextlib.suppress(AssertionError, ProcessLookupError):
                self.interrupt(cloud, process)
            cloud.finish(process, 0)
            if cloud.outcomes() == expected:
                break
        self.assertEqual(cloud.outcomes(), expected)
        record = cloud.record()
        self.assertEqual((record["status"], record["preemptions"], record["error"]), ("finished", 2, None))
        self.assertEqual(cloud.released(), REFERENCE)
        self.assertEqual(cloud.log.read_text().count("stopped at step"), 2, "the engine stops and is not killed")
        steps = cloud.start_steps()
        self.assertEqual(len(steps), 4)
        self.assertEqual(steps[0], 0)
        self.assertTrue(
            0 < steps[1] < steps[2] < steps[3], f"each attempt resumes where the last one stopped: {steps}"
        )
        for attempt in record["attempts"]:
            self.assertLessEqual(attempt["begun"], attempt["ended"])
        # Every training state was committed before the next one.
        committed = {state for states in cloud.commits() for state in states}
        self.assertLessEqual(
            {f"dit_step_{step:08}.safetensors" for step in range(2, STEPS + 1, 2)}, committed
        )

    def interrupt(self, cloud, process):
        """Interrupts the first two attempts and kills the third, each when it has written a training state."""
        for number, signal_number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), 1):
            attempt = cloud.attempt(process, number)
            newest = cloud.next_state(process)
            if signal_number == signal.SIGKILL:  # a killed attempt cannot commit, so wait for the heartbeat's commit
                cloud.await_commit(newest, process)
            os.kill(attempt, signal_number)

    def test_timed_out_attempts_are_retried_and_resume(self):
        cloud = self.cloud()
        # The engine gets half of the timeout, which is over after the pause.
        timeout = max(12, round(4 * REFERENCE_S))
        cloud.pause_once(f"sleep {timeout / 2}")
        cloud.finish(cloud.train("--max-retries=10", f"--timeout={timeout}"), 0)
        *before, last = cloud.outcomes()
        self.assertEqual((set(before), last), ({"timed out"}, "finished"))
        self.assertIn("retry 1 of 10", cloud.log.read_text())
        # A stopped attempt saves its last step: no step runs twice.
        stopped = [int(match[1]) for match in re.finditer(r"stopped at step (\d+)", cloud.log.read_text())]
        self.assertEqual(cloud.start_steps(), [0, *stopped])
        self.assertGreater(max(stopped), 0)
        self.assertEqual(cloud.released(), REFERENCE)

    def test_attempts_killed_by_the_timeout_resume_from_the_last_commit(self):
        cloud = self.cloud()
        # Without --max-time the engine does not stop by itself.
        cloud.pause_once("sleep 1000", without="--max-time=*")
        timeout = max(12, round(4 * REFERENCE_S))
        cloud.finish(cloud.train("--max-retries=10", f"--timeout={timeout}"), 0)
        *before, last = cloud.outcomes()
        self.assertEqual((set(before), last), ({"lost"}, "finished"))
        # With a training state every two steps, at most three steps run twice.
        starts, committed = cloud.start_steps(), cloud.committed()
        for start, state in zip(starts[1:], committed, strict=False):
            self.assertGreaterEqual(start, state)
        self.assertEqual((starts[0], committed[-1]), (0, STEPS))
        self.assertGreater(max(starts), 0)
        self.assertEqual(cloud.released(), REFERENCE)

    def test_transient_errors_are_retried_and_gpus_share_the_cores(self):
        cloud = self.cloud()
        cloud.script(
            "tiny-cats",
            f'[ "$1" = train ] || exit 1; echo "$RAYON_NUM_THREADS $@" >>{cloud.root}/engine.txt\n'
            f"[ $(wc -l <{cloud.root}/engine.txt) = 1 ] || exit 2; echo 'error: no disk' >&2; exit 74",
        )
        cloud.finish(cloud.train("--max-retries=1"), 1)
        self.assertEqual(cloud.outcomes(), ["failed", "failed"])
        log = cloud.log.read_text()
        self.assertIn("error: TransientError: no disk", log)
        self.assertIn("retry 1 of 1", log)
        lines = (cloud.root / "engine.txt").read_text().splitlines()
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertTrue(line.startswith("4 train dit ") and "--num-workers=4" in line, line)
        with mock.patch.dict(os.environ):
            os.environ.pop("RAYON_NUM_THREADS", None)
            for gpu, words, found in (
                ("A10:2", [], ("2", ["--num-workers=2"])),
                ("A10:8", [], ("1", ["--num-workers=1"])),
                ("T4", ["--num-workers", "7"], ("4", ["--num-workers"])),
            ):
                self.assertEqual(engine_arguments(gpu, words), found)
            os.environ["RAYON_NUM_THREADS"] = "3"
            self.assertEqual(engine_arguments("A10:2", [])[0], "3")

    def test_a_damaged_record_is_an_error_and_is_not_overwritten(self):
        request = {"call": "c", "run": "r", "arguments": [], "timeout": 60}
        attempt = {"begun": 1, "ended": None, "price_per_hour": None, "outcome": "running"}
        for text in (
            "",
            '{"attempts": [{"beg',
            "null",
            "[]",
            "{}",
            '{"attempts": [{}]}',
            '{"attempts": []}',
            json.dumps({"attempts": [{**attempt, "begun": "now"}]}),
            json.dumps({"attempts": [{**attempt, "price_per_hour": -1}]}),
            json.dumps({"attempts": [{**attempt, "outcome": None}]}),
            json.dumps({"attempts": [attempt], "heartbeat": "now"}),
        ):
            with tempfile.TemporaryDirectory() as folder, mock.patch.object(run, "run_engine") as engine:
                path = Path(folder) / "outputs/runs/r/cloud.json"
                path.parent.mkdir(parents=True)
                path.write_text(text)
                with self.assertRaisesRegex(run.PermanentError, "^cloud.json is damaged: .*; remove it to", msg=text):
                    run.train("dit", request, run.Workspace(Path(folder)), lambda: None)
                self.assertEqual(path.read_text(), text)
                engine.assert_not_called()

    def test_a_second_call_does_not_train_the_same_run(self):
        cloud = self.cloud()
        process = cloud.train(heartbeat=30)
        cloud.attempt(process, 1)
        cloud.next_state(process)
        wait_for(lambda: (cloud.root / "outputs/runs/r/cloud.json").exists(), "the record", process)
        other = cloud.train("--max-retries=0", heartbeat=30)
        self.assertEqual(other.wait(DEADLINE_S), 1)
        self.assertIsNone(process.poll(), "the first call still trains")
        self.assertIn("error: PermanentError: another call trains this run", cloud.log.read_text())
        self.assertEqual((cloud.outcomes(), cloud.record()["heartbeat_s"]), (["running"], 30))
        cloud.finish(process, 0)
        self.assertEqual((cloud.outcomes(), len(cloud.trainings())), (["finished"], 1))
        self.assertEqual(cloud.released(), REFERENCE)

    def test_a_run_with_an_old_heartbeat_can_be_resumed(self):
        for call, age, can_start in (("d", 0, False), ("d", 85, False), ("d", 91, True), ("c", 0, True)):
            with tempfile.TemporaryDirectory() as folder:
                path, now = Path(folder) / "cloud.json", time.time()
                attempt = {"begun": now - 100, "ended": None, "price_per_hour": 1, "outcome": "running"}
                known = {"status": "running", "call": call, "heartbeat": now - age, "heartbeat_s": 30}
                path.write_text(json.dumps({**known, "attempts": [attempt]}))
                with contextlib.nullcontext() if can_start else self.assertRaisesRegex(run.PermanentError, "another call"):
                    run.Record(path, {"call": "c", "gpu": "A10"}).start_attempt("A10", 1)
                outcomes = [attempt["outcome"] for attempt in run.read_json(path)["attempts"]]
                self.assertEqual(outcomes, ["lost", "running"] if can_start else ["running"])

    def test_the_engine_stops_before_the_timeout_or_is_killed(self):
        cloud = self.cloud()
        process = cloud.train("--max-retries=1", "--timeout=4", steps=100_000)
        cloud.finish(process, 1)
        self.assertEqual(cloud.outcomes(), ["timed out", "timed out"])
        self.assertEqual(cloud.record()["status"], "stopped")
        # An engine that hangs is killed together with its children.
        cloud.script(
            "tiny-cats", f'[ "$1" = train ] || exit 1; sleep 1000 & echo $! >{cloud.root}/sleeper; wait'
        )
        process = cloud.train("--max-retries=0", "--timeout=4")
        cloud.finish(process, 1)
        sleeper = int((cloud.root / "sleeper").read_text())
        self.assertFalse(Path(f"/proc/{sleeper}").exists())
        self.assertEqual(cloud.outcomes()[-1], "running", "a killed attempt cannot update the record")

    def test_a_permanent_error_starts_the_engine_once_per_call(self):
        cloud = self.cloud()
        words = ("train", "dit", "data/nothing", "--run-id=r", "--max-retries=2", *SMOKE)
        cloud.finish(cloud.start(*words), 1)
        self.assertEqual(len(cloud.trainings()), 1)
        record = cloud.record()
        self.assertEqual((record["status"], cloud.outcomes()), ("failed", ["failed"]))
        self.assertIn("data/nothing", record["error"])
        self.assertEqual(cloud.log.read_text().count("error: PermanentError: "), 3)
        cloud.finish(cloud.start(*words), 1)
        self.assertEqual(len(cloud.trainings()), 2)
        self.assertEqual(cloud.outcomes(), ["failed", "failed"])

    def test_a_spent_budget_stops_the_run_and_a_larger_one_resumes(self):
        cloud = self.cloud(gpu="NVIDIA A10")
        # One dollar per second; the prices of other GPUs must not count.
        price = '--price-per-hour={"A10": 3600, "A100": 9000, "L4": 1}'
        cloud.finish(cloud.train("--max-cost=0.7", price, "--max-retries=2"), 1)
        record = cloud.record()
        self.assertEqual((record["status"], cloud.outcomes()), ("stopped", ["budget"]))
        self.assertEqual(len(cloud.trainings()), 1)
        self.assertRegex(record["error"], r"^spent \$.* of \$0.7; ")
        # Without a remaining budget the engine does not start.
        cloud.finish(cloud.train("--max-cost=0.01", price, "--max-retries=0"), 1)
        self.assertEqual((len(cloud.trainings()), cloud.outcomes()), (1, ["budget", "budget"]))
        cloud.finish(cloud.train("--max-cost=1000", price), 0)
        record = cloud.record()
        self.assertEqual(cloud.outcomes(), ["budget", "budget", "finished"])
        self.assertEqual(cloud.released(), REFERENCE)
        seconds = sum(attempt["ended"] - attempt["begun"] for attempt in record["attempts"])
        self.assertAlmostEqual(record["seconds"], seconds, 2)
        self.assertAlmostEqual(record["dollars"], seconds, 2)
        self.assertEqual({attempt["gpu"] for attempt in record["attempts"]}, {"NVIDIA A10"})
        self.assertEqual((record["price_per_hour"], record["max_cost"]), (3600, 1000))

    def test_a_budget_without_a_price_is_an_error(self):
        cloud = self.cloud()
        cloud.finish(cloud.train("--max-cost=5"), 1)
        self.assertIn("--max-cost needs a price", cloud.record()["error"])
        self.assertEqual(cloud.trainings(), [])

    def test_tokens_reach_neither_the_engine_nor_a_file(self):
        cloud = self.cloud()
        cloud.finish(cloud.start("train", "dit", "data/nothing", "--run-id=r", "--max-retries=0"), 1)
        self.assertIn("PATH=", (cloud.root / "env.txt").read_text())
        written = [path for path in cloud.root.rglob("*") if path.is_file()]
        self.assertIn(cloud.log, written)
        for path in written:
            self.assertNotIn(b"unseen", path.read_bytes(), path)

    def test_all_errors_commit_and_are_raised(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        commits = []
        request = {"call": "c", "run": "r", "arguments": [], "timeout": 60}
        for error, raised, outcome in (
            (MemoryError, run.AttemptError, "failed"),
            (InputCancellation, InputCancellation, "cancelled"),
            (KeyboardInterrupt, KeyboardInterrupt, "preempted"),
        ):
            with mock.patch.object(run, "run_engine", side_effect=error), self.assertRaises(raised):
                run.train("dit", request, run.Workspace(folder), lambda: commits.append(1))
            record = json.loads((folder / "outputs/runs/r/cloud.json").read_text())
            self.assertEqual((record["status"], record["attempts"][-1]["outcome"]), ("stopped", outcome))
        self.assertEqual(len(commits), 6)
        # Exit code 0 without a finished record is an error.
        with (
            mock.patch.object(run, "run_engine", return_value=(0, "")),
            self.assertRaisesRegex(run.PermanentError, "run.json has the status None"),
        ):
            run.train("dit", request, run.Workspace(folder), lambda: None)


class InputCancellation(BaseException):
    """Has the name of Modal's exception."""


def engine_arguments(gpu, words):
    """The number of threads and the arguments about workers that the engine gets."""
    request = {"call": "c", "run": "r", "arguments": words, "timeout": 60, "gpu": gpu}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(run, "run_engine", side_effect=run.TimeLimitReached) as engine,
        contextlib.suppress(run.TimeLimitReached),
    ):
        run.train("dit", request, run.Workspace(Path(folder)), lambda: None)
    workspace, arguments = engine.call_args.args
    workers = [word for word in arguments if word.startswith("--num-workers")]
    return workspace.process_options()["env"]["RAYON_NUM_THREADS"], workers


class Prices(unittest.TestCase):
    PRICE_LIST = {
        "gpus": {
            "A10": {"hour": 1.10, "device": "A10"},
            "A100-40GB": {"hour": 2.10, "device": "A100 40GB", "aliases": ["A100"]},
        },
        "cpu_core_hour": 0.05,
        "memory_gib_hour": 0.01,
    }

    def hourly_price(self, devices, gpu="A10", prices=None, price_list=PRICE_LIST, region=None):
        return run.hourly_price(devices, gpu, prices, price_list, region)

    def test_the_price_includes_the_actual_gpu_cores_and_memory(self):
        rest = 4 * 0.05 + 16 * 0.01
        self.assertAlmostEqual(self.hourly_price(["NVIDIA A10"]), 1.10 + rest)
        for name in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 40GB PCIe"):
            self.assertAlmostEqual(self.hourly_price([name] * 2, "A10:2"), 4.20 + rest)
        self.assertAlmostEqual(
            self.hourly_price(["other GPU"], "A10,A100"), 2.10 + rest, msg="the most expensive requested GPU"
        )
        self.assertIsNone(self.hourly_price(["NVIDIA B300"], "A10,B300"))
        self.assertIsNone(self.hourly_price(["NVIDIA A10"], price_list=None))
        self.assertIsNone(self.hourly_price([]))

    def test_prices_of_the_caller_take_precedence(self):
        self.assertEqual(self.hourly_price(["NVIDIA A10"], prices={"A10": 9, "A100": 8}), 9)
        self.assertEqual(self.hourly_price(["NVIDIA A100-SXM4-40GB"], prices={"A10": 9, "A100:1": 8}), 8)
        prices = {"H200": {"hour": 7, "device": "H200"}, "H100": {"hour": 8, "device": "H100"}}
        self.assertEqual(self.hourly_price(["NVIDIA H200"], prices=prices, price_list=None), 7)
        self.assertEqual(self.hourly_price([], prices={"A10": 9}, price_list=None), 9)
        # An unlisted GPU has the highest requested price, or no price if a requested GPU has none.
        v100, prices = ["Tesla V100"], {"A10": 9, "L4": 12, "B200": 99}
        self.assertEqual(self.hourly_price(v100, "A10,L4", prices), 12)
        self.assertEqual(self.hourly_price(v100, "A10", prices), 9)
        self.assertEqual(self.hourly_price(v100, "A10:2,L4:2", {"A10:2": 9, "L4:2": 8}), 9)
        self.assertIsNone(self.hourly_price(["NVIDIA RTX PRO 6000"], "RTX-PRO-6000,L4", {"L4": 1.1168}))

    def test_a_region_costs_more_unless_the_caller_gives_the_price(self):
        regional = self.hourly_price(["NVIDIA A10"], region="eu")
        self.assertAlmostEqual(regional, self.hourly_price(["NVIDIA A10"]) * run.SETTINGS["price"]["region"])
        self.assertEqual(self.hourly_price(["NVIDIA A10"], prices={"A10": 9}, region="eu"), 9)
        request = {"gpu": "A10", "region": "eu"}
        output = SimpleNamespace(returncode=0, stdout=json.dumps(self.PRICE_LIST))
        with (
            mock.patch.object(run, "visible_gpus", return_value=["NVIDIA A10"]),
            mock.patch.object(run.Workspace, "run", return_value=output),
        ):
            self.assertEqual(run.gpu_and_price(run.Workspace(), request), ("NVIDIA A10", regional))


class Credentials(unittest.TestCase):
    def test_urls_with_credentials_are_refused(self):
        for word in (
            "http://u:p@h/",
            "http://u:p/w@h",
            "--mlflow=http://u:p?w#x@h",
            "http://token@h/x",
            "http://u:p@w@h",
            "postgres://u:/@h",
        ):
            with self.assertRaises(run.PermanentError, msg=word):
                run.refuse_credentials(["train", word])
        accepted = "http://h/ http://h:5000/x http://h/a@b http://h?mail=a@b me@h a:b@c --x=1:2@3"
        run.refuse_credentials(accepted.split())


class Files(unittest.TestCase):
    def test_a_failed_rename_writes_in_place_with_a_warning(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        run.write_atomically(folder / "a.json", "1")
        with mock.patch("os.replace", side_effect=OSError("not here")), mock.patch("sys.stderr") as stderr:
            run.write_atomically(folder / "a.json", "2")
        self.assertEqual([path.name for path in folder.iterdir()], ["a.json"])
        self.assertEqual((folder / "a.json").read_text(), "2")
        self.assertIn("written in place", "".join(str(call) for call in stderr.mock_calls))

    def test_local_files_import_only_the_standard_library(self):
        for name in ("run.py", "options.py", "local.py"):
            for node in ast.walk(ast.parse((MODAL / name).read_text("utf8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                for imported in names:
                    allowed = sys.stdlib_module_names | {"run", "options"}
                    self.assertIn(imported.split(".")[0], allowed, name)


class Sweeps(unittest.TestCase):
    def setUp(self):
        self.cloud = Cloud()
        self.addCleanup(shutil.rmtree, self.cloud.root, ignore_errors=True)
        home = os.getcwd()
        self.addCleanup(os.chdir, home)
        os.chdir(self.cloud.root)
        # Half of the jobs fail, because the folder of their log file does not exist.
        Path("lr.toml").write_text(
            'task = "dit"\ndata = "data/synth"\nconfig = "smoke"\n[fixed]\nsteps = 4\nlimit-files = 24\n'
            "save-interval = 2\nsample-interval = 0\n[sweep]\nlr = [1e-3, 2e-3]\n"
            'log-file = ["a.log", "nowhere/a.log"]\n'
        )

    def test_a_job_with_a_killed_supervisor_has_failed(self):
        cloud = self.cloud
        process = cloud.start("sweep", "lr.toml", "--parallel=1", "--max-retries=0")
        folder = wait_for(lambda: next(cloud.root.glob("calls/*/attempt"), None), "a job", process).parent
        os.killpg(run.read_json(folder / "pid"), signal.SIGKILL)
        cloud.finish(process, 0)
        calls = run.read_json(cloud.root / "outputs/runs/sweeps/lr/calls.json").values()
        failed = [call["id"] for call in calls if call.get("error") == "the supervisor of this call was killed"]
        self.assertEqual(failed, [folder.name])

    def test_a_restarted_sweep_keeps_its_jobs_and_a_failed_job_stops_no_other(self):
        cloud, words = self.cloud, ("sweep", "lr.toml", "--parallel=2", "--max-retries=0")
        process, folder = cloud.start(*words), cloud.root / "outputs/runs/sweeps/lr"
        calls = folder / "calls.json"
        wait_for(lambda: len(run.read_json(calls) or {}) >= 2 and cloud.trainings(), "two jobs", process)
        process.kill()
        process.wait()
        before = run.read_json(calls)
        cloud.finish(cloud.start(*words), 0)
        after = run.read_json(calls)
        for name, call in before.items():
            self.assertEqual(after[name]["id"], call["id"], "a job does not start twice")
        self.assertEqual(
            sorted(call["outcome"] for call in after.values()), ["failed", "failed", "finished", "finished"]
        )
        for name, call in after.items():
            self.assertEqual(call["outcome"], "failed" if "nowhere" in name else "finished")
            if call["outcome"] == "failed":
                self.assertTrue(call["error"])
                continue
            self.assertTrue((folder / name / "tinydit_final.pt").exists())
            self.assertEqual(cloud.record(f"runs/sweeps/lr/{name}/{name}")["status"], "finished")
        trainings = cloud.trainings()
        self.assertEqual(len(trainings), 4)
        # A new call skips finished and failed jobs; with --retry-failed it retries the failed ones.
        cloud.finish(cloud.start(*words), 0)
        self.assertEqual(cloud.trainings(), trainings)
        cloud.finish(cloud.start(*words, "--retry-failed"), 0)
        self.assertEqual(len(cloud.trainings()), 6)
        self.assertTrue(all("--log-file=nowhere" in line for line in cloud.trainings()[4:]))


class SweepCalls(unittest.TestCase):
    """Tests of a sweep's calls with two fake jobs and a fake cloud."""

    NAMES = ("a", "b")

    def setUp(self):
        self.workspace = run.Workspace(Path(self.enterContext(tempfile.TemporaryDirectory())))
        jobs = [{"name": name, "arguments": ["train", "dit"]} for name in self.NAMES]
        output = SimpleNamespace(returncode=0, stdout=json.dumps(jobs))
        self.enterContext(mock.patch.object(run.Workspace, "run", return_value=output))
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))
        self.calls, self.spawned = self.workspace.outputs / "runs/sweeps/lr/calls.json", []

    def sweep(self, error, is_call_error=lambda error: False, **more):
        train = {"files": {}, "arguments": []}
        request = {"call": "c", "train": train, "file": "lr.toml", "parallel": 2, "max_cost": 8, **more}
        call = SimpleNamespace(id="fc", get=mock.Mock(side_effect=error))

        def spawn(task, job):
            self.spawned.append((job["run"], job["max_cost"]))
            return call

        request = {**request, "retry_failed": False}
        run.sweep(request, self.workspace, lambda: None, lambda: None, spawn, lambda id: call, is_call_error)

    def test_jobs_share_the_budget(self):
        for number, (shares, expected) in enumerate(((None, [4, 4]), ({"a": 2.5, "b": 5, "c": 1}, [2.5, 5]))):
            self.spawned.clear()
            with self.assertRaisesRegex(run.PermanentError, "0 of 2 jobs"):
                self.sweep(run.PermanentError("no"), call=str(number), shares=shares)
            self.assertEqual(self.spawned, list(zip(self.NAMES, expected, strict=True)))
        with self.assertRaisesRegex(run.PermanentError, "^--shares has no entry for b$"):
            self.sweep(run.PermanentError("no"), call="c", shares={"a": 1})
        self.assertEqual(len(self.spawned), 2)

    def test_a_call_of_unknown_status_has_not_failed(self):
        for call in ("c", "c", "d"):
            with self.assertRaisesRegex(ConnectionError, "lost"):
                self.sweep(ConnectionError("lost"), call=call)
            saved = run.read_json(self.calls)
            self.assertEqual(saved, {name: {"sweep": "c", "id": "fc"} for name in self.NAMES})
        self.assertEqual(len(self.spawned), 2)
        # A call error means that the call failed.
        with self.assertRaises(run.PermanentError):
            self.sweep(LookupError("forgotten"), lambda error: isinstance(error, LookupError))
        saved = run.read_json(self.calls)
        results = {(call["outcome"], call["error"]) for call in saved.values()}
        self.assertEqual(results, {("failed", "forgotten")})

    def test_a_damaged_calls_json_is_an_error(self):
        self.calls.parent.mkdir(parents=True)
        for text in ("", "null", "[]", '{"a": {}}', '{"a": 1}'):
            self.calls.write_text(text)
            with self.assertRaisesRegex(run.PermanentError, "^calls.json is damaged: .*; remove it", msg=text):
                self.sweep(run.PermanentError("no"))
            self.assertEqual((self.spawned, self.calls.read_text()), ([], text))


if __name__ == "__main__":
    unittest.main()
