"""The app with Modal's real client: what it asks a stand-in for Modal's servers, and how its functions behave
in Modal's own container runtime."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

MODAL = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(MODAL), str(MODAL / "tests")]

import grpclib  # noqa: E402
from modal_proto import api_pb2  # noqa: E402
from stand_in import StandIn  # noqa: E402

import options  # noqa: E402
import run  # noqa: E402

# A shell has what it starts in the background ignore SIGINT, nohup SIGHUP, and children inherit that. What is tested here is interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CLONE = MODAL.parents[1]
BINARY = os.environ.get("TINY_CATS_BINARY_FOR_TESTS")
if not BINARY or not os.access(BINARY, os.X_OK):
    raise SystemExit("error: TINY_CATS_BINARY_FOR_TESTS must name the tiny-cats that `cargo build` made")
TOKEN = {"MODAL_TOKEN_ID": "ak-unseen", "MODAL_TOKEN_SECRET": "as-unseen"}
DONE = {"run": "r", "folder": "runs/r", "status": "finished"}
# Seconds until a process that neither ends nor does what a test waits for is given up on.
DEADLINE_S = 900


def clean_environment(**more):
    own = ("MODAL_", "TINY_CATS_S3_", "TINY_CATS_SECRETS", "TINY_CATS_BINARY")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(own)}, **more}


class WithServer(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tiny-cats-modal-"))
        self.addCleanup(shutil.rmtree, self.folder)
        server = StandIn()
        self.enterContext(server)
        self.server, self.service = server, server.service
        self.service.outcome = DONE

    def modal(self, *words, code=0, outcome=DONE, flags=(), app=MODAL / "app.py", **environment):
        self.service.outcome = outcome
        self.service.seen.clear()
        command = [sys.executable, "-m", "modal", "run", *flags, app, *words]
        environment = clean_environment(
            MODAL_SERVER_URL=self.server.url, HOME=str(self.folder), **{**TOKEN, **environment}
        )
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("unseen", done.stdout + done.stderr)
        return done

    def functions(self):
        """What each function asks for, by name: as many definitions as it has cards to choose from."""
        found = {}
        for request in self.service.requests("FunctionCreate"):
            if request.HasField("function"):
                found[request.function.function_name] = [request.function]
            else:
                ranked = sorted(request.function_data.ranked_functions, key=lambda one: one.rank)
                found[request.function_data.function_name] = [one.function for one in ranked]
        return found

    def steps(self):
        """The image's steps, the last one being the image."""
        lines = []
        for request in self.service.requests("ImageGetOrCreate"):
            lines += [line for line in request.image.dockerfile_commands if line != "FROM base"]
        return lines

    def files(self):
        """What is uploaded, by where it goes."""
        return {
            file.filename for request in self.service.requests("MountGetOrCreate") for file in request.files
        }

    def arguments(self):
        (request,) = self.service.requests("FunctionMap")
        (item,) = request.pipelined_inputs
        name = self.service.names[request.function_id]
        return name, *pickle.loads(item.input.args)[0]

    def volumes(self, function):
        name = self.service.names
        return {
            m.mount_path: (name[m.volume_id].deployment_name, m.read_only) for m in function.volume_mounts
        }


