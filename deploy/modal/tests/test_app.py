"""Tests of the app with Modal's real client and container runtime, against a fake Modal server."""

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
from fake_server import FakeServer  # noqa: E402

import options  # noqa: E402
import run  # noqa: E402

# Shells start background jobs with SIGINT ignored, nohup ignores SIGHUP, and children inherit both. The tests send these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CLONE = MODAL.parents[1]
BINARY = os.environ.get("TINY_CATS_BINARY_FOR_TESTS")
if not BINARY or not os.access(BINARY, os.X_OK):
    raise SystemExit("error: TINY_CATS_BINARY_FOR_TESTS must name the tiny-cats that `cargo build` made")
TOKEN = {"MODAL_TOKEN_ID": "ak-unseen", "MODAL_TOKEN_SECRET": "as-unseen"}
DONE = {"run": "r", "folder": "runs/r", "status": "finished"}
# Seconds until a test fails because a process hangs.
DEADLINE_S = 900


def clean_environment(**more):
    prefixes = ("MODAL_", "TINY_CATS_S3_", "TINY_CATS_SECRETS", "TINY_CATS_BINARY")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(prefixes)}, **more}


class ServerTestCase(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tiny-cats-modal-"))
        self.addCleanup(shutil.rmtree, self.folder)
        server = FakeServer()
        self.enterContext(server)
        self.server, self.service = server, server.service
        self.service.outcome = DONE

    def modal(self, *words, code=0, outcome=DONE, flags=(), app=MODAL / "app.py", **environment):
        self.service.outcome = outcome
        self.service.recorded.clear()
        command = [sys.executable, "-m", "modal", "run", *flags, app, *words]
        environment = clean_environment(
            MODAL_SERVER_URL=self.server.url, HOME=str(self.folder), **{**TOKEN, **environment}
        )
        result = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        self.assertNotIn("unseen", result.stdout + result.stderr)
        return result

    def functions(self):
        """The definitions of each function by name, one per acceptable GPU."""
        functions = {}
        for request in self.service.requests("FunctionCreate"):
            if request.HasField("function"):
                functions[request.function.function_name] = [request.function]
            else:
                ranked = sorted(request.function_data.ranked_functions, key=lambda item: item.rank)
                functions[request.function_data.function_name] = [item.function for item in ranked]
        return functions

    def steps(self):
        """The build steps of the image."""
        lines = []
        for request in self.service.requests("ImageGetOrCreate"):
            lines += [line for line in request.image.dockerfile_commands if line != "FROM base"]
        return lines

    def files(self):
        """The container paths of the uploaded files."""
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


class Client(ServerTestCase):
    """Tests of `modal run` commands."""

    def test_train_requests_match_the_flags(self):
        words = "train dit data/cat-heads --gpu A10:2,L4:2 --timeout 3600 --max-retries 2 --run-id mine"
        result = self.modal(*words.split(), *"--max-cost 5 --region eu --steps=9 --lr 1".split())
        functions = self.functions()
        first, second = functions["train_dit"]
        configs = [function.resources.gpu_config for function in (first, second)]
        gpus = [(config.gpu_type, config.count) for config in configs]
        self.assertEqual(gpus, [("A10", 2), ("L4", 2)])
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
        lines = [line for line in result.stdout.splitlines() if not line.startswith(("✓", "├", "└"))]
        self.assertEqual(lines[0], "run mine")
        self.assertRegex(lines[1], "^call fc-")
        self.assertEqual(lines[3], "modal volume get tiny-cats-outputs runs/r")

    def test_other_functions_request_no_gpu(self):
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

    def test_the_image_contains_only_the_sources_of_the_clone(self):
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
            parts = Path(file).relative_to("/build").parts
            self.assertTrue(
                len(parts) == 1 or parts[0] in folders or parts[:2] == ("deploy", "modal"), file
            )
        # Files that the sources include must be in the image too.
        for source in [
            path for folder in ("src", "models", "export") for path in (CLONE / folder).rglob("*.rs")
        ]:
            for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text("utf8")):
                path = os.path.relpath(os.path.normpath(source.parent / name), CLONE)
                self.assertIn(f"/build/{path}", files, source)

    def test_kernels_are_compiled_for_a_t4_if_it_is_acceptable(self):
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

    def test_the_image_uses_a_local_binary(self):
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
        result = self.modal("train", "dit", code=2, TINY_CATS_BINARY=str(path))
        self.assertEqual(len(result.stderr.splitlines()), 2, result.stderr)
        self.assertEqual(self.service.recorded, [])

    def test_a_bucket_replaces_the_data_volume(self):
        variables = {
            "TINY_CATS_S3_BUCKET": "cats",
            "TINY_CATS_S3_PREFIX": "small/",
            "TINY_CATS_S3_SECRET": "keys",
            "TINY_CATS_SECRETS": "mlflow",
        }
        self.modal("train", "dit", **variables)
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
        # The image contains the names, because the container declares the same objects.
        for name, value in variables.items():
            self.assertTrue(any(step.startswith(f"ENV {name}={value}") for step in self.steps()), name)

    def test_invalid_arguments_give_one_line_errors(self):
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        Path("lr.toml").write_text("")
        for words, message in (
            ("train dit --gpu A11", "did you mean A10?"),
            ("train dit --gpu A10,h100", "did you mean H100?"),
            ("train dit --gpu A10:9", "1 to 8"),
            ("train dit --timeout 86401", "at most 86400"),
            ("train dit --timeout 4h", "at least 1"),
            ("train dit --max-retries 11", "at most 10"),
            ("train dit --max-retries -1", "at least 0"),
            ("train dit --max-cost 0", "more than 0"),
            ("train dit --max-cost nan", "more than 0"),
            ("train dit --price-per-hour {}", "dollars per hour"),
            ('train dit --price-per-hour {"A10":Infinity}', "dollars per hour"),
            ('train dit --max-cost=1 --gpu=L4,T4 --price-per-hour={"L4":1}', "none for T4"),
            ('train dit --max-cost=1 --price-per-hour={"L4":1}', "none for A10"),
            ('sweep lr.toml --shares {"a":0}', "dollars by job"),
            ('sweep lr.toml --shares {"a":true}', "dollars by job"),
            ("sweep lr.toml --shares [1]", "dollars by job"),
            ("train dit --run-id ../x", "a folder name"),
            ("train cat", "invalid choice"),
            ("train dit --runs-dir=x", "is set in the cloud"),
            ("train dit --mlflow=https://me:secret@host/", "must not contain credentials"),
            ("train dit --config=/etc/hostname", "below the working directory"),
            ("sweep lr.toml --parallel 0", "at least 1"),
            ("sweep none.toml", "No such file"),
            ("sample --bread Siamese", "unexpected argument"),
            ("check it", "unexpected argument"),
            ("train dit --mlflow=http://me:secret@/@host", "must not contain credentials"),
            ("", "required"),
        ):
            with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as exit:
                options.parse(words.split())
            self.assertEqual((exit.exception.code, stderr.getvalue().count("\n")), (2, 1), stderr.getvalue())
            self.assertIn(message, stderr.getvalue())
            self.assertNotIn("secret@", stderr.getvalue())

    def test_invalid_arguments_send_no_requests(self):
        result = self.modal("train", "dit", "--gpu", "A11", code=2)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertEqual(self.service.recorded, [])

    def test_help_lists_the_options(self):
        self.assertIn("train a model", self.modal("--help").stdout)
        self.assertIn("--max-cost", self.modal("train", "--help").stdout)
        self.assertEqual(self.service.recorded, [])

    def test_check_needs_no_token_and_sends_no_requests(self):
        no_token = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
        result = self.modal("check", **no_token)
        self.assertEqual((result.stdout, result.stderr), ("the app loads\n", ""))
        path = self.folder / "tiny-cats"
        path.write_bytes(b"#!/bin/sh\n")
        path.chmod(0o755)
        result = self.modal("check", code=2, TINY_CATS_BINARY=str(path), **no_token)
        self.assertEqual(result.stderr, f"error: {path}: expected a program for x86-64 Linux\n")
        # Only the declaration checks this: a copy of the app with a delay that Modal does not accept.
        copy = self.folder / "app"
        shutil.copytree(MODAL, copy, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        result = self.modal("check", code=2, app=copy / "app.py", **no_token)
        self.assertRegex(result.stderr, r"^error: .*/src: not found; [^\n]*\n$")
        settings = (copy / "settings.toml").read_text("utf8")
        (copy / "settings.toml").write_text(settings.replace("most_delay_s = 60.0", "most_delay_s = 61.0"))
        path.write_bytes(program())
        result = self.modal("check", code=1, app=copy / "app.py", TINY_CATS_BINARY=str(path), **no_token)
        self.assertRegex(result.stderr, r"^error: the app does not load: InvalidError: [^\n]*61[^\n]*\n$")
        self.assertEqual(self.service.recorded, [])

    def test_a_missing_token_is_reported(self):
        result = self.modal("train", "dit", code=1, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
        self.assertIn("Token missing", result.stdout + result.stderr)
        self.assertEqual(self.service.recorded, [])

    def test_only_a_finished_run_exits_with_0(self):
        for error, code in (
            (run.PermanentError("no such folder"), 1),
            (run.TimeLimitReached("time"), 75),
            (run.BudgetExhausted("spent"), 75),
        ):
            result = self.modal("train", "dit", code=code, outcome=error)
            self.assertEqual(result.stderr, f"error: {error}\n")
        self.modal("train", "dit", code=1, outcome=ValueError("an error of Modal"))

    def test_a_detached_app_outlives_the_client(self):
        self.modal("train", "dit", flags=["--detach"])
        (created,) = self.service.requests("AppCreate")
        self.assertEqual(created.app_state, api_pb2.APP_STATE_DETACHED)
        (spawn,) = self.service.requests("FunctionMap")
        invocation = api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC  # the call belongs to the server, not to this client
        self.assertEqual(spawn.function_call_invocation_type, invocation)

    def test_sample_and_export_print_their_results(self):
        self.modal("sample", "--breed=Bengal", "--seed=7", "-o", "b.png", outcome=b"png")
        self.assertEqual(self.arguments(), ("sample", None, "Bengal", 7))
        self.assertEqual((self.folder / "b.png").read_bytes(), b"png")
        self.modal("export", "mine", "--opset=18", outcome="x.onnx")
        self.assertEqual(self.arguments(), ("export", "mine", ["--opset=18"]))


class Containers(ServerTestCase):
    """Tests of the functions in Modal's container runtime, which gets its input from the fake server."""

    def setUp(self):
        super().setUp()
        self.modal("train", "dit", "data/synth", "--gpu=A10")
        self.definitions = self.functions()
        # As in a container, app.py is next to the app's other files only.
        code, site = self.folder / "root", self.folder / "site"
        code.mkdir()
        for name in ("app.py", "run.py", "options.py", "settings.toml"):
            shutil.copy(MODAL / name, code)
        # The folder of the test stands for the container's root.
        (self.folder / "outputs").mkdir()
        subprocess.run(
            [BINARY, "data", "synth", self.folder / "data/synth", "--per-class=8", "--size=32"],
            check=True,
            capture_output=True,
        )
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import pathlib, run\n"
            f"run.Workspace.__init__.__defaults__ = (pathlib.Path({str(self.folder)!r}), {BINARY!r}, '', None)\n"
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
        """Starts a container that trains, for long enough to be interrupted after its first training states."""
        words = "--config=smoke --steps=80 --limit-files=24 --save-interval=2 --sample-interval=0 --device=cpu"
        arguments = [data, *words.split()]
        return self.start("train_dit", {"call": "c", "run": "r", "timeout": 600, "arguments": arguments})

    def start(self, name, request):
        """Starts a container of a function with one input."""
        (function,) = self.definitions[name]
        item = api_pb2.FunctionGetInputsItem(input_id="in-1", function_call_id="fc-1")
        item.input.args, item.input.data_format = pickle.dumps(((request,), {})), api_pb2.DATA_FORMAT_PICKLE
        self.service.inputs = [item]
        self.service.recorded.clear()
        layout = api_pb2.AppLayout(function_ids={name: f"fu-{name}" for name in self.definitions})
        for other, id in layout.function_ids.items():
            metadata = api_pb2.FunctionHandleMetadata(function_name=other)
            layout.objects.add(object_id=id, function_handle_metadata=metadata)
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

    def wait_for(self, condition, process):
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

    def test_an_interrupted_container_gives_no_output_and_the_next_finishes(self):
        states = self.folder / "outputs/runs/r"
        before = set()
        for number, signal_number in enumerate((signal.SIGINT, signal.SIGTERM), 1):
            process = self.container()
            self.wait_for(lambda before=before: set(states.glob("*_step_*")) - before, process)
            before = set(states.glob("*_step_*"))
            process.send_signal(signal_number)
            process.wait(DEADLINE_S)
            before = set(states.glob("*_step_*"))
            record = self.record()
            self.assertEqual((record["preemptions"], record["status"]), (number, "stopped"), self.log())
            self.assertEqual(self.outputs(), [], "without an output Modal restarts with the same input")
            self.assertIn("tiny-cats-outputs", self.commits())
        # Modal cannot reload the volume while the engine has files open, which must not fail the run.
        self.service.open_files = True
        self.assertEqual(self.container().wait(DEADLINE_S), 0, self.log())
        self.assertTrue(self.service.requests("VolumeReload"))
        (result,) = self.outputs()
        self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, self.log())
        self.assertEqual(pickle.loads(result.data)["status"], "finished")
        self.assertEqual([attempt["container"] for attempt in self.record()["attempts"]], ["ta-1"] * 3)

    def test_a_canceled_call_saves_and_an_error_keeps_its_type(self):
        self.service.awaits_cancel = True
        process = self.container()
        self.wait_for(lambda: list((self.folder / "outputs/runs/r").glob("*_step_*")), process)
        self.service.canceled_input = "in-1"
        process.wait(DEADLINE_S)
        self.assertEqual(self.record()["attempts"][-1]["outcome"], "cancelled", self.log())
        (result,) = self.outputs()
        self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        self.container(data="data/nothing").wait(DEADLINE_S)
        (result,) = self.outputs()
        self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_FAILURE)
        error = pickle.loads(result.data)
        self.assertIsInstance(error, run.PermanentError)
        self.assertIn("data/nothing", str(error))

    def sweep_request(self, **changes):
        file = 'task = "dit"\ndata = "data/synth"\n[sweep]\nlr = [1e-3, 2e-3]\n'
        request = options.build_request(options.parse(["train", "dit", "--max-cost=4", "--no-cache"]))
        train = {**request, "files": {"lr.toml": file}}
        return {
            "call": "c",
            "train": train,
            "file": "lr.toml",
            "parallel": 2,
            "max_cost": 4,
            "retry_failed": False,
            **changes,
        }

    def test_a_sweep_starts_one_call_per_job(self):
        request = self.sweep_request()
        self.service.outcome = run.PermanentError("failed job")
        self.start("sweep", request).wait(DEADLINE_S)
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
        self.assertEqual({call["error"] for call in calls.values()}, {"failed job"})
        (result,) = self.outputs()
        self.assertEqual(str(pickle.loads(result.data)), "0 of 2 jobs finished")
        # Restarted with the same input, it starts no new calls.
        self.start("sweep", request).wait(DEADLINE_S)
        self.assertEqual(self.service.requests("FunctionMap"), [])

    def test_a_sweep_does_not_restart_jobs_of_unknown_status(self):
        calls = self.folder / "outputs/runs/sweeps/lr/calls.json"
        for call, started in (("c", 2), ("c", 0), ("d", 0)):
            self.service.outcome = grpclib.GRPCError(grpclib.Status.PERMISSION_DENIED, "not now")
            self.start("sweep", self.sweep_request(call=call)).wait(DEADLINE_S)
            self.assertEqual(len(self.service.requests("FunctionMap")), started, self.log())
            (result,) = self.outputs()
            self.assertEqual(result.status, api_pb2.GenericResult.GENERIC_STATUS_FAILURE)
            self.assertIn("not now", result.exception)
            saved = json.loads(calls.read_text()).values()
            self.assertEqual([set(call) for call in saved], [{"sweep", "id"}] * 2)
        # An unknown call has failed, and another sweep may restart its job.
        self.service.outcome = grpclib.GRPCError(grpclib.Status.NOT_FOUND, "forgotten")
        self.start("sweep", self.sweep_request(call="d")).wait(DEADLINE_S)
        self.assertEqual(len(self.service.requests("FunctionMap")), 2, self.log())
        self.assertEqual({call["outcome"] for call in json.loads(calls.read_text()).values()}, {"failed"})


