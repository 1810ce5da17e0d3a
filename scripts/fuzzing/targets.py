"""All formats, each with every command that reads it."""

import dataclasses

from .seeds import CLASSIFIER, DIT, SAMPLES

PROGRAM, VERIFY = "tiny-cats", "verify-checkpoint"


@dataclasses.dataclass
class Target:
    """A format and a command that reads it. In the folder of a case, `file` is damaged; `extra_files` maps names to undamaged files."""

    format: str
    command: str
    # The kind of mutation, a key of mutations.KINDS.
    kind: str
    # Undamaged files; each case uses one.
    seeds: list
    file: str
    arguments: list
    extra_files: dict = dataclasses.field(default_factory=dict)
    # Names that an error may contain instead of that of the file.
    names: tuple = ()
    # Output files to compare with those of the undamaged file.
    outputs: tuple = ()
    # The protection of the file: a checksum of `bytes`, `initializers` (ONNX) or `entries` (zip); or `repaired` if the program repairs damage.
    integrity_check: str = None
    # The target runs in every nth round.
    period: int = 1
    # Text that the output must contain with any damaged file.
    required_output: bytes = b""
    # A pattern of the output of a completed command. Without it, the exit code decides.
    completion_pattern: bytes = None
    # True if the command prints more than an error.
    is_verbose: bool = False
    # The contents of the file if the kind is "name".
    contents: str = None
    # `command` runs to completion, `serve` until the server is ready, `http` sends the file to a running server.
    mode: str = "command"

    def __post_init__(self):
        # If model and data do not match, the error may name the data.
        if "data" in self.arguments:
            self.names = (*self.names, "data")
        # Errors about values in a configuration may name the flag.
        if self.format == "config.toml":
            self.names = (*self.names, "error: --")

    @property
    def name(self):
        return f"{self.format}:{self.command}"


IMAGES = {
    "png": ["bits", "gray-alpha", "interlaced", "palette", "rgb", "rgba", "wide"],
    "jpeg": ["baseline", "cmyk", "gray", "oriented", "progressive", "restart"],
    "webp": ["alpha", "animated", "lossless", "lossy"],
}
SUFFIX = {"png": "png", "jpeg": "jpg", "webp": "webp"}
TWO_CLASSES = {"data/Bengal": "two/Bengal", "data/Siamese": "two/Siamese"}
INDEXED = {"data": "two"}
EVAL_CLASSIFIER = {"eval-classifier.safetensors": "classifier.safetensors"}
LAYOUTS = ["bare", "state-dict", "training", "namespace", "objects", "nested"]
GENERATE = [PROGRAM, "generate", *SAMPLES, "-o", "out.png", "--model"]
EVAL_DIT = [PROGRAM, "eval", "dit", "data", "--split", "all", "--limit-files", "4", "--bootstrap", "2"]
SAMPLING = ["--samples", "2", "--steps", "1", "--sampler", "euler"]
GATE = [PROGRAM, "eval", "gate", "data", "--count", "1", "--steps", "1", "--sampler", "euler"]
TRAIN_CLASSIFIER = [PROGRAM, "train", "classifier", "data", *CLASSIFIER, "--run-id", "run"]
TRAIN_DIT = [PROGRAM, "train", "dit", "data", *DIT, "--steps", "1", "--run-id", "run"]
SERVE = [PROGRAM, "serve", "--no-web", "--port", "0"]
TRAINED = ("out/*.safetensors",)


