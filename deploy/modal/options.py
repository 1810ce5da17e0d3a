"""Parses and checks the arguments of `modal run deploy/modal/app.py` before anything starts."""

import argparse
import contextlib
import difflib
import json
import math
import os
import re
import secrets
import sys
import time
import tomllib
from pathlib import Path

from run import SETTINGS, PermanentError, gpu_type, gpu_count, refuse_credentials

EXIT_USAGE = 2
TASKS = tuple(SETTINGS["tasks"])


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def gpu_list(text):
    """Parses acceptable GPUs in order of preference, such as `A10,L4` or `A100:2`."""
    names = SETTINGS["gpu"]["names"]
    for gpu in text.split(","):
        name, colon, count = gpu.partition(":")
        if name not in names:
            near = difflib.get_close_matches(name.upper(), names, 1, 0)[0]
            raise argparse.ArgumentTypeError(
                f"unknown GPU {name!r}; did you mean {near}? expected one of {', '.join(names)}"
            )
        if colon and not re.fullmatch("[1-8]", count):
            raise argparse.ArgumentTypeError(f"{gpu}: expected 1 to 8 GPUs")
    if len({gpu_count(gpu) for gpu in text.split(",")}) > 1:
        raise argparse.ArgumentTypeError(f"{text}: expected the same number of each GPU")
    return text.split(",")


def number(kind, minimum, maximum=math.inf, exclusive=False):
    """Returns a parser of numbers from `minimum` to `maximum`; `exclusive` excludes `minimum`."""

    def check(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if minimum <= value <= maximum and math.isfinite(value) and not (exclusive and value == minimum):
                return value
        bounds = f"more than {minimum}" if exclusive else f"at least {minimum}"
        bounds += "" if maximum == math.inf else f" and at most {maximum}"
        raise argparse.ArgumentTypeError(f"expected {bounds}, found {text!r}")

    return check


def run_id(text):
    if not re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9_+=.-]{0,99}", text) or text in ("latest", "sweeps"):
        raise argparse.ArgumentTypeError(
            f"expected a folder name of at most 100 letters, digits and -_+=., found {text!r}"
        )
    return text


def dollar_table(text, amount=lambda value: value):
    """Parses a JSON table of dollars; returns None if it is invalid. `amount` extracts the dollars of a value."""
    with contextlib.suppress(ValueError, AttributeError, KeyError):
        table = json.loads(text)
        values = [amount(value) for value in table.values()]
        if values and all(type(value) in (int, float) and 0 < value < math.inf for value in values):
            return table


def prices(text):
    if table := dollar_table(text, lambda row: row["hour"] if isinstance(row, dict) else row):
        return table
    raise argparse.ArgumentTypeError('expected dollars per hour by GPU as JSON, such as {"A10": 1.42}')


def shares(text):
    if table := dollar_table(text):
        return table
    raise argparse.ArgumentTypeError('expected dollars by job as JSON, such as {"lr=0.001": 2.5}')


def parser():
    """The argument parser of `modal run deploy/modal/app.py`. Unknown arguments go unchanged to the program in the
    container."""
    times, retries = SETTINGS["time"], SETTINGS["retries"]
    cloud = Parser(add_help=False)
    option = cloud.add_argument
    option(
        "--gpu",
        type=gpu_list,
        metavar="LIST",
        help="acceptable GPUs in order of preference: A10,L4 ({dit} for dit, {classifier} for classifier)".format(
            **SETTINGS["gpu"]
        ),
    )
    option(
        "--timeout",
        type=number(int, 1, times["longest_attempt_s"]),
        default=times["longest_attempt_s"],
        metavar="SECONDS",
        help="maximum duration of an attempt (%(default)s)",
    )
    option(
        "--max-retries",
        type=number(int, 0, retries["most"]),
        default=retries["default"],
        metavar="N",
        help="maximum number of retries after failures and timeouts (%(default)s)",
    )
    option(
        "--max-cost",
        type=number(float, 0, exclusive=True),
        metavar="DOLLARS",
        help="stop when this much is spent; the jobs of a sweep share it",
    )
    option(
        "--price-per-hour",
        type=prices,
        metavar="JSON",
        help='dollars per hour of a container by GPU: {"A10": 1.42} (the program\'s price list)',
    )
    option("--region", metavar="NAME", help="region of the container, which costs more (any region)")

    main = Parser(
        prog="modal run deploy/modal/app.py",
        description="tiny-cats on Modal's GPUs.",
        epilog="`modal run --detach …` keeps it running when this machine is switched off.",
    )
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    train = commands.add_parser(
        "train",
        parents=[cloud],
        help="train a model: train dit data/cat-heads --gpu A10 --steps=1000",
        epilog="Other arguments go to `tiny-cats train`, see its --help: the data folder, --config, --steps, …",
    )
    train.add_argument("task", choices=TASKS)
    train.add_argument(
        "--run-id", type=run_id, metavar="ID", help="the run's folder; an existing run is resumed"
    )
    sweep = commands.add_parser(
        "sweep",
        parents=[cloud],
        help="train with many settings: sweep lr.toml --parallel 4",
        epilog="Other arguments are added to the flags of every job.",
    )
    sweep.add_argument("file", metavar="FILE.toml")
    sweep.add_argument("--parallel", type=number(int, 1), default=1, metavar="N", help="number of jobs that run at once (1)")
    sweep.add_argument("--shares", type=shares, help=argparse.SUPPRESS)  # the maximum cost of each job, by its name
    sweep.add_argument("--retry-failed", action="store_true", help="retry failed jobs")
    commands.add_parser(
        "download-data",
        help="download the photographs into the data volume",
        epilog="Other arguments go to `tiny-cats data download`.",
    )
    export = commands.add_parser(
        "export",
        help="export a run's released model to an ONNX file next to it",
        epilog="Other arguments go to `tiny-cats export`.",
    )
    export.add_argument("run", type=run_id, metavar="RUN")
    sample = commands.add_parser("sample", help="generate a cat: sample --breed Siamese --seed 7 -o cat.png")
    sample.add_argument(
        "--run", type=run_id, metavar="RUN", help="the run whose model generates (the released model)"
    )
    sample.add_argument("--breed", default="Siamese", metavar="NAME")
    sample.add_argument("--seed", type=number(int, 0), default=0)
    sample.add_argument("-o", "--output", default="cat.png", metavar="FILE")
    commands.add_parser("check", help="check that this app loads; does not connect to Modal")
    return main