class Functions(unittest.TestCase):
    """Tests of the other functions in a local process, with a fake program."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def run_app(self, script, lines):
        """Runs Python lines that use the app with a fake program; returns stdout and stderr."""
        program = self.folder / "tiny-cats"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        defaults = f"(run.Path({str(self.folder)!r}), {str(program)!r}, '', None)"
        lines = f"import run; run.Workspace.__init__.__defaults__ = {defaults}\nimport app\n{lines}"
        environment = clean_environment(PYTHONPATH=python_path(MODAL), HOME=str(self.folder))
        environment.pop("RAYON_NUM_THREADS", None)
        result = subprocess.run(
            [sys.executable, "-c", lines], env=environment, cwd=self.folder, capture_output=True, text=True
        )
        return result.stdout, result.stderr

    def test_the_processes_of_a_batch_share_the_cores(self):
        # The fake program writes these into the image: number of threads, breed, seed, count.
        output, errors = self.run_app(
            'echo "$RAYON_NUM_THREADS $2 $3 $4" >"${5#--output=}x.png"\n',
            "sample = app.sample.local\n"
            "for n in (1, 3, 8): print([p.decode() for p in sample([None] * n, ['Bengal'] * n, [*range(n)])])",
        )
        expected = [
            [f"{threads} --breed=Bengal --seed={seed} --count=1\n" for seed in range(count)]
            for count, threads in ((1, 4), (3, 1), (8, 1))
        ]
        self.assertEqual(output.splitlines(), list(map(repr, expected)), errors)

    def test_data_preparation_runs_once_and_restarts_after_an_interruption(self):
        script = 'echo "$*" >>calls\ncase $2 in prepare) mkdir "$4" && touch "$4/image" ;; esac\n'
        lines = "app.DATA = app.SimpleNamespace(commit=lambda: print('commit'))\n"
        lines += "print(app.download_data.local([]))"
        (self.folder / "data/cat-heads.new").mkdir(parents=True)
        (self.folder / "data/cat-heads.new/half").touch()
        output, errors = self.run_app(script, lines)
        self.assertEqual(output.splitlines(), ["commit"] * 3 + ["data/cats, data/cat-heads"], errors)
        files = sorted(str(path.relative_to(self.folder)) for path in (self.folder / "data").glob("*/*"))
        self.assertEqual(files, ["data/cat-heads/image", "data/cats/image"])
        self.run_app(script, lines)
        calls = (self.folder / "calls").read_text().splitlines()
        self.assertEqual([call.split()[1] for call in calls], ["download", "prepare", "prepare", "download"])
        self.assertIn("--other", calls[1])


def python_path(*folders):
    """A PYTHONPATH of these folders and the current one, which may contain modal."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))