def targets():
    targets = []

    def add(format, command, kind, seeds, file, arguments, **kwargs):
        targets.append(Target(format, command, kind, seeds, file, arguments, **kwargs))

    for format, names in IMAGES.items():
        suffix = SUFFIX[format]
        seeds, file, inside = [f"images/{name}.{suffix}" for name in names], f"image.{suffix}", f"data/Bengal/image.{suffix}"
        classify = [PROGRAM, "classify", file, "valid.png", "--model", "eval-classifier.safetensors"]
        add(format, "classify", format, seeds, file, classify, extra_files=EVAL_CLASSIFIER | {"valid.png": "valid.png"}, required_output=b"valid.png", is_verbose=True)
        add(
            format,
            "classify --json",
            format,
            seeds,
            file,
            [*classify, "--json"],
            extra_files=EVAL_CLASSIFIER | {"valid.png": "valid.png"},
            required_output=b"valid.png",
            is_verbose=True,
        )
        kwargs = {"extra_files": TWO_CLASSES, "required_output": b"Bengal"}
        add(format, "data index", format, seeds, inside, [PROGRAM, "data", "index", "data"], **kwargs)
        add(format, "data stats", format, seeds, inside, [PROGRAM, "data", "stats", "data"], **kwargs)
        add(
            format,
            "data prepare",
            format,
            seeds,
            inside,
            [PROGRAM, "data", "prepare", "data", "prepared", "--crop", "center", "--size", "16"],
            **kwargs,
        )
        add(format, "train", format, seeds, inside, [*TRAIN_CLASSIFIER, "--epochs", "1", "--no-cache"], period=4, **kwargs)
        evaluate = [PROGRAM, "eval", "classifier", "data", "--split", "all", "--model", "eval-classifier.safetensors"]
        add(format, "eval classifier", format, seeds, inside, evaluate, extra_files=TWO_CLASSES | EVAL_CLASSIFIER, required_output=b"Bengal")
        evaluate_images = [
            *EVAL_DIT,
            "--images",
            "generated",
            "--image-size",
            "32",
            "--features",
            "eval-classifier.safetensors",
            "--classifier",
            "eval-classifier.safetensors",
        ]
        add(
            format,
            "eval dit --images",
            format,
            seeds,
            f"generated/{file}",
            evaluate_images,
            extra_files=TWO_CLASSES | EVAL_CLASSIFIER | {"generated/Bengal": "two/Bengal"},
            required_output=b"Bengal",
            period=2,
        )
        add(format, "HTTP classify", format, seeds, file, [], mode="http")
    add("request", "HTTP generate", "json", ["generate.json"], "generate.json", [], mode="http")

    for format, kind, integrity_check in [("safetensors", "safetensors", "bytes"), ("pt", "zip", "entries"), ("onnx", "onnx", "initializers")]:
        file, kwargs = f"generator.{format}", {"integrity_check": integrity_check}
        # The .pt file has the smallest network that can be trained, the others an even smaller one.
        pt_period = 8 if format == "pt" else 1
        seeds = [file]
        add(format, "generate", kind, seeds, file, [*GENERATE, file], outputs=("out.png",), period=min(pt_period, 2), **kwargs)
        extra_files = INDEXED | EVAL_CLASSIFIER
        evaluators = ["--features", "eval-classifier.safetensors", "--classifier", "eval-classifier.safetensors"]
        add(
            format,
            "eval dit",
            kind,
            seeds,
            file,
            [*EVAL_DIT, *SAMPLING, *evaluators, "--model", file],
            extra_files=extra_files,
            period=max(2, pt_period),
            is_verbose=True,
            **kwargs,
        )
        gate = [*GATE, "--classifier", "eval-classifier.safetensors", "--model", file]
        add(format, "eval gate", kind, seeds, file, gate, extra_files=extra_files, period=8, is_verbose=True, completion_pattern=b"runtimes:", **kwargs)
        if format != "pt":
            tract = [*GENERATE, file, "--runtime", "tract"]
            add(format, "generate --runtime tract", kind, seeds, file, tract, outputs=("out.png",), **kwargs)
            add(
                format,
                "serve --model",
                kind,
                seeds,
                file,
                [*SERVE, "--no-classifier", "--model", file],
                mode="serve",
                period=2,
                is_verbose=True,
                **kwargs,
            )
        if format != "onnx":
            add(format, "verify-checkpoint", kind, seeds, file, [VERIFY, file], period=min(pt_period, 2), **kwargs)
            add(format, "export", kind, seeds, file, [PROGRAM, "export", file, "-o", "out.onnx"], outputs=("out.onnx",), period=pt_period, **kwargs)
            nano = ["nano.safetensors"] if format == "safetensors" else seeds
            add(
                format,
                "train dit --init",
                kind,
                nano,
                file,
                [*TRAIN_DIT, "--init", file],
                extra_files=INDEXED,
                outputs=TRAINED,
                period=8,
                is_verbose=True,
                **kwargs,
            )
        else:
            verify = [VERIFY, "valid.safetensors", "--onnx", file]
            add(
                format, "verify-checkpoint --onnx", kind, seeds, file, verify, extra_files={"valid.safetensors": "generator.safetensors"}, **kwargs
            )

        file = f"classifier.{format}"
        seeds = [file]
        add(
            format,
            "classify --model",
            kind,
            seeds,
            file,
            [PROGRAM, "classify", "valid.png", "--model", file],
            extra_files={"valid.png": "valid.png"},
            **kwargs,
        )
        evaluate = [PROGRAM, "eval", "classifier", "data", "--split", "all", "--model", file]
        add(format, "eval classifier", kind, seeds, file, evaluate, extra_files=INDEXED, is_verbose=True, **kwargs)
        features = [*EVAL_DIT, "--images", "data", "--image-size", "32", "--classifier", "eval-classifier.safetensors", "--features", file]
        add(format, "eval dit --features", kind, seeds, file, features, extra_files=INDEXED | EVAL_CLASSIFIER, period=2, is_verbose=True, **kwargs)
        if format != "pt":
            add(
                format,
                "serve --classifier",
                kind,
                seeds,
                file,
                [*SERVE, "--no-generator", "--classifier", file],
                mode="serve",
                period=2,
                is_verbose=True,
                **kwargs,
            )
        if format != "onnx":
            add(format, "verify-checkpoint", kind, seeds, file, [VERIFY, file], **kwargs)
            add(format, "export", kind, seeds, file, [PROGRAM, "export", file, "-o", "out.onnx"], outputs=("out.onnx",), period=2, **kwargs)
            train = [*TRAIN_CLASSIFIER, "--epochs", "1", "--init", file]
            add(format, "train classifier --init", kind, seeds, file, train, extra_files=INDEXED, outputs=TRAINED, period=4, is_verbose=True, **kwargs)
        else:
            tract = [PROGRAM, "classify", "valid.png", "--runtime", "tract", "--model", file]
            add(format, "classify --runtime tract", kind, seeds, file, tract, extra_files={"valid.png": "valid.png"}, **kwargs)
            verify = [VERIFY, "valid.safetensors", "--onnx", file]
            add(
                format,
                "verify-checkpoint --onnx",
                kind,
                seeds,
                file,
                verify,
                extra_files={"valid.safetensors": "classifier.safetensors"},
                **kwargs,
            )

    state, kwargs = ["classifier-state.safetensors"], {"integrity_check": "bytes"}
    add("state", "verify-checkpoint", "safetensors", state, "state.safetensors", [VERIFY, "state.safetensors"], **kwargs)
    for weights in ("raw", "ema"):
        export = [PROGRAM, "export", "state.safetensors", "--weights", weights, "-o", "out.onnx"]
        add(
            "state",
            f"export --weights {weights}",
            "safetensors",
            state,
            "state.safetensors",
            export,
            outputs=("out.onnx",),
            period=4,
            **kwargs,
        )
    add(
        "state",
        "classify --model",
        "safetensors",
        state,
        "state.safetensors",
        [PROGRAM, "classify", "valid.png", "--model", "state.safetensors"],
        extra_files={"valid.png": "valid.png"},
        **kwargs,
    )
    resume = [PROGRAM, "train", "classifier", "data", *CLASSIFIER, "--epochs", "2", "--resume", "state.safetensors"]
    add(
        "state",
        "train classifier --resume",
        "safetensors",
        state,
        "state.safetensors",
        resume,
        extra_files=INDEXED,
        outputs=TRAINED,
        period=4,
        is_verbose=True,
        **kwargs,
    )
    resume = [PROGRAM, "train", "dit", "data", *DIT, "--steps", "2", "--resume", "state.safetensors"]
    add(
        "state",
        "train dit --resume",
        "safetensors",
        ["dit-state.safetensors"],
        "state.safetensors",
        resume,
        extra_files=INDEXED,
        outputs=TRAINED,
        period=8,
        is_verbose=True,
        **kwargs,
    )
    add(
        "state",
        "verify-checkpoint",
        "safetensors",
        ["dit-state.safetensors"],
        "state.safetensors",
        [VERIFY, "state.safetensors"],
        period=8,
        **kwargs,
    )

    add_third_party(add)
    add_texts(add)
    return targets


