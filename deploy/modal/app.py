"""Runs tiny-cats on rented GPUs at Modal.

    modal run --detach deploy/modal/app.py train dit data/cat-heads --gpu A10,L4 --timeout 14400 --steps=9000
    modal run deploy/modal/app.py check
    modal run deploy/modal/app.py --help

The image contains the program that TINY_CATS_BINARY names, or else builds it from this clone. Training mounts
the data volume read-only at /data. If TINY_CATS_S3_BUCKET is set, it mounts that bucket instead, with the prefix
TINY_CATS_S3_PREFIX, the endpoint TINY_CATS_S3_ENDPOINT and the Modal secret TINY_CATS_S3_SECRET.
TINY_CATS_SECRETS names Modal secrets for training, separated by commas, such as MLflow's credentials.
"""

import dataclasses
import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import modal

import options
import run
from run import SETTINGS

FILES = ("app.py", "options.py", "run.py", "settings.toml")
APP_FOLDER = Path(__file__).resolve().parent  # /root in a container


def parse_command_line():
    """Parses and checks the arguments of `modal run`; returns None elsewhere.

    This happens before the functions are declared: only a declaration takes a list of GPUs, and Modal builds the
    image before it calls the entrypoint.
    """
    app_file = Path(__file__).resolve()
    words = [Path(word.removesuffix("::main")).resolve() for word in sys.argv]
    position = words.index(app_file) if app_file in words else 0
    if not modal.is_local() or "run" not in sys.argv[:position] or "IS_CHECK" in globals():
        return None
    args = options.parse(sys.argv[position + 1 :])
    if args.command == "check":
        check()
    return args


def check():
    """Checks that this file can be loaded, and exits before Modal connects to its servers."""
    try:
        runpy.run_path(__file__, {"IS_CHECK": True}, Path(__file__).stem)
    except Exception as error:
        print("error: the app does not load:", *f"{type(error).__name__}: {error}".split(), file=sys.stderr)
        sys.exit(1)
    print("the app loads")
    sys.exit(0)


ARGS = parse_command_line()
TIME, RETRIES, CONTAINER = SETTINGS["time"], SETTINGS["retries"], SETTINGS["container"]


def gpus(task):
    """The acceptable GPUs, in order of preference."""
    return getattr(ARGS, "gpu", None) or [SETTINGS["gpu"][task]]


def single_or_list(names):
    return names[0] if len(names) == 1 else names


# --- The image ---


def compute_capability():
    """The compute capability for candle's kernels; see settings.toml. Only the requested task counts."""
    tasks = [task for task in options.TASKS if ARGS is None or task == getattr(ARGS, "task", None)]
    has_t4 = any(gpu.partition(":")[0] == "T4" for task in tasks for gpu in gpus(task))
    return SETTINGS["image"]["compute_capability_t4" if has_t4 else "compute_capability"]


def container_image():
    """The image of all functions."""
    settings, binary = SETTINGS["image"], os.environ.get("TINY_CATS_BINARY")
    if binary and modal.is_local():
        if errors := options.check_binary(binary):
            print(*(f"error: {line}" for line in errors), sep="\n", file=sys.stderr)
            sys.exit(options.EXIT_USAGE)
        image = modal.Image.from_registry(settings["runtime"], add_python=settings["python"]).entrypoint([])
        image = image.add_local_file(binary, "/usr/local/bin/tiny-cats", copy=True)
    else:
        image = image_from_source()
    # The container runs this file again and declares the same bucket and secrets, so it needs their names.
    names = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("TINY_CATS_S3_", "TINY_CATS_SECRETS"))
    }
    # A program that cannot start fails while the image is built, not on a GPU. The builder has no GPU driver.
    image = image.run_commands(f"LD_LIBRARY_PATH=$LD_LIBRARY_PATH:{DRIVER} tiny-cats --version")
    image = image.env(names) if names else image
    for name in FILES[1:]:  # Modal adds app.py itself
        image = image.add_local_file(APP_FOLDER / name, f"/root/{name}")
    return image