def program(glibc=(), libraries=(), machine=b"\x3e\x00"):
    """The bytes of a fake ELF program."""
    names = [f"GLIBC_2.{minor}" for minor in glibc] + list(libraries)
    return b"\x7fELF\x02\x01" + bytes(12) + machine + b"\0".join(name.encode() for name in names) + b"\0"


class Binaries(unittest.TestCase):
    def errors(self, data, mode=0o755):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny-cats"
            path.write_bytes(data)
            path.chmod(mode)
            return [line.removeprefix(f"{path}: ") for line in options.check_binary(path)]

    def test_each_failing_check_is_one_line(self):
        self.assertEqual(self.errors(program([2, 17, 39], ["libcublas.so.13", "libcurand.so.10"])), [])
        # A program that tries several versions of a library: one match is enough.
        self.assertEqual(self.errors(program([], ["libcublas.so.13", "libcublas.so.12"])), [])
        self.assertEqual(self.errors(program()), [])
        (line,) = self.errors(program([17, 40]))
        self.assertIn("needs glibc 2.40, but the image has 2.39", line)
        lines = self.errors(program([40], ["libcublas.so.12", "libnvrtc.so.11.2", "libcudart.so.13"]))
        self.assertEqual(len(lines), 3)
        self.assertIn("libcublas of CUDA 12, but the image has CUDA 13.0", lines[1])
        self.assertEqual(self.errors(b"#!/bin/sh\n"), ["expected a program for x86-64 Linux"])
        self.assertEqual(self.errors(program(machine=b"\xb7\x00")), ["expected a program for x86-64 Linux"])
        self.assertEqual(self.errors(program(), 0o644), ["not executable"])
        (line,) = options.check_binary("/nowhere/tiny-cats")
        self.assertIn("No such file", line)