class Client(WithServer):
    """`modal run`, as a user types it."""

    def test_training_asks_for_what_was_asked(self):
        words = "train dit data/cat-heads --gpu A10:2,L4:2 --timeout 3600 --max-retries 2 --run-id mine"
        done = self.modal(*words.split(), *"--max-cost 5 --region eu --steps=9 --lr 1".split())
        functions = self.functions()
        first, second = functions["train_dit"]
        cards = [
            (one.resources.gpu_config.gpu_type, one.resources.gpu_config.count) for one in (first, second)
        ]
        self.assertEqual(cards, [("A10", 2), ("L4", 2)])
        bounds = (first.resources.milli_cpu, first.resources.memory_mb)
        self.assertEqual(bounds, (4000, 16384))
        self.assertEqual((first.resources.milli_cpu_max, first.resources.memory_mb_max), bounds)
        self.assertEqual((first.timeout_secs, first.startup_timeout_secs), (3600, 1200))
        policy = first.retry_policy
        found = (policy.retries, policy.initial_delay_ms, policy.backoff_coefficient, policy.max_delay_ms)
        self.assertEqual(found, (2, 10_000, 2.0, 60_000))
        self.assertTrue(first.single_use_containers)
        self.assertEqual(first.autoscaler_settings.max_containers, 1)
        self.assertEqual(list(first.scheduler_placement.regions), ["eu"])
        self.assertFalse(first.scheduler_placement.nonpreemptible)
        volumes = {"/data": ("tiny-cats-data", True), "/outputs": ("tiny-cats-outputs", False)}
        self.assertEqual(self.volumes(first), volumes)
        self.assertEqual(functions["train_classifier"][0].image_id, first.image_id)

        name, request = self.arguments()
        self.assertEqual(name, "train_dit")
        self.assertTrue(re.fullmatch("[0-9a-f]{16}", request.pop("call")))
        self.assertEqual(
            request,
            {
                "run": "mine",
                "arguments": ["data/cat-heads", "--steps=9", "--lr", "1", "--gpus=2"],
                "files": {},
                "device": "cuda",
                "gpu": "A10:2,L4:2",
                "region": "eu",
                "timeout": 3600,
                "max_cost": 5.0,
                "prices": None,
            },
        )
        said = [line for line in done.stdout.splitlines() if not line.startswith(("✓", "├", "└"))]
        self.assertEqual(said[0], "run mine")
        self.assertRegex(said[1], "^call fc-")
        self.assertEqual(said[3], "modal volume get tiny-cats-outputs runs/r")

    def test_the_other_functions_ask_for_no_gpu(self):
        (self.folder / "lr.toml").write_text('task = "dit"\nconfig = "own.toml"\n')
        (self.folder / "own.toml").write_text("[dit]\n")
        self.modal("sweep", "lr.toml", "--parallel", "3", "--gpu", "H100!", "--max-cost=9")
        functions = self.functions()
        for name in ("sweep", "download_data", "export", "sample"):
            resources = functions[name][0].resources
            self.assertEqual(resources.gpu_config.count, 0, name)
            self.assertEqual(resources.milli_cpu_max, resources.milli_cpu, name)
            self.assertEqual((resources.memory_mb, resources.memory_mb_max), (4096, 4096), name)
        (sweep,) = functions["sweep"]
        self.assertTrue(sweep.scheduler_placement.nonpreemptible)
        self.assertEqual((sweep.timeout_secs, sweep.retry_policy.retries), (86400, 10))
        self.assertEqual(functions["train_dit"][0].autoscaler_settings.max_containers, 3)
        self.assertEqual(functions["train_dit"][0].resources.gpu_config.gpu_type, "H100!")
        self.assertEqual(self.volumes(functions["download_data"][0]), {"/data": ("tiny-cats-data", False)})
        (sample,) = functions["sample"]
        self.assertEqual((sample.batch_max_size, sample.batch_linger_ms), (8, 200))
        self.assertEqual(self.volumes(sample), {"/outputs": ("tiny-cats-outputs", True)})
        name, request = self.arguments()
        self.assertEqual(
            (name, request["file"], request["parallel"], request["max_cost"]), ("sweep", "lr.toml", 3, 9)
        )
        self.assertEqual(sorted(request["train"]["files"]), ["lr.toml", "own.toml"])

    def test_the_image_is_built_from_the_clone_and_nothing_else_of_it(self):
        self.modal("train", "dit", "--gpu", "A10,H100")
        steps = self.steps()
        self.assertEqual(steps[0], "FROM nvidia/cuda:13.0.2-devel-ubuntu24.04")
        self.assertIn("ENTRYPOINT []", steps)
        (build,) = [step for step in steps if "cargo build" in step]
        self.assertIn("CUDA_COMPUTE_CAP=80 ", build)
        self.assertIn("--release --locked --features cuda", build)
        self.assertTrue(steps[-1].endswith(" tiny-cats --version"), steps[-1])
        files = self.files()
        scripts = {f"/root/{name}" for name in ("app.py", "run.py", "options.py", "settings.toml")}
        self.assertLessEqual(
            scripts | {"/build/Cargo.lock", "/build/src/lib.rs", "/build/deploy/modal/settings.toml"}, files
        )
        folders = ("src", "models", "export", "benches", "configs", "examples")
        for file in files - scripts:
            inside = Path(file).relative_to("/build").parts
            self.assertTrue(
                len(inside) == 1 or inside[0] in folders or inside[:2] == ("deploy", "modal"), file
            )
        # What the sources take in from elsewhere has to be there too.
        for source in [
            path for folder in ("src", "models", "export") for path in (CLONE / folder).rglob("*.rs")
        ]:
            for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text("utf8")):
                path = os.path.relpath(os.path.normpath(source.parent / name), CLONE)
                self.assertIn(f"/build/{path}", files, source)

    def test_kernels_are_made_for_a_t4_where_one_may_come(self):
        for words, capability in (
            (["dit"], 80),
            (["classifier"], 75),
            (["dit", "--gpu=L4:2,T4:2"], 75),
            (["classifier", "--gpu=L4"], 80),
        ):
            self.modal("train", *words)
            (build,) = [step for step in self.steps() if "cargo build" in step]
            self.assertIn(f"CUDA_COMPUTE_CAP={capability} ", build, words)
            self.assertIn(f"--features {'nccl' if ':2' in words[-1] else 'cuda'} ", build, words)

    def test_a_program_that_was_built_here_is_taken_as_it_is(self):
        path = self.folder / "tiny-cats"
        path.write_bytes(program(glibc=[17, 39], libraries=["libcublas.so.13"]))
        path.chmod(0o755)
        self.modal("train", "dit", TINY_CATS_BINARY=str(path))
        steps = self.steps()
        self.assertEqual(steps[0], "FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04")
        self.assertFalse(any("cargo" in step for step in steps))
        self.assertTrue(steps[-1].endswith(" tiny-cats --version"), steps[-1])
        self.assertIn("/usr/local/bin/tiny-cats", self.files())
        (mode,) = {
            file.mode
            for request in self.service.requests("MountGetOrCreate")
            for file in request.files
            if file.filename == "/usr/local/bin/tiny-cats"
        }
        self.assertEqual(mode & 0o777, 0o755)

        path.write_bytes(program(glibc=[40], libraries=["libcublas.so.12"]))
        done = self.modal("train", "dit", code=2, TINY_CATS_BINARY=str(path))
        self.assertEqual(len(done.stderr.splitlines()), 2, done.stderr)
        self.assertEqual(self.service.seen, [])

    def test_a_bucket_takes_the_place_of_the_data_volume(self):
        about = {
            "TINY_CATS_S3_BUCKET": "cats",
            "TINY_CATS_S3_PREFIX": "small/",
            "TINY_CATS_S3_SECRET": "keys",
            "TINY_CATS_SECRETS": "mlflow",
        }
        self.modal("train", "dit", **about)
        (train,) = self.functions()["train_dit"]
        (mount,) = train.cloud_bucket_mounts
        self.assertEqual(
            (mount.bucket_name, mount.key_prefix, mount.mount_path, mount.read_only),
            ("cats", "small/", "/data", True),
        )
        secret = self.service.names[mount.credentials_secret_id]
        self.assertEqual(secret.deployment_name, "keys")
        self.assertEqual([self.service.names[id].deployment_name for id in train.secret_ids], ["mlflow"])
        self.assertEqual(list(self.volumes(train)), ["/outputs"])
        # Names alone go into the image: the file declares the same objects when it is read there.
        for name, value in about.items():
            self.assertTrue(any(step.startswith(f"ENV {name}={value}") for step in self.steps()), name)

    def test_what_is_wrong_is_said_in_one_line(self):
        home = os.getcwd()
        self.addCleanup(os.chdir, home)
        os.chdir(self.folder)
        Path("lr.toml").write_text("")
        for words, message in (
            ("train dit --gpu A11", "nearest is A10"),
            ("train dit --gpu A10,h100", "nearest is H100"),
            ("train dit --gpu A10:9", "1 to 8"),
            ("train dit --timeout 86401", "at most 86400"),
            ("train dit --timeout 4h", "at least 1"),
            ("train dit --max-retries 11", "at most 10"),
            ("train dit --max-retries -1", "at least 0"),
            ("train dit --max-cost 0", "more than 0"),
            ("train dit --max-cost nan", "more than 0"),
            ("train dit --price-per-hour {}", "dollars an hour"),
            ('train dit --price-per-hour {"A10":Infinity}', "dollars an hour"),
            ('train dit --max-cost=1 --gpu=L4,T4 --price-per-hour={"L4":1}', "leaves out T4"),
            ('train dit --max-cost=1 --price-per-hour={"L4":1}', "leaves out A10"),
            ('sweep lr.toml --shares {"a":0}', "dollars by job"),
            ('sweep lr.toml --shares {"a":true}', "dollars by job"),
            ("sweep lr.toml --shares [1]", "dollars by job"),
            ("train dit --run-id ../x", "a folder's name"),
            ("train cat", "invalid choice"),
            ("train dit --runs-dir=x", "is set in the cloud"),
            ("train dit --mlflow=https://me:secret@host/", "must not hold credentials"),
            ("train dit --config=/etc/hostname", "below the working directory"),
            ("sweep lr.toml --parallel 0", "at least 1"),
            ("sweep none.toml", "No such file"),
            ("sample --bread Siamese", "unexpected argument"),
            ("check it", "unexpected argument"),
            ("train dit --mlflow=http://me:secret@/@host", "must not hold credentials"),
            ("", "required"),
        ):
            with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as end:
                options.parse(words.split())
            self.assertEqual((end.exception.code, said.getvalue().count("\n")), (2, 1), said.getvalue())
            self.assertIn(message, said.getvalue())
            self.assertNotIn("secret@", said.getvalue())

    def test_a_wrong_call_asks_the_servers_for_nothing(self):
        done = self.modal("train", "dit", "--gpu", "A11", code=2)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertEqual(self.service.seen, [])

    def test_help_is_ours(self):
        self.assertIn("train a model", self.modal("--help").stdout)
        self.assertIn("--max-cost", self.modal("train", "--help").stdout)
        self.assertEqual(self.service.seen, [])

    def test_check_declares_all_of_it_and_needs_neither_token_nor_server(self):
        nobody = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
        done = self.modal("check", **nobody)
        self.assertEqual((done.stdout, done.stderr), ("the app loads\n", ""))
        path = self.folder / "tiny-cats"
        path.write_bytes(b"#!/bin/sh\n")
        path.chmod(0o755)
        done = self.modal("check", code=2, TINY_CATS_BINARY=str(path), **nobody)
        self.assertEqual(done.stderr, f"error: {path}: expected a program for x86-64 Linux\n")
        # What only a declaration meets: a copy of the app with a delay that Modal does not have.
        copy = self.folder / "app"
        shutil.copytree(MODAL, copy, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        done = self.modal("check", code=2, app=copy / "app.py", **nobody)
        self.assertRegex(done.stderr, r"^error: .*/src: not found; [^\n]*\n$")
        settings = (copy / "settings.toml").read_text("utf8")
        (copy / "settings.toml").write_text(settings.replace("most_delay_s = 60.0", "most_delay_s = 61.0"))
        path.write_bytes(program())
        done = self.modal("check", code=1, app=copy / "app.py", TINY_CATS_BINARY=str(path), **nobody)
        self.assertRegex(done.stderr, r"^error: the app does not load: InvalidError: [^\n]*61[^\n]*\n$")
        self.assertEqual(self.service.seen, [])

    def test_without_a_token_it_is_said_what_is_missing(self):
        done = self.modal("train", "dit", code=1, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
        self.assertIn("Token missing", done.stdout + done.stderr)
        self.assertEqual(self.service.seen, [])

    def test_only_a_finished_run_is_a_success(self):
        for error, code in (
            (run.Failed("no such folder"), 1),
            (run.Unfinished("time"), 75),
            (run.BudgetSpent("spent"), 75),
        ):
            done = self.modal("train", "dit", code=code, outcome=error)
            self.assertEqual(done.stderr, f"error: {error}\n")
        self.modal("train", "dit", code=1, outcome=ValueError("of Modal"))

    def test_a_detached_app_outlives_the_client(self):
        self.modal("train", "dit", flags=["--detach"])
        (created,) = self.service.requests("AppCreate")
        self.assertEqual(created.app_state, api_pb2.APP_STATE_DETACHED)
        (spawned,) = self.service.requests("FunctionMap")
        kind = api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC  # the call is the server's, not this client's
        self.assertEqual(spawned.function_call_invocation_type, kind)

    def test_a_sample_is_written(self):
        self.modal("sample", "--breed=Bengal", "--seed=7", "-o", "b.png", outcome=b"png")
        self.assertEqual(self.arguments(), ("sample", None, "Bengal", 7))
        self.assertEqual((self.folder / "b.png").read_bytes(), b"png")
        self.modal("export", "mine", "--opset=18", outcome="x.onnx")
        self.assertEqual(self.arguments(), ("export", "mine", ["--opset=18"]))


class Containers(WithServer):
    """The functions in Modal's own container runtime, which gets its input from the stand-in."""

    def setUp(self):
        super().setUp()
        self.modal("train", "dit", "data/synth", "--gpu=A10")
        self.asked = self.functions()
        # As in a container: the file lies beside nothing but what the app has put there.
        code, site = self.folder / "root", self.folder / "site"
        code.mkdir()
        for name in ("app.py", "run.py", "options.py", "settings.toml"):
            shutil.copy(MODAL / name, code)
        # What stands for the container's own root is this test's folder.
        (self.folder / "outputs").mkdir()
        subprocess.run(
            [BINARY, "data", "synth", self.folder / "data/synth", "--per-class=8", "--size=32"],
            check=True,
            capture_output=True,
        )
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import pathlib, run\n"
            f"run.Place.__init__.__defaults__ = (pathlib.Path({str(self.folder)!r}), {BINARY!r}, '', None)\n"
        )
        self.environment = clean_environment(
            MODAL_IS_REMOTE="1",
            MODAL_SERVER_URL=self.server.url,
            MODAL_TASK_ID="ta-1",
            PYTHONPATH=python_path(code, site),
            MODAL_CONTAINER_ARGUMENTS_PATH=str(self.folder / "arguments"),
            HOME=str(self.folder),
        )

    def container(self, data="data/synth"):
        """Begins one that trains."""
        words = "--config=smoke --steps=6 --limit-files=24 --save-interval=2 --sample-interval=0 --device=cpu"
        arguments = [data, *words.split()]
        return self.begin("train_dit", {"call": "c", "run": "r", "timeout": 600, "arguments": arguments})

    def begin(self, name, request):
        """Begins a container of a function, which is handed one input."""
        (function,) = self.asked[name]
        item = api_pb2.FunctionGetInputsItem(input_id="in-1", function_call_id="fc-1")
        item.input.args, item.input.data_format = pickle.dumps(((request,), {})), api_pb2.DATA_FORMAT_PICKLE
        self.service.inputs = [item]
        self.service.seen.clear()
        layout = api_pb2.AppLayout(function_ids={name: f"fu-{name}" for name in self.asked})
        for other, id in layout.function_ids.items():
            about = api_pb2.FunctionHandleMetadata(function_name=other)
            layout.objects.add(object_id=id, function_handle_metadata=about)
        for dependency in function.object_dependencies:
            layout.objects.add(object_id=dependency.object_id)
        arguments = api_pb2.ContainerArguments(
            task_id="ta-1", function_id=f"fu-{name}", app_id="ap-1", function_def=function, app_layout=layout
        )
        (self.folder / "arguments").write_bytes(arguments.SerializeToString())
        log = open(self.folder / "log.txt", "a")
        self.addCleanup(log.close)
        command = [sys.executable, "-m", "modal._container_entrypoint"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        self.addCleanup(process.kill)
        return process

    def log(self):
        return (self.folder / "log.txt").read_text()

    def until(self, condition, process):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            self.assertIsNone(process.poll(), self.log())
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.02)

    def record(self):
        return json.loads((self.folder / "outputs/runs/r/cloud.json").read_text())

    def outputs(self):
        return [
            item.result for request in self.service.requests("FunctionPutOutputs") for item in request.outputs
        ]

    def commits(self):
        return {
            self.service.names[request.volume_id].deployment_name
            for request in self.service.requests("VolumeCommit")
        }

    def test_what_interrupts_gives_no_output_and_what_follows_finishes(self):
        states = self.folder / "outputs/runs/r"
        before = set()
        for number, how in enumerate((signal.SIGINT, signal.SIGTERM), 1):
            process = self.container()
            self.until(lambda before=before: set(states.glob("*_step_*")) - before, process)
            before = set(states.glob("*_step_*"))
            process.send_signal(how)
            process.wait(DEADLINE_S)
            before = set(states.glob("*_step_*"))
            record = self.record()
            self.assertEqual((record["preemptions"], record["status"]), (number, "stopped"), self.log())
            self.assertEqual(self.outputs(), [], "without an output Modal begins the same input again")
            self.assertIn("tiny-cats-outputs", self.commits())
        # Modal refuses to bring in what others wrote while the engine has files open; that is no failure.
        self.service.open_files = True
        self.assertEqual(self.container().wait(DEADLINE_S), 0, self.log())
        self.assertTrue(self.service.requests("VolumeReload"))
        (result,) = self.outputs()
        self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, self.log())
        self.assertEqual(pickle.loads(result.data)["status"], "finished")
        self.assertEqual([attempt["container"] for attempt in self.record()["attempts"]], ["ta-1"] * 3)

    def test_a_cancelled_call_is_saved_and_an_error_is_reported_as_what_it_is(self):
        self.service.cancels = True
        process = self.container()
        self.until(lambda: list((self.folder / "outputs/runs/r").glob("*_step_*")), process)
        self.service.cancelled = "in-1"
        process.wait(DEADLINE_S)
        self.assertEqual(self.record()["attempts"][-1]["outcome"], "cancelled", self.log())
        (result,) = self.outputs()
        self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        self.container(data="data/nothing").wait(DEADLINE_S)
        (result,) = self.outputs()
        self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_FAILURE)
        error = pickle.loads(result.data)
        self.assertIsInstance(error, run.Failed)
        self.assertIn("data/nothing", str(error))

    def sweep_request(self, **about):
        file = 'task = "dit"\ndata = "data/synth"\n[sweep]\nlr = [1e-3, 2e-3]\n'
        asked = options.request_of(options.parse(["train", "dit", "--max-cost=4", "--no-cache"]))
        train = {**asked, "files": {"lr.toml": file}}
        return {
            "call": "c",
            "train": train,
            "file": "lr.toml",
            "parallel": 2,
            "max_cost": 4,
            "retry_failed": False,
            **about,
        }

    def test_a_sweep_begins_its_jobs_as_calls_of_their_own(self):
        request = self.sweep_request()
        self.service.outcome = run.Failed("of this job")
        self.begin("sweep", request).wait(DEADLINE_S)
        jobs = [
            pickle.loads(item.input.args)[0][0]
            for r in self.service.requests("FunctionMap")
            for item in r.pipelined_inputs
        ]
        self.assertEqual({r.function_id for r in self.service.requests("FunctionMap")}, {"fu-train_dit"})
        self.assertEqual(len(jobs), 2, self.log())
        for job, lr in zip(jobs, ("0.001", "0.002"), strict=True):
            folder = f"runs/sweeps/lr/{job['run']}"
            self.assertIn(f"lr={lr}", job["run"])
            self.assertEqual(
                (job["runs"], job["released"], job["max_cost"]), (folder, f"outputs/{folder}", 2)
            )
            self.assertEqual(job["arguments"][0], "data/synth")
            self.assertEqual(job["arguments"][-1], "--no-cache")
            self.assertEqual(job["device"], "cuda")
        calls = json.loads((self.folder / "outputs/runs/sweeps/lr/calls.json").read_text())
        self.assertEqual({call["outcome"] for call in calls.values()}, {"failed"})
        self.assertEqual({call["error"] for call in calls.values()}, {"of this job"})
        (result,) = self.outputs()
        self.assertEqual(str(pickle.loads(result.data)), "0 of 2 jobs are finished")
        # Begun anew with the same input, it knows its calls.
        self.begin("sweep", request).wait(DEADLINE_S)
        self.assertEqual(self.service.requests("FunctionMap"), [])

    def test_a_sweep_that_cannot_ask_after_its_jobs_begins_none_twice(self):
        calls = self.folder / "outputs/runs/sweeps/lr/calls.json"
        for call, begun in (("c", 2), ("c", 0), ("d", 0)):
            self.service.outcome = grpclib.GRPCError(grpclib.Status.PERMISSION_DENIED, "not now")
            self.begin("sweep", self.sweep_request(call=call)).wait(DEADLINE_S)
            self.assertEqual(len(self.service.requests("FunctionMap")), begun, self.log())
            (result,) = self.outputs()
            self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_FAILURE)
            self.assertIn("not now", result.exception)
            noted = json.loads(calls.read_text()).values()
            self.assertEqual([set(call) for call in noted], [{"sweep", "id"}] * 2)
        # A call that Modal has forgotten has ended, and another sweep may begin its job anew.
        self.service.outcome = grpclib.GRPCError(grpclib.Status.NOT_FOUND, "forgotten")
        self.begin("sweep", self.sweep_request(call="d")).wait(DEADLINE_S)
        self.assertEqual(len(self.service.requests("FunctionMap")), 2, self.log())
        self.assertEqual({call["outcome"] for call in json.loads(calls.read_text()).values()}, {"failed"})


