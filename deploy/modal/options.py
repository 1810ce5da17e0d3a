"""What `modal run deploy/modal/app.py` is asked, parsed and checked before anything is started."""

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

from run import SETTINGS, Failed, card, count_of, refuse_credentials

WRONG_USAGE = 2
TASKS = ("dit", "classifier")


class Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(WRONG_USAGE)


def gpu_list(text):
    """A10,L4 or A100:2: the cards that will do, in order."""
    names = SETTINGS["gpu"]["names"]
    for gpu in text.split(","):
        name, colon, count = gpu.partition(":")
        if name not in names:
            near = difflib.get_close_matches(name.upper(), names, 1, 0)[0]
            raise argparse.ArgumentTypeError(
                f"Modal has no {name!r}; the nearest is {near}, all are {', '.join(names)}"
            )
        if colon and not re.fullmatch("[1-8]", count):
            raise argparse.ArgumentTypeError(f"{gpu}: expected 1 to 8 GPUs")
    if len({count_of(gpu) for gpu in text.split(",")}) > 1:
        raise argparse.ArgumentTypeError(f"{text}: expected as many of each, since a run is divided among them")
    return text.split(",")


def number(kind, least, most=math.inf, above=False):
    """Reads a number of at least `least`, or `above` it, and at most `most`."""

    def check(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= most and math.isfinite(value) and not (above and value == least):
                return value
        bounds = f"more than {least}" if above else f"at least {least}"
        bounds += "" if most == math.inf else f" and at most {most}"
        raise argparse.ArgumentTypeError(f"expected {bounds}, found {text!r}")

    return check


def run_id(text):
    if not re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9_+=.-]{0,99}", text) or text in ("latest", "sweeps"):
        raise argparse.ArgumentTypeError(
            f"expected a folder's name, at most 100 of letters, digits and -_+=., found {text!r}"
        )
    return text


def dollars(text, of=lambda value: value):
    """A table of dollars as JSON; None where it is none."""
    with contextlib.suppress(ValueError, AttributeError, KeyError):
        table = json.loads(text)
        values = [of(value) for value in table.values()]
        if values and all(type(value) in (int, float) and 0 < value < math.inf for value in values):
            return table


def prices(text):
    if table := dollars(text, lambda row: row["hour"] if isinstance(row, dict) else row):
        return table
    raise argparse.ArgumentTypeError('expected dollars an hour by GPU as JSON, such as {"A10": 1.42}')


def shares(text):
    if table := dollars(text):
        return table
    raise argparse.ArgumentTypeError('expected dollars by job as JSON, such as {"lr=0.001": 2.5}')


