"""tiny-cats on Modal: the same program, on rented GPUs.

    modal run --detach deploy/modal/app.py train dit data/cat-heads --gpu A10,L4 --timeout 14400 --steps=9000
    modal run deploy/modal/app.py check
    modal run deploy/modal/app.py --help

The image is built from this clone, or takes the program that TINY_CATS_BINARY names. For training, /data is
the data volume or, read-only as well, the bucket TINY_CATS_S3_BUCKET (below TINY_CATS_S3_PREFIX, at
TINY_CATS_S3_ENDPOINT, with the Modal secret TINY_CATS_S3_SECRET). TINY_CATS_SECRETS names Modal secrets,
separated by commas, that training needs: MLflow's credentials, say.
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
HERE = Path(__file__).resolve().parent  # in a container /root, which is no clone


def asked_here():
    """What `modal run` was asked for, checked. It is read before the functions are declared, since only a
    declaration takes a list of GPUs, and since Modal builds the image before it calls the entrypoint."""
    own = Path(__file__).resolve()
    here = [i for i, word in enumerate(sys.argv) if Path(word.removesuffix("::main")).resolve() == own]
    if not modal.is_local() or not here or "run" not in sys.argv[: here[0]] or "CHECKING" in globals():
        return None
    asked = options.parse(sys.argv[here[0] + 1 :])
    if asked.command == "check":
        check()
    return asked


def check():
    """Says whether all of this file can be declared, and ends: Modal would ask its servers next."""
    try:
        runpy.run_path(__file__, {"CHECKING": True}, Path(__file__).stem)
    except Exception as error:
        print("error: the app does not load:", *f"{type(error).__name__}: {error}".split(), file=sys.stderr)
        sys.exit(1)
    print("the app loads")
    sys.exit(0)


ASKED = asked_here()
TIME, RETRIES, CONTAINER = SETTINGS["time"], SETTINGS["retries"], SETTINGS["container"]


def gpus(task):
    """The cards that will do, in order of preference."""
    return getattr(ASKED, "gpu", None) or [SETTINGS["gpu"][task]]


def one_or_more(names):
    return names[0] if len(names) == 1 else names


# --- The image ---


def compute_capability():
    """What candle's kernels are compiled for; see settings.toml. What is not asked for needs no cards."""
    tasks = [task for task in options.TASKS if ASKED is None or task == getattr(ASKED, "task", None)]
    may_be_t4 = any(gpu.partition(":")[0] == "T4" for task in tasks for gpu in gpus(task))
    return SETTINGS["image"]["compute_capability_t4" if may_be_t4 else "compute_capability"]


def image():
    about, binary = SETTINGS["image"], os.environ.get("TINY_CATS_BINARY")
    if binary and modal.is_local():
        if wrong := options.check_binary(binary):
            print(*(f"error: {line}" for line in wrong), sep="\n", file=sys.stderr)
            sys.exit(options.WRONG_USAGE)
        made = modal.Image.from_registry(about["runtime"], add_python=about["python"]).entrypoint([])
        made = made.add_local_file(binary, "/usr/local/bin/tiny-cats", copy=True)
    else:
        made = built()
    # What a bucket and secrets are called has to be known in the container too, where this file runs again.
    named = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("TINY_CATS_S3_", "TINY_CATS_SECRETS"))
    }
    # A program that cannot start there shall fail here and not on a GPU. This machine has no driver.
    made = made.run_commands(f"LD_LIBRARY_PATH=$LD_LIBRARY_PATH:{DRIVER} tiny-cats --version")
    made = made.env(named) if named else made
    for name in FILES[1:]:  # Modal takes this one there itself
        made = made.add_local_file(HERE / name, f"/root/{name}")
    return made