class Functions(unittest.TestCase):
    """What the others do, here, with a program that stands in for ours."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def here(self, script, lines):
        """What Python lines print that use the app."""
        program = self.folder / "tiny-cats"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        places = f"(run.Path({str(self.folder)!r}), {str(program)!r}, '', None)"
        lines = f"import run; run.Place.__init__.__defaults__ = {places}\nimport app\n{lines}"
        environment = clean_environment(PYTHONPATH=python_path(MODAL), HOME=str(self.folder))
        environment.pop("RAYON_NUM_THREADS", None)
        done = subprocess.run(
            [sys.executable, "-c", lines], env=environment, cwd=self.folder, capture_output=True, text=True
        )
        return done.stdout, done.stderr

    def test_a_batch_shares_the_cores_and_a_picture_has_a_process(self):
        # Its picture is what it was asked for: threads, breed, seed, count.
        said, errors = self.here(
            'echo "$RAYON_NUM_THREADS $2 $3 $4" >"${5#--output=}x.png"\n',
            "draw = app.sample.local\n"
            "for n in (1, 3, 8): print([p.decode() for p in draw([None] * n, ['Bengal'] * n, [*range(n)])])",
        )
        expected = [
            [f"{threads} --breed=Bengal --seed={seed} --count=1\n" for seed in range(count)]
            for count, threads in ((1, 4), (3, 1), (8, 1))
        ]
        self.assertEqual(said.splitlines(), list(map(repr, expected)), errors)

    def test_data_is_made_once_and_what_was_interrupted_is_begun_anew(self):
        script = 'echo "$*" >>calls\ncase $2 in prepare) mkdir "$4" && touch "$4/picture" ;; esac\n'
        lines = "app.DATA = app.SimpleNamespace(commit=lambda: print('commit'))\n"
        lines += "print(app.download_data.local([]))"
        (self.folder / "data/cat-heads.new").mkdir(parents=True)
        (self.folder / "data/cat-heads.new/half").touch()
        said, errors = self.here(script, lines)
        self.assertEqual(said.splitlines(), ["commit"] * 3 + ["data/cats, data/cat-heads"], errors)
        made = sorted(str(path.relative_to(self.folder)) for path in (self.folder / "data").glob("*/*"))
        self.assertEqual(made, ["data/cat-heads/picture", "data/cats/picture"])
        self.here(script, lines)
        calls = (self.folder / "calls").read_text().splitlines()
        self.assertEqual([call.split()[1] for call in calls], ["download", "prepare", "prepare", "download"])
        self.assertIn("--other", calls[1])


def python_path(*folders):
    """These, and where modal may be."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))