def add_third_party(add):
    """Adds targets for models that other programs wrote."""
    for format, kind, files in [
        ("third-party pt", "pickle", [f"{layout}.pt" for layout in LAYOUTS]),
        ("third-party safetensors", "safetensors", [".safetensors", "hub.safetensors"]),
    ]:
        suffix = files[0].split(".")[-1]
        seeds = {name: [f"third-party/{name}{'' if file[0] == '.' else '-'}{file}" for file in files] for name in ("generator", "classifier")}
        file = f"model.{suffix}"
        add(format, "verify-checkpoint", kind, seeds["generator"] + seeds["classifier"], file, [VERIFY, file])
        add(format, "export", kind, seeds["generator"] + seeds["classifier"], file, [PROGRAM, "export", file, "-o", "out.onnx"])
        add(format, "generate", kind, seeds["generator"], file, [*GENERATE, file])
        add(
            format,
            "classify --model",
            kind,
            seeds["classifier"],
            file,
            [PROGRAM, "classify", "valid.png", "--model", file],
            extra_files={"valid.png": "valid.png"},
        )
        evaluate = [PROGRAM, "eval", "classifier", "data", "--split", "all", "--model", file]
        add(format, "eval classifier", kind, seeds["classifier"], file, evaluate, extra_files=INDEXED, period=2, is_verbose=True)
        train = [*TRAIN_CLASSIFIER, "--epochs", "1", "--init", file]
        add(format, "train classifier --init", kind, seeds["classifier"], file, train, extra_files=INDEXED, period=4, is_verbose=True)
    # Changes of the archive itself, not only of a valid pickle in it.
    add(
        "third-party pt", "verify-checkpoint", "zip", [f"third-party/generator-{layout}.pt" for layout in LAYOUTS], "model.pt", [VERIFY, "model.pt"]
    )

    generator, classifier, file = ["third-party/generator.onnx"], ["third-party/classifier.onnx"], "model.onnx"
    add("third-party onnx", "generate", "onnx", generator, file, [*GENERATE, file, "--runtime", "tract"])
    add(
        "third-party onnx",
        "classify --model",
        "onnx",
        classifier,
        file,
        [PROGRAM, "classify", "valid.png", "--model", file],
        extra_files={"valid.png": "valid.png"},
    )
    features = [
        *EVAL_DIT,
        "--images",
        "data",
        "--image-size",
        "32",
        "--classifier",
        "eval-classifier.safetensors",
        "--runtime",
        "tract",
        "--features",
        file,
    ]
    add("third-party onnx", "eval dit --features", "onnx", classifier, file, features, extra_files=INDEXED | EVAL_CLASSIFIER, period=2, is_verbose=True)
    verify = [VERIFY, "valid.safetensors", "--onnx", file]
    valid = {"valid.safetensors": "classifier.safetensors"}
    add("third-party onnx", "verify-checkpoint --onnx", "onnx", classifier, file, verify, extra_files=valid)
    graph, weights = "third-party/external.onnx", "third-party/external.onnx.data"
    for format, kind, seed, file, other in [
        ("onnx, external", "onnx", graph, "model.onnx", {"model.onnx.data": weights}),
        ("onnx.data", "bytes", weights, "model.onnx.data", {"model.onnx": graph}),
    ]:
        for command, arguments in [("eval dit --features", features), ("verify-checkpoint --onnx", verify)]:
            extra_files = other | (valid if command.startswith("verify") else INDEXED | EVAL_CLASSIFIER)
            add(
                format,
                command,
                kind,
                [seed],
                file,
                arguments,
                extra_files=extra_files,
                names=("model.onnx",),
                period=2,
                is_verbose=not command.startswith("verify"),
            )


