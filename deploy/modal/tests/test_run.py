"""The container's code with the real program, treated as by Modal: interrupted, killed, out of time.

TINY_CATS_BINARY_FOR_TESTS names the program, as built by `cargo build`.
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

# A shell has what it starts in the background ignore SIGINT, nohup SIGHUP, and children inherit that. What is tested here is interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

BINARY = os.environ.get("TINY_CATS_BINARY_FOR_TESTS")
if not BINARY or not os.access(BINARY, os.X_OK):
    raise SystemExit("error: TINY_CATS_BINARY_FOR_TESTS must name the tiny-cats that `cargo build` made")

# Seconds until a process that neither ends nor does what a test waits for is given up on.
DEADLINE_S = 900
STEPS = 10
SMOKE = ["--config=smoke", "--size=nano", "--limit-files=24", "--save-interval=2", "--sample-interval=0"]
SECRETS = {
    "MODAL_TOKEN_ID": "ak-unseen",
    "MODAL_TOKEN_SECRET": "as-unseen",
    "AWS_SECRET_ACCESS_KEY": "aws-unseen",
}
RELEASED = ("tinydit_final.pt", "tinydit_final.safetensors")


def until(condition, what, process=None, seconds=DEADLINE_S):
    """Waits for an event: how long it takes depends on a machine that others use too."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode} before {what}")
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return answer