def program(glibc=(), libraries=(), machine=b"\x3e\x00"):
    """A file that looks like a program."""
    names = [f"GLIBC_2.{minor}" for minor in glibc] + list(libraries)
    return b"\x7fELF\x02\x01" + bytes(12) + machine + b"\0".join(name.encode() for name in names) + b"\0"


class Binaries(unittest.TestCase):
    def wrong(self, data, mode=0o755):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny-cats"
            path.write_bytes(data)
            path.chmod(mode)
            return [line.removeprefix(f"{path}: ") for line in options.check_binary(path)]

    def test_each_failing_check_is_one_line(self):
        self.assertEqual(self.wrong(program([2, 17, 39], ["libcublas.so.13", "libcurand.so.10"])), [])
        # What it tries in turn, by its own program: one that fits is enough.
        self.assertEqual(self.wrong(program([], ["libcublas.so.13", "libcublas.so.12"])), [])
        self.assertEqual(self.wrong(program()), [])
        (line,) = self.wrong(program([17, 40]))
        self.assertIn("needs glibc 2.40, the image has 2.39", line)
        lines = self.wrong(program([40], ["libcublas.so.12", "libnvrtc.so.11.2", "libcudart.so.13"]))
        self.assertEqual(len(lines), 3)
        self.assertIn("libcublas of CUDA 12, the image has CUDA 13.0", lines[1])
        self.assertEqual(self.wrong(b"#!/bin/sh\n"), ["expected a program for x86-64 Linux"])
        self.assertEqual(self.wrong(program(machine=b"\xb7\x00")), ["expected a program for x86-64 Linux"])
        self.assertEqual(self.wrong(program(), 0o644), ["is not executable"])
        (line,) = options.check_binary("/nowhere/tiny-cats")
        self.assertIn("No such file", line)