def add_texts(add):
    """Adds targets for text files."""
    index, file, named = ["index.json"], "data/index.json", {"names": ("index.json", "data")}
    add("index.json", "data stats", "json", index, file, [PROGRAM, "data", "stats", "data"], extra_files=TWO_CLASSES, **named)
    add("index.json", "data index", "json", index, file, [PROGRAM, "data", "index", "data"], extra_files=TWO_CLASSES, **named)
    add(
        "index.json",
        "data index --held-out",
        "json",
        index,
        "held.json",
        [PROGRAM, "data", "index", "data", "--held-out", "held.json"],
        extra_files=TWO_CLASSES,
        names=("held.json", "data"),
    )
    add("index.json", "plan", "json", index, file, [PROGRAM, "plan", "train", "dit", "data", "--config", "smoke"], extra_files=TWO_CLASSES, **named)
    add("index.json", "train", "json", index, file, [*TRAIN_CLASSIFIER, "--epochs", "1"], extra_files=TWO_CLASSES, period=4, is_verbose=True, **named)
    evaluate = [PROGRAM, "eval", "classifier", "data", "--model", "eval-classifier.safetensors"]
    add("index.json", "eval classifier", "json", index, file, evaluate, extra_files=TWO_CLASSES | EVAL_CLASSIFIER, is_verbose=True, **named)

    for format, seed, file, boxes in [
        ("boxes.csv", "heads.csv", "heads.csv", "heads.csv"),
        ("boxes.xml", "xmls/Bengal_00000.xml", "xmls/Bengal_00000.xml", "xmls"),
    ]:
        prepare = [PROGRAM, "data", "prepare", "data", "prepared", "--crop", "head", "--size", "16", "--boxes", boxes]
        add(format, "data prepare", "text", [seed], file, prepare, extra_files=TWO_CLASSES, names=(boxes, "data"))
    add(
        "SYNTHETIC.json",
        "data synth",
        "json",
        ["manifest.json"],
        "generated/SYNTHETIC.json",
        [PROGRAM, "data", "synth", "generated", "--per-class", "1", "--size", "16"],
        names=("generated",),
    )

    marker, file = "pets/images/.unpacked.json", "pets/images/.unpacked.json"
    download = [PROGRAM, "data", "download", "pets", "--from", "http://127.0.0.1:1"]
    add(".unpacked.json", "data download", "json", [marker], file, download, extra_files={"pets": "pets"}, names=("pets",), is_verbose=True)

    config, file, limits = ["config.toml"], "config.toml", ["--gradient-accumulation-steps", "1", "--gpus", "1", "--max-time", "60s"]
    for task in ("dit", "classifier"):
        add(
            "config.toml",
            f"plan train {task}",
            "text",
            config,
            file,
            [PROGRAM, "plan", "train", task, "data", "--config", file],
            extra_files=INDEXED,
        )
    cloud = [PROGRAM, "cloud", "train", "dit", "data/cats", "--dry-run", "--config", file]
    add("config.toml", "cloud train --dry-run", "text", config, file, cloud)
    drop_config_flag = lambda arguments: [a for i, a in enumerate(arguments) if "--config" not in arguments[max(0, i - 1) : i + 1]]
    add(
        "config.toml",
        "train dit",
        "text",
        config,
        file,
        [*drop_config_flag(TRAIN_DIT), *limits, "--config", file],
        extra_files=INDEXED,
        period=8,
        is_verbose=True,
    )
    add(
        "config.toml",
        "train classifier",
        "text",
        config,
        file,
        [*drop_config_flag(TRAIN_CLASSIFIER), *limits, "--epochs", "1", "--config", file],
        extra_files=INDEXED,
        period=2,
        is_verbose=True,
    )

    sweep, file = ["sweep.toml"], "sweep.toml"
    add("sweep.toml", "sweep --dry-run", "text", sweep, file, [PROGRAM, "sweep", file, "--dry-run"])
    add("sweep.toml", "cloud sweep --dry-run", "text", sweep, file, [PROGRAM, "cloud", "sweep", file, "--dry-run"], names=("in a volume",))
    sweep_file = {"sweep.toml": "sweep.toml"}
    collect = [PROGRAM, "sweep", "sweep.toml", "--collect"]
    add(
        "sweep.json",
        "sweep --collect",
        "json",
        ["sweeps/sweep/sweep.json"],
        "runs/sweeps/sweep/sweep.json",
        collect,
        extra_files=sweep_file | {"runs/sweeps/sweep/.placeholder": "latest"},
        names=("sweep.json", "sweeps/sweep"),
        is_verbose=True,
    )

    for name, kind in [("run.json", "json"), ("metrics.jsonl", "text"), ("config.toml", "text"), ("cloud.json", "json")]:
        format, file = f"runs/ID/{name}", f"runs/stopped/{name}"
        extra_files = {
            f"runs/stopped/{other}": f"stopped/{other}"
            for other in ("run.json", "metrics.jsonl", "config.toml", "cloud.json")
            if other != name
        }
        for command in (["runs"], ["runs", "--json"], ["runs", "show", "stopped"], ["runs", "show", "--json", "stopped"]):
            add(
                format,
                " ".join(c for c in command if c != "stopped"),
                kind,
                [f"stopped/{name}"],
                file,
                [PROGRAM, *command],
                extra_files=extra_files,
                names=(name, "stopped"),
            )
        if name in ("run.json", "config.toml"):
            resume = [
                PROGRAM,
                "train",
                "classifier",
                "data",
                "--resume",
                "runs/stopped",
                *CLASSIFIER[2:],
                "--gradient-accumulation-steps",
                "1",
                "--gpus",
                "1",
                "--epochs",
                "2",
                "--no-cache",
            ]
            state_files = {"runs/stopped/classifier_step_00000002.safetensors": "classifier-state.safetensors"}
            add(
                format,
                "train --resume",
                kind,
                [f"stopped/{name}"],
                file,
                resume,
                extra_files=extra_files | state_files | INDEXED,
                names=(name, "stopped"),
                period=4,
                is_verbose=True,
            )
    extra_files = {f"runs/stopped/{name}": f"stopped/{name}" for name in ("run.json", "metrics.jsonl", "config.toml")}
    add("runs/latest", "runs show", "text", ["latest"], "runs/latest", [PROGRAM, "runs", "show"], extra_files=extra_files, names=("runs",))

    add("prices.toml", "plan prices", "text", ["prices.toml"], "prices.toml", [PROGRAM, "plan", "prices", "--prices", "prices.toml"])
    add(
        "prices.toml",
        "plan train",
        "text",
        ["prices.toml"],
        "prices.toml",
        [PROGRAM, "plan", "train", "dit", "data", "--config", "smoke", "--prices", "prices.toml"],
        extra_files=INDEXED,
    )
    serve = [*SERVE, "--no-generator", "--classifier", "eval-classifier.safetensors", "--token-file", "token.txt"]
    add("token", "serve --token-file", "text", ["token.txt"], "token.txt", serve, extra_files=EVAL_CLASSIFIER, mode="serve", period=4, is_verbose=True)

    # Names of broken images and of runs.
    inside, broken_image = "data/Bengal/{name}", {"contents": "truncated.png", "names": ("data",), "extra_files": TWO_CLASSES}
    for arguments in (
        ["data", "index", "data"],
        ["data", "stats", "data"],
        ["data", "prepare", "data", "prepared", "--crop", "center", "--size", "16"],
    ):
        add("file name", " ".join(arguments[:2]), "name", ["name"], inside, [PROGRAM, *arguments], **broken_image)
    for arguments in (
        ["classify", "data", "--model", "eval-classifier.safetensors"],
        ["eval", "classifier", "data", "--split", "all", "--model", "eval-classifier.safetensors"],
    ):
        add(
            "file name",
            " ".join(a for a in arguments[:2] if a != "data"),
            "name",
            ["name"],
            inside,
            [PROGRAM, *arguments],
            **broken_image | {"extra_files": TWO_CLASSES | EVAL_CLASSIFIER},
            is_verbose=True,
        )
    for command in (["runs"], ["runs", "show"]):
        add(
            "file name",
            " ".join(command),
            "name",
            ["name"],
            "runs/{name}/run.json",
            [PROGRAM, *command],
            contents="stopped/run.json",
            names=("runs",),
        )

    train = [*TRAIN_CLASSIFIER, "--epochs", "1", "--cache", "pixels"]
    add(
        "pixels",
        "train --cache",
        "bytes",
        ["pixels/*.pixels"],
        "{seed}",
        train,
        extra_files=INDEXED | {"pixels": "pixels"},
        outputs=TRAINED,
        period=2,
        is_verbose=True,
        integrity_check="repaired",
    )