# Flags that the container sets.
RESERVED = ("--runs-dir", "--resume", "--output", "-o", "--max-time", "--run-id", "--gpus")


def parse(words):
    """Parses and checks the arguments; exits with a one-line error if they are invalid."""
    argument_parser = parser()
    if words[:1] == ["--"]:
        words = words[1:]
    args, args.rest = argument_parser.parse_known_args(words)
    try:
        refuse_credentials(words)
    except PermanentError as error:
        argument_parser.error(str(error))
    if args.command in ("sample", "check") and args.rest:
        argument_parser.error(f"unexpected argument {args.rest[0]!r}")
    if args.command in ("train", "sweep"):
        for word in args.rest:
            if word.split("=")[0] in RESERVED:
                argument_parser.error(f"{word.split('=')[0]} is set in the cloud, so that the run can be resumed")
    args.files = {}
    for name in named_files(args):
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            argument_parser.error(f"{name}: expected a path below the working directory")
        try:
            args.files[name] = path.read_text("utf8")
        except (OSError, ValueError) as error:
            argument_parser.error(f"{name}: {error}")
    if args.command in ("train", "sweep") and args.price_per_hour:
        if args.max_cost or getattr(args, "shares", None):
            priced = {gpu_type(name) for name in args.price_per_hour}
            task = getattr(args, "task", None)
            for gpu in args.gpu or [SETTINGS["gpu"][known] for known in TASKS if known == task]:
                if gpu_type(gpu) not in priced:
                    argument_parser.error(f"--max-cost needs the price of every GPU: --price-per-hour has none for {gpu}")
    return args


def named_files(args):
    """Yields the local files that the container needs: the sweep file and configuration files."""
    if args.command == "sweep":
        yield args.file
        with contextlib.suppress(OSError, ValueError):
            sweep = tomllib.loads(Path(args.file).read_text("utf8"))
            args.task = sweep.get("task")
            if isinstance(sweep.get("config"), str) and Path(sweep["config"]).is_file():
                yield sweep["config"]
    words = args.rest + [""]
    for word, next_word in zip(words, words[1:], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--config" and Path(value if equals else next_word).is_file():
            yield value if equals else next_word


def build_request(args):
    """The request for the container, as plain data."""
    count = gpu_count(args.gpu[0]) if args.gpu else 1
    training = {
        "call": secrets.token_hex(8),
        "arguments": [*args.rest, *([f"--gpus={count}"] if count > 1 else [])],
        "files": args.files,
        "device": "cuda",  # an error is better than a CPU at the price of a GPU
        "gpu": ",".join(args.gpu or []) or None,
        "region": args.region,
        "timeout": args.timeout,
        "max_cost": args.max_cost,
        "prices": args.price_per_hour,
    }
    if args.command == "train":
        new_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{args.task}-{secrets.token_hex(3)}"
        return {**training, "run": args.run_id or new_id}
    return {
        "call": training["call"],
        "train": training,
        "file": args.file,
        "parallel": args.parallel,
        "max_cost": args.max_cost,
        "shares": args.shares,
        "retry_failed": args.retry_failed,
    }


def check_binary(path):
    """Returns one line for each reason why the program cannot start in the image."""
    image = SETTINGS["image"]
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    # ELF's magic number, 64-bit, little-endian; the machine type is at byte 18.
    if data[:6] != b"\x7fELF\x02\x01" or data[18:20] != b"\x3e\x00":
        return [f"{path}: expected a program for x86-64 Linux"]
    errors = [] if os.access(path, os.X_OK) else [f"{path}: not executable"]
    needed = max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", data)), default=0)
    if needed > int(image["glibc"].split(".")[1]):
        errors.append(
            f"{path}: needs glibc 2.{needed}, but the image has {image['glibc']}: build it on an older system"
        )
    cuda = image["cuda"].split(".")[0]
    for library in (b"cudart", b"cublas", b"cublasLt", b"nvrtc"):  # cuRAND has a version scheme of its own
        majors = {major.decode() for major in re.findall(rb"lib%s\.so\.(\d+)" % library, data)}
        if majors and cuda not in majors:
            versions = ", ".join(sorted(majors))
            errors.append(
                f"{path}: needs lib{library.decode()} of CUDA {versions}, but the image has CUDA {image['cuda']}"
            )
    return errors