def image_from_source():
    """An image with the program built from this clone.

    It keeps the compiler, which costs no time: Modal loads only the files that are read.
    """
    settings, clone = SETTINGS["image"], APP_FOLDER.parent.parent
    # An explicit list, so that data, runs and keys in the clone do not get into the image.
    folders = ("src", "models", "export", "benches", "configs", "examples")
    files = ("Cargo.toml", "Cargo.lock", "README.md")
    if missing := [name for name in folders + files if modal.is_local() and not (clone / name).exists()]:
        print(f"error: {clone / missing[0]}: not found; expected a clone of tiny-cats", file=sys.stderr)
        sys.exit(options.EXIT_USAGE)
    image = modal.Image.from_registry(settings["devel"], add_python=settings["python"]).entrypoint([])
    image = image.apt_install("build-essential", "ca-certificates", "curl").run_commands(
        "curl --proto '=https' -sSf https://sh.rustup.rs"
        f" | sh -s -- -y --profile minimal --default-toolchain {settings['rust']}"
    )
    for folder in folders:
        image = image.add_local_dir(clone / folder, f"/build/{folder}", copy=True, ignore=["**/__pycache__"])
    for file in files:
        image = image.add_local_file(clone / file, f"/build/{file}", copy=True)
    for name in FILES:  # the program embeds these files
        image = image.add_local_file(APP_FOLDER / name, f"/build/deploy/modal/{name}", copy=True)
    # Only training on several GPUs needs NCCL, which the devel image contains.
    has_several_gpus = any(options.gpu_count(gpu) > 1 for gpu in getattr(ARGS, "gpu", None) or [])
    return image.run_commands(
        f"cd /build && CUDA_COMPUTE_CAP={compute_capability()} $HOME/.cargo/bin/cargo build --release"
        f" --locked --features {'nccl' if has_several_gpus else 'cuda'} --bin tiny-cats"
        " && cp target/release/tiny-cats /usr/local/bin/ && rm -rf target"
    )


# --- The functions ---

# The folder of CUDA's driver library in NVIDIA's images. The program is linked with it, also on machines without a GPU.
DRIVER = "/usr/local/cuda/compat"
IMAGE = container_image()
DATA = modal.Volume.from_name(SETTINGS["app"]["data_volume"], create_if_missing=True)
OUTPUTS = modal.Volume.from_name(SETTINGS["app"]["output_volume"], create_if_missing=True)


def data_mount():
    """The read-only mount of /data: the data volume or a bucket."""
    bucket, secret = os.environ.get("TINY_CATS_S3_BUCKET"), os.environ.get("TINY_CATS_S3_SECRET")
    if not bucket:
        return DATA.with_mount_options(read_only=True)
    return modal.CloudBucketMount(
        bucket,
        bucket_endpoint_url=os.environ.get("TINY_CATS_S3_ENDPOINT"),
        key_prefix=os.environ.get("TINY_CATS_S3_PREFIX"),
        secret=modal.Secret.from_name(secret) if secret else None,
        read_only=True,
    )


def retry_policy(count):
    return modal.Retries(
        max_retries=count,
        initial_delay=RETRIES["initial_delay_s"],
        backoff_coefficient=RETRIES["backoff"],
        max_delay=RETRIES["most_delay_s"],
    )


def exact_resources(cores, mib):
    """Requests CPU cores and memory and sets the limits to the same values.

    Without limits, Modal gives and bills more than was requested.
    """
    return {"cpu": (cores, cores), "memory": (mib, mib)}


def commit():
    """Commits the output volume.

    Modal then loads the changes of other containers, and fails while the engine has files open. That failure is
    ignored: no other container writes to the same run.
    """
    try:
        OUTPUTS.commit()
    except RuntimeError as error:
        if "open files" not in str(error):
            raise


app = modal.App(SETTINGS["app"]["name"])
TRAINING = {
    "image": IMAGE,
    **exact_resources(CONTAINER["cpu"], CONTAINER["memory_mib"]),
    "timeout": getattr(ARGS, "timeout", TIME["longest_attempt_s"]),
    "startup_timeout": TIME["startup_s"],
    "retries": retry_policy(getattr(ARGS, "max_retries", RETRIES["default"])),
    "max_containers": getattr(ARGS, "parallel", 1) if ARGS else None,
    "volumes": {"/data": data_mount(), "/outputs": OUTPUTS},
    "secrets": [
        modal.Secret.from_name(name) for name in os.environ.get("TINY_CATS_SECRETS", "").split(",") if name
    ],
    "region": getattr(ARGS, "region", None),
    # Each attempt gets a new container, which mounts the latest state of the volume.
    "single_use_containers": True,
}


@app.function(gpu=single_or_list(gpus("dit")), **TRAINING)
def train_dit(request):
    return run.train("dit", request, run.Workspace(), commit)


@app.function(gpu=single_or_list(gpus("classifier")), **TRAINING)
def train_classifier(request):
    return run.train("classifier", request, run.Workspace(), commit)


FUNCTIONS = {"dit": train_dit, "classifier": train_classifier}
CPU_FUNCTION = {"image": IMAGE, **exact_resources(1.0, 4096), "startup_timeout": TIME["startup_s"]}
CPU_WORKSPACE = run.Workspace(libraries=DRIVER, threads=1)

# Errors of a call that failed. Modal's other errors mean that the call's status is unknown.
CALL_ERRORS = (
    modal.exception.NotFoundError,
    modal.exception.OutputExpiredError,
    modal.exception.FunctionTimeoutError,
    modal.exception.RemoteError,  # canceled, or its container died
    modal.exception.InternalFailure,
    modal.exception.ExecutionError,  # unreadable result
    modal.exception.DeserializationError,
)