def built():
    """With the program built from this clone. The compiler stays in, as Modal fetches only what is read."""
    about, clone = SETTINGS["image"], HERE.parent.parent
    # Named one by one, so that nothing else of a clone gets into an image: data, runs, keys.
    folders = ("src", "models", "export", "benches", "configs", "examples")
    files = ("Cargo.toml", "Cargo.lock", "README.md")
    if missing := [name for name in folders + files if modal.is_local() and not (clone / name).exists()]:
        print(f"error: {clone / missing[0]}: not found; this is no clone to build from", file=sys.stderr)
        sys.exit(options.WRONG_USAGE)
    made = modal.Image.from_registry(about["devel"], add_python=about["python"]).entrypoint([])
    made = made.apt_install("build-essential", "ca-certificates", "curl").run_commands(
        "curl --proto '=https' -sSf https://sh.rustup.rs"
        f" | sh -s -- -y --profile minimal --default-toolchain {about['rust']}"
    )
    for folder in folders:
        made = made.add_local_dir(clone / folder, f"/build/{folder}", copy=True, ignore=["**/__pycache__"])
    for file in files:
        made = made.add_local_file(clone / file, f"/build/{file}", copy=True)
    for name in FILES:  # the program brings this app along
        made = made.add_local_file(HERE / name, f"/build/deploy/modal/{name}", copy=True)
    # NCCL, which the devel image has, is for several GPUs alone.
    several = any(options.count_of(gpu) > 1 for gpu in getattr(ASKED, "gpu", None) or [])
    return made.run_commands(
        f"cd /build && CUDA_COMPUTE_CAP={compute_capability()} $HOME/.cargo/bin/cargo build --release"
        f" --locked --features {'nccl' if several else 'cuda'} --bin tiny-cats"
        " && cp target/release/tiny-cats /usr/local/bin/ && rm -rf target"
    )


# --- The functions ---

# CUDA's driver library, which the program is linked with, as NVIDIA's images have it: for machines without.
DRIVER = "/usr/local/cuda/compat"
IMAGE = image()
DATA = modal.Volume.from_name(SETTINGS["app"]["data_volume"], create_if_missing=True)
OUTPUTS = modal.Volume.from_name(SETTINGS["app"]["output_volume"], create_if_missing=True)


def data_to_read():
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


def retries(count):
    return modal.Retries(
        max_retries=count,
        initial_delay=RETRIES["initial_delay_s"],
        backoff_coefficient=RETRIES["backoff"],
        max_delay=RETRIES["most_delay_s"],
    )


def limited(cores, mib):
    """So much and no more: Modal gives more than is asked for, and bills it, unless that is the limit too."""
    return {"cpu": (cores, cores), "memory": (mib, mib)}


def commit():
    """Makes durable what was written. Modal then brings in what others wrote, which it refuses while the
    engine has files open; nobody else writes to its run."""
    try:
        OUTPUTS.commit()
    except RuntimeError as error:
        if "open files" not in str(error):
            raise


app = modal.App(SETTINGS["app"]["name"])
TRAINING = {
    "image": IMAGE,
    **limited(CONTAINER["cpu"], CONTAINER["memory_mib"]),
    "timeout": getattr(ASKED, "timeout", TIME["longest_attempt_s"]),
    "startup_timeout": TIME["startup_s"],
    "retries": retries(getattr(ASKED, "max_retries", RETRIES["default"])),
    "max_containers": getattr(ASKED, "parallel", 1) if ASKED else None,
    "volumes": {"/data": data_to_read(), "/outputs": OUTPUTS},
    "secrets": [
        modal.Secret.from_name(name) for name in os.environ.get("TINY_CATS_SECRETS", "").split(",") if name
    ],
    "region": getattr(ASKED, "region", None),
    # An attempt has a container to itself, and the next one sees the volume as it is then.
    "single_use_containers": True,
}


@app.function(gpu=one_or_more(gpus("dit")), **TRAINING)
def train_dit(request):
    return run.train("dit", request, run.Place(), commit)


@app.function(gpu=one_or_more(gpus("classifier")), **TRAINING)
def train_classifier(request):
    return run.train("classifier", request, run.Place(), commit)


FUNCTIONS = {"dit": train_dit, "classifier": train_classifier}
HOUSEKEEPING = {"image": IMAGE, **limited(1.0, 4096), "startup_timeout": TIME["startup_s"]}
NO_GPU = run.Place(libraries=DRIVER, threads=1)

# Errors of a call that has ended. Modal's others say that it could not be asked.
CALL_ENDED = (
    modal.exception.NotFoundError,
    modal.exception.OutputExpiredError,
    modal.exception.FunctionTimeoutError,
    modal.exception.RemoteError,  # cancelled, or its container died
    modal.exception.InternalFailure,
    modal.exception.ExecutionError,  # its result cannot be read
    modal.exception.DeserializationError,
)