class Cloud:
    """A folder with the data, a driver that says what it is told to, and a program that notes its calls."""

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

    def stall(self, after, without="nothing"):
        """Has the engine stand still, once, when its first state is there, until the shell commands `after`
        are done; it is called without arguments like `without`. How fast this machine is does not matter."""
        self.script(
            "tiny-cats",
            f'for word; do shift; case $word in {without}) ;; *) set -- "$@" "$word";; esac; done\n'
            f'[ "$1" = train ] && [ ! -e {self.root}/stalled ] || exec {BINARY} "$@"\n'
            f'{BINARY} "$@" &\n'
            "engine=$!\n"
            "while kill -0 $engine && ! ls outputs/runs/r/*_step_* >/dev/null 2>&1; do sleep 0.02; done\n"
            f"touch {self.root}/stalled\n"
            "worker=$(cat /proc/$engine/task/$engine/children)\n"
            f"kill -STOP $worker; {after}; kill -CONT $worker\n"
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
        """Waits for the end of a call. The limit is for one that hangs: a slow machine must not reach it."""
        try:
            found = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            found = f"no end within {DEADLINE_S} s"
        assert found == code, f"expected exit code {code}, found {found}:\n{self.log.read_text()[-3000:]}"

    def attempt(self, process, number):
        """The process of the `number`th attempt that this folder sees."""

        def newest():
            calls = set(self.root.glob("calls/*")) - self.calls_before
            fresh = {run.read_json(call / "attempt") for call in calls} - self.known - {None}
            return max(fresh, default=None)

        pid = until(newest, f"attempt {number}", process)
        self.known.add(pid)
        return pid

    def next_state(self, process):
        """Waits for a training state that is newer than those in the volume."""
        known = {path.name for path in (self.root / "outputs").rglob("*_step_*")}

        def newest():
            state = max(self.states(), default="")
            return state if state > max(known, default="") else None

        return until(newest, "a training state", process)

    def await_commit(self, state, process):
        until(lambda: state in self.commits()[-1], "its commit", process)

    def states(self):
        return {path.name for path in self.root.glob("containers/*/outputs/runs/r/*_step_*.safetensors")}

    def record(self, run_folder="runs/r"):
        return json.loads((self.root / "outputs" / run_folder / "cloud.json").read_text())

    def outcomes(self):
        return [attempt["outcome"] for attempt in self.record()["attempts"]]

    def trainings(self):
        lines = (self.root / "engine.txt").read_text().splitlines()
        return [line for line in lines if line.startswith("train ") and "--worker" not in line]

    def begun_at(self):
        """The steps that the engine went on from, one for each time."""
        return [int(match[1]) for match in re.finditer(r"steps (\d+) to", self.log.read_text())]

    def released(self):
        return [(self.root / "outputs/runs/r" / name).read_bytes() for name in RELEASED]

    def committed(self):
        """The newest step that each container has made durable."""
        newest = {}
        for line in (self.root / "commits.jsonl").read_text().splitlines():
            about = json.loads(line)
            states = [int(re.search(r"_step_(\d+)", name)[1]) for name in about["states"]]
            newest[about["container"]] = max(states, default=0)
        return list(newest.values())

    def commits(self):
        return [json.loads(line)["states"] for line in (self.root / "commits.jsonl").read_text().splitlines()]


def setUpModule():
    global DATA, HOME, ALONE, ALONE_S
    HOME = tempfile.TemporaryDirectory(prefix="tiny-cats-modal-")
    unittest.addModuleCleanup(HOME.cleanup)
    DATA = Path(HOME.name) / "data"
    subprocess.run(
        [BINARY, "data", "synth", DATA / "synth", "--per-class=8", "--size=32"],
        check=True,
        capture_output=True,
    )
    # What a run that is left alone releases: the same program, without anything around it.
    begun = time.monotonic()
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
    ALONE_S = time.monotonic() - begun
    ALONE = [(Path(HOME.name) / "runs/r" / name).read_bytes() for name in RELEASED]


class Training(unittest.TestCase):
    def cloud(self, **about):
        cloud = Cloud(**about)
        self.addCleanup(shutil.rmtree, cloud.root, ignore_errors=True)
        return cloud

    def test_a_run_that_is_interrupted_and_killed_releases_what_one_left_alone_does(self):
        cloud = self.cloud()
        # No retries: what interrupts is none.
        process = cloud.train("--max-retries=0")
        for number, how in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), 1):
            attempt = cloud.attempt(process, number)
            newest = cloud.next_state(process)
            if how == signal.SIGKILL:  # which leaves no time to commit: what the heart has committed must do
                cloud.await_commit(newest, process)
            os.kill(attempt, how)
        cloud.finish(process, 0)
        self.assertEqual(cloud.outcomes(), ["preempted", "preempted", "lost", "finished"])
        record = cloud.record()
        self.assertEqual((record["status"], record["preemptions"], record["error"]), ("finished", 2, None))
        self.assertEqual(cloud.released(), ALONE)
        self.assertEqual(cloud.log.read_text().count("stopped at step"), 2, "the engine is asked, not killed")
        steps = cloud.begun_at()
        self.assertEqual(len(steps), 4)
        self.assertEqual(steps[0], 0)
        self.assertTrue(
            0 < steps[1] < steps[2] < steps[3], f"each attempt goes on where the last one stopped: {steps}"
        )
        for attempt in record["attempts"]:
            self.assertLessEqual(attempt["begun"], attempt["ended"])
        # Every state that an interval made was in the volume before the next: none was in danger for longer.
        committed = {state for states in cloud.commits() for state in states}
        self.assertLessEqual(
            {f"dit_step_{step:08}.safetensors" for step in range(2, STEPS + 1, 2)}, committed
        )

    def test_attempts_that_ran_out_of_time_are_retried_and_go_on(self):
        cloud = self.cloud()
        # The engine gets half of it, and finds that it is gone when it wakes up.
        timeout = max(12, round(4 * ALONE_S))
        cloud.stall(f"sleep {timeout / 2}")
        cloud.finish(cloud.train("--max-retries=10", f"--timeout={timeout}"), 0)
        *before, last = cloud.outcomes()
        self.assertEqual((set(before), last), ({"timed out"}, "finished"))
        self.assertIn("retry 1 of 10", cloud.log.read_text())
        # What an attempt has computed is saved when it stops: no step is done twice.
        stopped = [int(match[1]) for match in re.finditer(r"stopped at step (\d+)", cloud.log.read_text())]
        self.assertEqual(cloud.begun_at(), [0, *stopped])
        self.assertGreater(max(stopped), 0)
        self.assertEqual(cloud.released(), ALONE)

    def test_attempts_that_the_timeout_kills_go_on_from_what_was_committed(self):
        cloud = self.cloud()
        # An engine that knows of no time, and so does not stop by itself.
        cloud.stall("sleep 1000", without="--max-time=*")
        timeout = max(12, round(4 * ALONE_S))
        cloud.finish(cloud.train("--max-retries=10", f"--timeout={timeout}"), 0)
        *before, last = cloud.outcomes()
        self.assertEqual((set(before), last), ({"lost"}, "finished"))
        # A state is there every two steps, so that no more than two and the one at work are done twice.
        begun, committed = cloud.begun_at(), cloud.committed()
        for start, state in zip(begun[1:], committed, strict=False):
            self.assertGreaterEqual(start, state)
        self.assertEqual((begun[0], committed[-1]), (0, STEPS))
        self.assertGreater(max(begun), 0)
        self.assertEqual(cloud.released(), ALONE)

    def test_what_the_engine_gave_up_on_is_tried_again_with_the_cores_shared_among_the_gpus(self):
        cloud = self.cloud()
        cloud.script(
            "tiny-cats",
            f'[ "$1" = train ] || exit 1; echo "$RAYON_NUM_THREADS $@" >>{cloud.root}/engine.txt\n'
            f"[ $(wc -l <{cloud.root}/engine.txt) = 1 ] || exit 2; echo 'error: no disk' >&2; exit 74",
        )
        cloud.finish(cloud.train("--max-retries=1"), 1)
        self.assertEqual(cloud.outcomes(), ["failed", "failed"])
        log = cloud.log.read_text()
        self.assertIn("error: MayPass: no disk", log)
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
                self.assertEqual(asked_of_the_engine(gpu, words), found)
            os.environ["RAYON_NUM_THREADS"] = "3"
            self.assertEqual(asked_of_the_engine("A10:2", [])[0], "3")

    def test_a_damaged_record_is_neither_believed_nor_overwritten(self):
        request = {"call": "c", "run": "r", "arguments": [], "timeout": 60}
        whole = {"begun": 1, "ended": None, "price_per_hour": None, "outcome": "running"}
        for text in (
            "",
            '{"attempts": [{"beg',
            "null",
            "[]",
            "{}",
            '{"attempts": [{}]}',
            '{"attempts": []}',
            json.dumps({"attempts": [{**whole, "begun": "now"}]}),
            json.dumps({"attempts": [{**whole, "price_per_hour": -1}]}),
            json.dumps({"attempts": [{**whole, "outcome": None}]}),
            json.dumps({"attempts": [whole], "heartbeat": "now"}),
        ):
            with tempfile.TemporaryDirectory() as folder, mock.patch.object(run, "engine") as engine:
                path = Path(folder) / "outputs/runs/r/cloud.json"
                path.parent.mkdir(parents=True)
                path.write_text(text)
                with self.assertRaisesRegex(run.Failed, "^cloud.json is damaged: .*, remove it to", msg=text):
                    run.train("dit", request, run.Place(Path(folder)), lambda: None)
                self.assertEqual(path.read_text(), text)
                engine.assert_not_called()

    def test_a_run_that_another_call_trains_is_left_to_it(self):
        cloud = self.cloud()
        process = cloud.train(heartbeat=30)
        cloud.attempt(process, 1)
        cloud.next_state(process)
        until(lambda: (cloud.root / "outputs/runs/r/cloud.json").exists(), "its record", process)
        other = cloud.train("--max-retries=0", heartbeat=30)
        self.assertEqual(other.wait(DEADLINE_S), 1)
        self.assertIsNone(process.poll(), "the first one is still at work")
        self.assertIn("error: Failed: another call trains this run", cloud.log.read_text())
        self.assertEqual((cloud.outcomes(), cloud.record()["heartbeat_s"]), (["running"], 30))
        cloud.finish(process, 0)
        self.assertEqual((cloud.outcomes(), len(cloud.trainings())), (["finished"], 1))
        self.assertEqual(cloud.released(), ALONE)

    def test_a_run_whose_heart_stands_still_is_free(self):
        for call, age, free in (("d", 0, False), ("d", 85, False), ("d", 91, True), ("c", 0, True)):
            with tempfile.TemporaryDirectory() as folder:
                path, now = Path(folder) / "cloud.json", time.time()
                begun = {"begun": now - 100, "ended": None, "price_per_hour": 1, "outcome": "running"}
                known = {"status": "running", "call": call, "heartbeat": now - age, "heartbeat_s": 30}
                path.write_text(json.dumps({**known, "attempts": [begun]}))
                with contextlib.nullcontext() if free else self.assertRaisesRegex(run.Failed, "another call"):
                    run.Record(path, {"call": "c", "gpu": "A10"}).begin("A10", 1)
                outcomes = [attempt["outcome"] for attempt in run.read_json(path)["attempts"]]
                self.assertEqual(outcomes, ["lost", "running"] if free else ["running"])

    def test_the_engine_stops_before_the_timeout_and_what_still_hangs_then_is_killed(self):
        cloud = self.cloud()
        process = cloud.train("--max-retries=1", "--timeout=4", steps=100_000)
        cloud.finish(process, 1)
        self.assertEqual(cloud.outcomes(), ["timed out", "timed out"])
        self.assertEqual(cloud.record()["status"], "stopped")
        # One that does not stop, since it is asleep, is killed with all that it started.
        cloud.script(
            "tiny-cats", f'[ "$1" = train ] || exit 1; sleep 1000 & echo $! >{cloud.root}/sleeper; wait'
        )
        process = cloud.train("--max-retries=0", "--timeout=4")
        cloud.finish(process, 1)
        sleeper = int((cloud.root / "sleeper").read_text())
        self.assertFalse(Path(f"/proc/{sleeper}").exists())
        self.assertEqual(cloud.outcomes()[-1], "running", "a kill leaves no time for a note")

    def test_what_fails_for_good_starts_the_engine_once_and_a_new_call_tries_again(self):
        cloud = self.cloud()
        words = ("train", "dit", "data/nothing", "--run-id=r", "--max-retries=2", *SMOKE)
        cloud.finish(cloud.start(*words), 1)
        self.assertEqual(len(cloud.trainings()), 1)
        record = cloud.record()
        self.assertEqual((record["status"], cloud.outcomes()), ("failed", ["failed"]))
        self.assertIn("data/nothing", record["error"])
        self.assertEqual(cloud.log.read_text().count("error: Failed: "), 3)
        cloud.finish(cloud.start(*words), 1)
        self.assertEqual(len(cloud.trainings()), 2)
        self.assertEqual(cloud.outcomes(), ["failed", "failed"])

    def test_a_budget_ends_a_run_in_order_and_a_larger_one_goes_on(self):
        cloud = self.cloud(gpu="NVIDIA A10")
        # A dollar a second, and another card's price that must not count.
        price = '--price-per-hour={"A10": 3600, "A100": 9000, "L4": 1}'
        cloud.finish(cloud.train("--max-cost=0.7", price, "--max-retries=2"), 1)
        record = cloud.record()
        self.assertEqual((record["status"], cloud.outcomes()), ("stopped", ["budget"]))
        self.assertEqual(len(cloud.trainings()), 1)
        self.assertRegex(record["error"], r"of \$0.7 are spent")
        # Nothing is left, which is seen before anything is computed.
        cloud.finish(cloud.train("--max-cost=0.01", price, "--max-retries=0"), 1)
        self.assertEqual((len(cloud.trainings()), cloud.outcomes()), (1, ["budget", "budget"]))
        cloud.finish(cloud.train("--max-cost=1000", price), 0)
        record = cloud.record()
        self.assertEqual(cloud.outcomes(), ["budget", "budget", "finished"])
        self.assertEqual(cloud.released(), ALONE)
        seconds = sum(attempt["ended"] - attempt["begun"] for attempt in record["attempts"])
        self.assertAlmostEqual(record["seconds"], seconds, 2)
        self.assertAlmostEqual(record["dollars"], seconds, 2)
        self.assertEqual({attempt["gpu"] for attempt in record["attempts"]}, {"NVIDIA A10"})
        self.assertEqual((record["price_per_hour"], record["max_cost"]), (3600, 1000))

    def test_a_budget_without_a_price_is_refused(self):
        cloud = self.cloud()
        cloud.finish(cloud.train("--max-cost=5"), 1)
        self.assertIn("--max-cost needs a price", cloud.record()["error"])
        self.assertEqual(cloud.trainings(), [])

    def test_no_token_gets_to_the_engine_or_into_a_file(self):
        cloud = self.cloud()
        cloud.finish(cloud.start("train", "dit", "data/nothing", "--run-id=r", "--max-retries=0"), 1)
        self.assertIn("PATH=", (cloud.root / "env.txt").read_text())
        written = [path for path in cloud.root.rglob("*") if path.is_file()]
        self.assertIn(cloud.log, written)
        for path in written:
            self.assertNotIn(b"unseen", path.read_bytes(), path)

    def test_an_error_of_any_kind_commits_and_is_handed_on(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        commits = []
        request = {"call": "c", "run": "r", "arguments": [], "timeout": 60}
        for error, raised, outcome in (
            (MemoryError, run.Ended, "failed"),
            (InputCancellation, InputCancellation, "cancelled"),
            (KeyboardInterrupt, KeyboardInterrupt, "preempted"),
        ):
            with mock.patch.object(run, "engine", side_effect=error), self.assertRaises(raised):
                run.train("dit", request, run.Place(folder), lambda: commits.append(1))
            record = json.loads((folder / "outputs/runs/r/cloud.json").read_text())
            self.assertEqual((record["status"], record["attempts"][-1]["outcome"]), ("stopped", outcome))
        self.assertEqual(len(commits), 6)
        # The program's success is believed only with a record that says so.
        with (
            mock.patch.object(run, "engine", return_value=(0, "")),
            self.assertRaisesRegex(run.Failed, "its record says None"),
        ):
            run.train("dit", request, run.Place(folder), lambda: None)


class InputCancellation(BaseException):
    """Like Modal's."""


def asked_of_the_engine(gpu, words):
    """How many threads it is to have, and what it is told of its workers."""
    request = {"call": "c", "run": "r", "arguments": words, "timeout": 60, "gpu": gpu}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(run, "engine", side_effect=run.Unfinished) as engine,
        contextlib.suppress(run.Unfinished),
    ):
        run.train("dit", request, run.Place(Path(folder)), lambda: None)
    place, arguments = engine.call_args.args
    about = [word for word in arguments if word.startswith("--num-workers")]
    return place.options()["env"]["RAYON_NUM_THREADS"], about