def parser():
    """What `modal run deploy/modal/app.py` takes. Other words are for the program in the container, and are
    handed on as they are."""
    times, retries = SETTINGS["time"], SETTINGS["retries"]
    cloud = Parser(add_help=False)
    option = cloud.add_argument
    option(
        "--gpu",
        type=gpu_list,
        metavar="LIST",
        help="GPUs that will do, in order: A10,L4 ({dit} for dit, {classifier} for classifier)".format(
            **SETTINGS["gpu"]
        ),
    )
    option(
        "--timeout",
        type=number(int, 1, times["longest_attempt_s"]),
        default=times["longest_attempt_s"],
        metavar="SECONDS",
        help="the longest that an attempt may take (%(default)s)",
    )
    option(
        "--max-retries",
        type=number(int, 0, retries["most"]),
        default=retries["default"],
        metavar="N",
        help="attempts after ones that failed or timed out (%(default)s); preemptions do not count",
    )
    option(
        "--max-cost",
        type=number(float, 0, above=True),
        metavar="DOLLARS",
        help="stop when so much is spent; a sweep's is shared out",
    )
    option(
        "--price-per-hour",
        type=prices,
        metavar="JSON",
        help='dollars an hour of the whole container by GPU: {"A10": 1.42}; unset, what the program knows',
    )
    option("--region", metavar="NAME", help="where the container must be, which costs more; unset, anywhere")

    whole = Parser(
        prog="modal run deploy/modal/app.py",
        description="tiny-cats on Modal's GPUs.",
        epilog="`modal run --detach …` lets it go on when this machine is switched off.",
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    one = commands.add_parser(
        "train",
        parents=[cloud],
        help="train a model: train dit data/cat-heads --gpu A10 --steps=1000",
        epilog="All else is for `tiny-cats train`, see its --help: the data's folder, --config, --steps, …",
    )
    one.add_argument("task", choices=TASKS)
    one.add_argument(
        "--run-id", type=run_id, metavar="ID", help="the run's folder; one that is there is gone on with"
    )
    many = commands.add_parser(
        "sweep",
        parents=[cloud],
        help="train with many settings: sweep lr.toml --parallel 4",
        epilog="All else is added to every job's flags.",
    )
    many.add_argument("file", metavar="FILE.toml")
    many.add_argument("--parallel", type=number(int, 1), default=1, metavar="N", help="jobs at once (1)")
    many.add_argument("--shares", type=shares, help=argparse.SUPPRESS)  # what each job may cost, by its name
    many.add_argument("--retry-failed", action="store_true", help="try jobs again that have failed")
    commands.add_parser(
        "download-data",
        help="fetch the photographs into the data volume",
        epilog="All else is for `tiny-cats data download`.",
    )
    exported = commands.add_parser(
        "export",
        help="write a run's released model as ONNX, beside it",
        epilog="All else is for `tiny-cats export`.",
    )
    exported.add_argument("run", type=run_id, metavar="RUN")
    drawn = commands.add_parser("sample", help="draw a cat: sample --breed Siamese --seed 7 -o cat.png")
    drawn.add_argument(
        "--run", type=run_id, metavar="RUN", help="whose model; unset, the one that comes with the program"
    )
    drawn.add_argument("--breed", default="Siamese", metavar="NAME")
    drawn.add_argument("--seed", type=number(int, 0), default=0)
    drawn.add_argument("-o", "--output", default="cat.png", metavar="FILE")
    commands.add_parser("check", help="see whether this app can be run, without asking Modal anything")
    return whole


# What the container decides.
RESERVED = ("--runs-dir", "--resume", "--output", "-o", "--max-time", "--run-id", "--gpus")


def parse(words):
    """What is asked, checked; ends the program with one line where it cannot be."""
    whole = parser()
    words = words[words[:1] == ["--"] :]
    asked, asked.rest = whole.parse_known_args(words)
    try:
        refuse_credentials(words)
    except Failed as error:
        whole.error(str(error))
    if asked.command in ("sample", "check") and asked.rest:
        whole.error(f"unexpected argument {asked.rest[0]!r}")
    if asked.command in ("train", "sweep"):
        for word in asked.rest:
            if word.split("=")[0] in RESERVED:
                whole.error(f"{word.split('=')[0]} is set in the cloud, so that the run can be gone on with")
    asked.files = {}
    for name in named_files(asked):
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            whole.error(f"{name}: expected a path below the working directory")
        try:
            asked.files[name] = path.read_text("utf8")
        except (OSError, ValueError) as error:
            whole.error(f"{name}: {error}")
    if asked.command in ("train", "sweep") and asked.price_per_hour:
        if asked.max_cost or getattr(asked, "shares", None):
            priced = {card(name) for name in asked.price_per_hour}
            task = getattr(asked, "task", None)
            for gpu in asked.gpu or [SETTINGS["gpu"][known] for known in TASKS if known == task]:
                if card(gpu) not in priced:
                    whole.error(f"--max-cost needs the price of every GPU: --price-per-hour leaves out {gpu}")
    return asked


def named_files(asked):
    """The files here that the container needs: a sweep's, and configurations."""
    if asked.command == "sweep":
        yield asked.file
        with contextlib.suppress(OSError, ValueError):
            about = tomllib.loads(Path(asked.file).read_text("utf8"))
            asked.task = about.get("task")
            if isinstance(about.get("config"), str) and Path(about["config"]).is_file():
                yield about["config"]
    words = asked.rest + [""]
    for word, following in zip(words, words[1:], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--config" and Path(value if equals else following).is_file():
            yield value if equals else following


def request_of(asked):
    """What is handed to the container, as plain data."""
    count = count_of(asked.gpu[0]) if asked.gpu else 1
    training = {
        "call": secrets.token_hex(8),
        "arguments": [*asked.rest, *([f"--gpus={count}"] if count > 1 else [])],
        "files": asked.files,
        "device": "cuda",  # rather an error than the processor at a GPU's price
        "gpu": ",".join(asked.gpu or []) or None,
        "region": asked.region,
        "timeout": asked.timeout,
        "max_cost": asked.max_cost,
        "prices": asked.price_per_hour,
    }
    if asked.command == "train":
        fresh = f"{time.strftime('%Y%m%d-%H%M%S')}-{asked.task}-{secrets.token_hex(3)}"
        return {**training, "run": asked.run_id or fresh}
    return {
        "call": training["call"],
        "train": training,
        "file": asked.file,
        "parallel": asked.parallel,
        "max_cost": asked.max_cost,
        "shares": asked.shares,
        "retry_failed": asked.retry_failed,
    }


def check_binary(path):
    """What keeps a program from starting in the image, one line each."""
    image = SETTINGS["image"]
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    # The file's magic number, 64 bits, little-endian; its machine is at byte 18.
    if data[:6] != b"\x7fELF\x02\x01" or data[18:20] != b"\x3e\x00":
        return [f"{path}: expected a program for x86-64 Linux"]
    wrong = [] if os.access(path, os.X_OK) else [f"{path}: is not executable"]
    needed = max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", data)), default=0)
    if needed > int(image["glibc"].split(".")[1]):
        wrong.append(
            f"{path}: needs glibc 2.{needed}, the image has {image['glibc']}: build it on an older system"
        )
    cuda = image["cuda"].split(".")[0]
    for library in (b"cudart", b"cublas", b"cublasLt", b"nvrtc"):  # cuRAND counts its versions differently
        named = {major.decode() for major in re.findall(rb"lib%s\.so\.(\d+)" % library, data)}
        if named and cuda not in named:
            versions = ", ".join(sorted(named))
            wrong.append(
                f"{path}: needs lib{library.decode()} of CUDA {versions}, the image has CUDA {image['cuda']}"
            )
    return wrong