@app.function(
    volumes={"/outputs": OUTPUTS},
    timeout=TIME["longest_attempt_s"],
    retries=retries(RETRIES["most"]),
    nonpreemptible=True,
    single_use_containers=True,
    **HOUSEKEEPING,
)
def sweep(request):
    """Waits for the jobs. A sweep may take longer than a container: the next one finds the calls again."""

    def spawn(task, job):
        call = FUNCTIONS[task].spawn(job)
        return SimpleNamespace(id=call.object_id, get=call.get)

    def attach(id):  # a call has no id of its own before it was asked something
        return SimpleNamespace(id=id, get=modal.FunctionCall.from_id(id).get)

    def ended(error):
        return isinstance(error, CALL_ENDED)

    return run.sweep(request, NO_GPU, commit, OUTPUTS.reload, spawn, attach, ended)


@app.function(volumes={"/data": DATA}, timeout=4 * 3600, **HOUSEKEEPING)
def download_data(arguments):
    """Fetches the photographs and makes the folders that are trained on: whole ones, with dogs as `other`, for
    the classifier, heads for the generator."""
    source = "data/oxford-pets"
    housekeeping(["data", "download", source, *arguments])
    DATA.commit()
    made = {"data/cats": "--crop=none --size=256 --other", "data/cat-heads": "--crop=head --size=128"}
    for folder, how in made.items():
        new = f"{folder}.new"  # what an interrupted call has left is begun anew
        if not (NO_GPU.root / folder).exists():
            shutil.rmtree(NO_GPU.root / new, ignore_errors=True)
            housekeeping(["data", "prepare", source, new, *how.split()])
            shutil.move(NO_GPU.root / new, NO_GPU.root / folder)
            DATA.commit()
    return ", ".join(made)


@app.function(volumes={"/outputs": OUTPUTS}, timeout=3600, **HOUSEKEEPING)
def export(name, arguments):
    """Writes the released model of a run as ONNX, beside it."""
    model = released(name)
    housekeeping(["export", model, *arguments])
    OUTPUTS.commit()
    return str(Path(model).with_suffix(".onnx"))


@app.function(
    image=IMAGE,
    **limited(CONTAINER["cpu"], 4096),
    timeout=600,
    startup_timeout=TIME["startup_s"],
    scaledown_window=60,
    max_containers=4,
    volumes={"/outputs": OUTPUTS.with_mount_options(read_only=True)},
)
@modal.batched(max_batch_size=8, wait_ms=200)
def sample(names: list, breeds: list, seeds: list):
    """Draws a picture for each, as PNG. A batch shares a container and its warm files; each picture has a
    process, since one draws pictures of one seed alone."""
    cores = int(CONTAINER["cpu"])
    place = dataclasses.replace(NO_GPU, threads=max(cores // len(names), 1))
    with ThreadPoolExecutor(cores) as threads:
        return list(threads.map(draw, [place] * len(names), names, breeds, seeds))


def draw(place, name, breed, seed):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = ["--model", released(name)] if name else []
        what = [f"--breed={breed}", f"--seed={seed}", "--count=1", f"--output={folder}/"]
        housekeeping(["generate", *model, *what], place)
        return next(Path(folder).glob("*.png")).read_bytes()


def released(name):
    """The released file of a run."""
    folder = Path("/outputs/runs") / name
    files = [path for path in sorted(folder.glob("*.safetensors")) if "_step_" not in path.name]
    if not files:
        raise run.Failed(f"{folder}: no released model; is the run finished?")
    return str(files[0])


def housekeeping(arguments, place=NO_GPU):
    done = place.run(arguments, stderr=subprocess.PIPE)
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode != 0:
        raise run.Failed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])


# --- Here ---


@app.local_entrypoint()
def main(*arguments):
    asked = ASKED or options.parse(list(arguments))
    if asked.command == "train":
        request = options.request_of(asked)
        print(f"run {request['run']}")
        call = FUNCTIONS[asked.task].spawn(request)
    elif asked.command == "sweep":
        call = sweep.spawn(options.request_of(asked))
    elif asked.command == "download-data":
        call = download_data.spawn(asked.rest)
    elif asked.command == "export":
        call = export.spawn(asked.run, asked.rest)
    else:
        call = sample.spawn(asked.run, asked.breed, asked.seed)
    print(f"call {call.object_id}", flush=True)
    try:
        result = call.get()  # not .remote(), which a call outlives after 24 hours
    except run.Ended as ended:
        print(f"error: {ended}", file=sys.stderr)
        sys.exit(1 if isinstance(ended, run.Failed) else run.STOPPED)
    if asked.command == "sample":
        Path(asked.output).write_bytes(result)
        result = asked.output
    print(result)
    if isinstance(result, dict):
        print(f"modal volume get {SETTINGS['app']['output_volume']} {result['folder']}")