class Prices(unittest.TestCase):
    LISTED = {
        "gpus": {
            "A10": {"hour": 1.10, "device": "A10"},
            "A100-40GB": {"hour": 2.10, "device": "A100 40GB", "aliases": ["A100"]},
        },
        "cpu_core_hour": 0.05,
        "memory_gib_hour": 0.01,
    }

    def hourly(self, devices, gpu="A10", asked=None, listed=LISTED, region=None):
        return run.hourly(devices, gpu, asked, listed, region)

    def test_the_card_that_is_there_counts_with_cores_and_memory(self):
        rest = 4 * 0.05 + 16 * 0.01
        self.assertAlmostEqual(self.hourly(["NVIDIA A10"]), 1.10 + rest)
        for name in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 40GB PCIe"):
            self.assertAlmostEqual(self.hourly([name] * 2, "A10:2"), 4.20 + rest)
        self.assertAlmostEqual(
            self.hourly(["another card"], "A10,A100"), 2.10 + rest, msg="the dearest it may be"
        )
        self.assertIsNone(self.hourly(["NVIDIA B300"], "A10,B300"))
        self.assertIsNone(self.hourly(["NVIDIA A10"], listed=None))
        self.assertIsNone(self.hourly([]))

    def test_what_the_caller_says_comes_first(self):
        self.assertEqual(self.hourly(["NVIDIA A10"], asked={"A10": 9, "A100": 8}), 9)
        self.assertEqual(self.hourly(["NVIDIA A100-SXM4-40GB"], asked={"A10": 9, "A100:1": 8}), 8)
        asked = {"H200": {"hour": 7, "device": "H200"}, "H100": {"hour": 8, "device": "H100"}}
        self.assertEqual(self.hourly(["NVIDIA H200"], asked=asked, listed=None), 7)
        self.assertEqual(self.hourly([], asked={"A10": 9}, listed=None), 9)
        # An unlisted card is the dearest that was asked for, and of no price if one of these has none.
        v100, asked = ["Tesla V100"], {"A10": 9, "L4": 12, "B200": 99}
        self.assertEqual(self.hourly(v100, "A10,L4", asked), 12)
        self.assertEqual(self.hourly(v100, "A10", asked), 9)
        self.assertEqual(self.hourly(v100, "A10:2,L4:2", {"A10:2": 9, "L4:2": 8}), 9)
        self.assertIsNone(self.hourly(["NVIDIA RTX PRO 6000"], "RTX-PRO-6000,L4", {"L4": 1.1168}))

    def test_a_region_that_was_asked_for_costs_more_unless_the_caller_has_said_what(self):
        there = self.hourly(["NVIDIA A10"], region="eu")
        self.assertAlmostEqual(there, self.hourly(["NVIDIA A10"]) * run.SETTINGS["price"]["region"])
        self.assertEqual(self.hourly(["NVIDIA A10"], asked={"A10": 9}, region="eu"), 9)
        request = {"gpu": "A10", "region": "eu"}
        listed = SimpleNamespace(returncode=0, stdout=json.dumps(self.LISTED))
        with (
            mock.patch.object(run, "gpus_here", return_value=["NVIDIA A10"]),
            mock.patch.object(run.Place, "run", return_value=listed),
        ):
            self.assertEqual(run.price(run.Place(), request), ("NVIDIA A10", there))