class Options(unittest.TestCase):
    def test_all_gpu_names_are_accepted_with_and_without_counts(self):
        for name in run.SETTINGS["gpu"]["names"]:
            self.assertEqual(options.gpu_list(f"{name}:8"), [f"{name}:8"])
            self.assertEqual(options.gpu_list(f"{name},L4:1"), [name, "L4:1"])
        with self.assertRaisesRegex(Exception, "the same number of each"):
            options.gpu_list("A10,L4:2")

    def test_other_arguments_keep_their_order(self):
        args = options.parse(["train", "dit", "--steps", "9", "data/x", "--gpu=T4", "--lr=-1", "--no-cache"])
        self.assertEqual(args.rest, ["--steps", "9", "data/x", "--lr=-1", "--no-cache"])
        self.assertEqual(args.gpu, ["T4"])

    def test_a_leading_separator_is_ignored(self):
        self.assertEqual(options.parse(["--", "train", "dit"]).command, "train")

    def test_defaults_come_from_the_settings(self):
        args = options.parse(["train", "classifier"])
        self.assertEqual((args.timeout, args.max_retries, args.max_cost), (86400, 3, None))
        self.assertLessEqual(run.SETTINGS["retries"]["most_delay_s"], 60)
        self.assertLess(run.SETTINGS["time"]["grace_s"], 30)


if __name__ == "__main__":
    unittest.main()