class Options(unittest.TestCase):
    def test_every_card_of_modals_is_taken_alone_and_in_numbers(self):
        for name in run.SETTINGS["gpu"]["names"]:
            self.assertEqual(options.gpu_list(f"{name}:8"), [f"{name}:8"])
            self.assertEqual(options.gpu_list(f"{name},L4:1"), [name, "L4:1"])
        with self.assertRaisesRegex(Exception, "as many of each"):
            options.gpu_list("A10,L4:2")

    def test_what_is_not_ours_goes_on_as_it_is_and_in_order(self):
        asked = options.parse(["train", "dit", "--steps", "9", "data/x", "--gpu=T4", "--lr=-1", "--no-cache"])
        self.assertEqual(asked.rest, ["--steps", "9", "data/x", "--lr=-1", "--no-cache"])
        self.assertEqual(asked.gpu, ["T4"])

    def test_a_separator_is_none_of_the_words(self):
        self.assertEqual(options.parse(["--", "train", "dit"]).command, "train")

    def test_what_nobody_asked_for_is_what_settings_say(self):
        asked = options.parse(["train", "classifier"])
        self.assertEqual((asked.timeout, asked.max_retries, asked.max_cost), (86400, 3, None))
        self.assertLessEqual(run.SETTINGS["retries"]["most_delay_s"], 60)
        self.assertLess(run.SETTINGS["time"]["grace_s"], 30)


if __name__ == "__main__":
    unittest.main()