class Credentials(unittest.TestCase):
    def test_an_address_with_a_password_is_refused_and_others_are_not(self):
        for word in (
            "http://u:p@h/",
            "http://u:p/w@h",
            "--mlflow=http://u:p?w#x@h",
            "http://token@h/x",
            "http://u:p@w@h",
            "postgres://u:/@h",
        ):
            with self.assertRaises(run.Failed, msg=word):
                run.refuse_credentials(["train", word])
        ordinary = "http://h/ http://h:5000/x http://h/a@b http://h?mail=a@b me@h a:b@c --x=1:2@3"
        run.refuse_credentials(ordinary.split())


class Files(unittest.TestCase):
    def test_a_mount_that_cannot_rename_is_written_in_place_and_it_is_said(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        run.write_atomically(folder / "a.json", "1")
        with mock.patch("os.replace", side_effect=OSError("not here")), mock.patch("sys.stderr") as said:
            run.write_atomically(folder / "a.json", "2")
        self.assertEqual([path.name for path in folder.iterdir()], ["a.json"])
        self.assertEqual((folder / "a.json").read_text(), "2")
        self.assertIn("written in place", "".join(str(call) for call in said.mock_calls))

    def test_nothing_but_the_standard_library_is_imported_without_modal(self):
        for name in ("run.py", "options.py", "local.py"):
            for node in ast.walk(ast.parse((MODAL / name).read_text("utf8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                for imported in names:
                    known = sys.stdlib_module_names | {"run", "options"}
                    self.assertIn(imported.split(".")[0], known, name)


class Sweeps(unittest.TestCase):
    def setUp(self):
        self.cloud = Cloud()
        self.addCleanup(shutil.rmtree, self.cloud.root, ignore_errors=True)
        home = os.getcwd()
        self.addCleanup(os.chdir, home)
        os.chdir(self.cloud.root)
        # The half of the jobs fail, having nowhere to log.
        Path("lr.toml").write_text(
            'task = "dit"\ndata = "data/synth"\nconfig = "smoke"\n[fixed]\nsteps = 4\nlimit-files = 24\n'
            "save-interval = 2\nsample-interval = 0\n[sweep]\nlr = [1e-3, 2e-3]\n"
            'log-file = ["a.log", "nowhere/a.log"]\n'
        )

    def test_a_job_whose_keeper_was_killed_has_ended(self):
        cloud = self.cloud
        process = cloud.start("sweep", "lr.toml", "--parallel=1", "--max-retries=0")
        folder = until(lambda: next(cloud.root.glob("calls/*/attempt"), None), "a job", process).parent
        os.killpg(run.read_json(folder / "pid"), signal.SIGKILL)
        cloud.finish(process, 0)
        calls = run.read_json(cloud.root / "outputs/runs/sweeps/lr/calls.json").values()
        gone = [call["id"] for call in calls if call.get("error") == "nobody keeps this call any more"]
        self.assertEqual(gone, [folder.name])

    def test_a_sweep_outlives_its_orchestrator_and_a_job_that_fails_ends_no_other(self):
        cloud, words = self.cloud, ("sweep", "lr.toml", "--parallel=2", "--max-retries=0")
        process, folder = cloud.start(*words), cloud.root / "outputs/runs/sweeps/lr"
        calls = folder / "calls.json"
        until(lambda: len(run.read_json(calls) or {}) >= 2 and cloud.trainings(), "two jobs", process)
        process.kill()
        process.wait()
        noted = run.read_json(calls)
        cloud.finish(cloud.start(*words), 0)
        ended = run.read_json(calls)
        for name, call in noted.items():
            self.assertEqual(ended[name]["id"], call["id"], "a job is not begun a second time")
        self.assertEqual(
            sorted(call["outcome"] for call in ended.values()), ["failed", "failed", "finished", "finished"]
        )
        for name, call in ended.items():
            self.assertEqual(call["outcome"], "failed" if "nowhere" in name else "finished")
            if call["outcome"] == "failed":
                self.assertTrue(call["error"])
                continue
            self.assertTrue((folder / name / "tinydit_final.pt").exists())
            self.assertEqual(cloud.record(f"runs/sweeps/lr/{name}/{name}")["status"], "finished")
        trainings = cloud.trainings()
        self.assertEqual(len(trainings), 4)
        # Again: what is finished or failed is passed over; what failed is tried again when that is asked.
        cloud.finish(cloud.start(*words), 0)
        self.assertEqual(cloud.trainings(), trainings)
        cloud.finish(cloud.start(*words, "--retry-failed"), 0)
        self.assertEqual(len(cloud.trainings()), 6)
        self.assertTrue(all("--log-file=nowhere" in line for line in cloud.trainings()[4:]))


class SweepCalls(unittest.TestCase):
    """A sweep's calls, with a program that knows two jobs and a cloud that answers at once."""

    NAMES = ("a", "b")

    def setUp(self):
        self.place = run.Place(Path(self.enterContext(tempfile.TemporaryDirectory())))
        jobs = [{"name": name, "arguments": ["train", "dit"]} for name in self.NAMES]
        answer = SimpleNamespace(returncode=0, stdout=json.dumps(jobs))
        self.enterContext(mock.patch.object(run.Place, "run", return_value=answer))
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))
        self.calls, self.asked = self.place.outputs / "runs/sweeps/lr/calls.json", []

    def sweep(self, error, ended=lambda error: False, **more):
        train = {"files": {}, "arguments": []}
        request = {"call": "c", "train": train, "file": "lr.toml", "parallel": 2, "max_cost": 8, **more}
        call = SimpleNamespace(id="fc", get=mock.Mock(side_effect=error))

        def spawn(task, job):
            self.asked.append((job["run"], job["max_cost"]))
            return call

        request = {**request, "retry_failed": False}
        run.sweep(request, self.place, lambda: None, lambda: None, spawn, lambda id: call, ended)

    def test_a_job_may_cost_its_share(self):
        for number, (shares, found) in enumerate(((None, [4, 4]), ({"a": 2.5, "b": 5, "c": 1}, [2.5, 5]))):
            self.asked.clear()
            with self.assertRaisesRegex(run.Failed, "0 of 2 jobs"):
                self.sweep(run.Failed("no"), call=str(number), shares=shares)
            self.assertEqual(self.asked, list(zip(self.NAMES, found, strict=True)))
        with self.assertRaisesRegex(run.Failed, "^--shares says nothing of b$"):
            self.sweep(run.Failed("no"), call="c", shares={"a": 1})
        self.assertEqual(len(self.asked), 2)

    def test_a_call_that_could_not_be_asked_has_not_ended(self):
        for call in ("c", "c", "d"):
            with self.assertRaisesRegex(ConnectionError, "lost"):
                self.sweep(ConnectionError("lost"), call=call)
            noted = run.read_json(self.calls)
            self.assertEqual(noted, {name: {"sweep": "c", "id": "fc"} for name in self.NAMES})
        self.assertEqual(len(self.asked), 2)
        # But one of which Modal says so has.
        with self.assertRaises(run.Failed):
            self.sweep(LookupError("forgotten"), lambda error: isinstance(error, LookupError))
        noted = run.read_json(self.calls)
        found = {(call["outcome"], call["error"]) for call in noted.values()}
        self.assertEqual(found, {("failed", "forgotten")})

    def test_begun_jobs_are_not_forgotten_because_their_list_is_damaged(self):
        self.calls.parent.mkdir(parents=True)
        for text in ("", "null", "[]", '{"a": {}}', '{"a": 1}'):
            self.calls.write_text(text)
            with self.assertRaisesRegex(run.Failed, "^calls.json is damaged: .*, remove it", msg=text):
                self.sweep(run.Failed("no"))
            self.assertEqual((self.asked, self.calls.read_text()), ([], text))


if __name__ == "__main__":
    unittest.main()