@app.function(
    volumes={"/outputs": OUTPUTS},
    timeout=TIME["longest_attempt_s"],
    retries=retry_policy(RETRIES["most"]),
    nonpreemptible=True,
    single_use_containers=True,
    **CPU_FUNCTION,
)
def sweep(request):
    """Runs the jobs of a sweep. A sweep may outlive its container; the next one reattaches to the calls."""

    def spawn(task, job):
        call = FUNCTIONS[task].spawn(job)
        return SimpleNamespace(id=call.object_id, get=call.get)

    def attach(id):  # an attached FunctionCall has no id before its first request
        return SimpleNamespace(id=id, get=modal.FunctionCall.from_id(id).get)

    def is_call_error(error):
        return isinstance(error, CALL_ERRORS)

    return run.sweep(request, CPU_WORKSPACE, commit, OUTPUTS.reload, spawn, attach, is_call_error)


@app.function(volumes={"/data": DATA}, timeout=4 * 3600, **CPU_FUNCTION)
def download_data(arguments):
    """Downloads the photographs and prepares the training data: uncropped images, with dogs as `other`, for the
    classifier; heads for the generator."""
    source = "data/oxford-pets"
    run_program(["data", "download", source, *arguments])
    DATA.commit()
    folders = {"data/cats": "--crop=none --size=256 --other", "data/cat-heads": "--crop=head --size=128"}
    for folder, flags in folders.items():
        new = f"{folder}.new"  # an interrupted call may leave it incomplete
        if not (CPU_WORKSPACE.root / folder).exists():
            shutil.rmtree(CPU_WORKSPACE.root / new, ignore_errors=True)
            run_program(["data", "prepare", source, new, *flags.split()])
            shutil.move(CPU_WORKSPACE.root / new, CPU_WORKSPACE.root / folder)
            DATA.commit()
    return ", ".join(folders)


@app.function(volumes={"/outputs": OUTPUTS}, timeout=3600, **CPU_FUNCTION)
def export(name, arguments):
    """Exports the released model of a run to an ONNX file next to it."""
    model = released_model(name)
    run_program(["export", model, *arguments])
    OUTPUTS.commit()
    return str(Path(model).with_suffix(".onnx"))


@app.function(
    image=IMAGE,
    **exact_resources(CONTAINER["cpu"], 4096),
    timeout=600,
    startup_timeout=TIME["startup_s"],
    scaledown_window=60,
    max_containers=4,
    volumes={"/outputs": OUTPUTS.with_mount_options(read_only=True)},
)
@modal.batched(max_batch_size=8, wait_ms=200)
def sample(names: list, breeds: list, seeds: list):
    """Generates one PNG image per request. A batch shares a container and its file cache. Each image has its own
    process, because a process takes a single seed."""
    cores = int(CONTAINER["cpu"])
    workspace = dataclasses.replace(CPU_WORKSPACE, threads=max(cores // len(names), 1))
    with ThreadPoolExecutor(cores) as threads:
        return list(threads.map(generate_image, [workspace] * len(names), names, breeds, seeds))


def generate_image(workspace, name, breed, seed):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = ["--model", released_model(name)] if name else []
        flags = [f"--breed={breed}", f"--seed={seed}", "--count=1", f"--output={folder}/"]
        run_program(["generate", *model, *flags], workspace)
        return next(Path(folder).glob("*.png")).read_bytes()


def released_model(name):
    """The path of a run's released model."""
    folder = Path("/outputs/runs") / name
    files = [path for path in sorted(folder.glob("*.safetensors")) if "_step_" not in path.name]
    if not files:
        raise run.PermanentError(f"{folder}: no released model found; is the run finished?")
    return str(files[0])


def run_program(arguments, workspace=CPU_WORKSPACE):
    process = workspace.run(arguments, stderr=subprocess.PIPE)
    print(process.stderr, end="", file=sys.stderr)
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise run.PermanentError(lines[-1])


# --- The local entrypoint ---


@app.local_entrypoint()
def main(*arguments):
    args = ARGS or options.parse(list(arguments))
    if args.command == "train":
        request = options.build_request(args)
        print(f"run {request['run']}")
        call = FUNCTIONS[args.task].spawn(request)
    elif args.command == "sweep":
        call = sweep.spawn(options.build_request(args))
    elif args.command == "download-data":
        call = download_data.spawn(args.rest)
    elif args.command == "export":
        call = export.spawn(args.run, args.rest)
    else:
        call = sample.spawn(args.run, args.breed, args.seed)
    print(f"call {call.object_id}", flush=True)
    try:
        result = call.get()  # not .remote(), which gives up after 24 hours
    except run.AttemptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, run.PermanentError) else run.EXIT_STOPPED)
    if args.command == "sample":
        Path(args.output).write_bytes(result)
        result = args.output
    print(result)
    if isinstance(result, dict):
        print(f"modal volume get {SETTINGS['app']['output_volume']} {result['folder']}")
