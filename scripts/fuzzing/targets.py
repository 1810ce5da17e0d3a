"""Every format, and every command that reads it."""

import dataclasses

from .seeds import CLASSIFIER, DIT, SAMPLES

PROGRAM, VERIFY = "tiny-cats", "verify-checkpoint"


@dataclasses.dataclass
class Target:
    """A format through a command. The damaged file is `file` in the case's folder, beside copies of what `beside` maps to."""

    format: str
    command: str
    # What changes it: a key of mutations.KINDS.
    kind: str
    # Undamaged files, of which a case takes one.
    seeds: list
    file: str
    arguments: list
    beside: dict = dataclasses.field(default_factory=dict)
    # What an error may name instead of the file.
    names: tuple = ()
    # Files that tell whether anything was computed differently.
    outputs: tuple = ()
    # Which checksum guards the file: of all bytes, of an ONNX file's initializers, of a zip archive's entries; or whether damage is mended.
    guard: str = None
    # A round of all targets has this one each so many rounds.
    every: int = 1
    # What the output must hold, whatever the damaged file is.
    must: bytes = b""
    # What the output holds if the command got to its end; otherwise its exit status says it.
    done: bytes = None
    # It says more than an error before it ends.
    chatty: bool = False
    # Of a kind "name" what the file holds.
    contents: str = None
    # `command` runs to the end, `serve` until the server is ready, `http` sends the file to one that runs.
    how: str = "command"

    def __post_init__(self):
        # That the model does not fit the data may be said of the data.
        if "data" in self.arguments:
            self.names = (*self.names, "data")
        # A configuration sets flags, whose values are checked where they were set.
        if self.format == "config.toml":
            self.names = (*self.names, "error: --")

    @property
    def name(self):
        return f"{self.format}:{self.command}"


PICTURES = {
    "png": ["bits", "grey-alpha", "interlaced", "palette", "rgb", "rgba", "wide"],
    "jpeg": ["baseline", "cmyk", "grey", "oriented", "progressive", "restart"],
    "webp": ["alpha", "animated", "lossless", "lossy"],
}
SUFFIX = {"png": "png", "jpeg": "jpg", "webp": "webp"}
TWO = {"data/Bengal": "two/Bengal", "data/Siamese": "two/Siamese"}
INDEXED = {"data": "two"}
JUDGE = {"judge.safetensors": "classifier.safetensors"}
LAYOUTS = ["bare", "state-dict", "training", "namespace", "objects", "nested"]
GENERATE = [PROGRAM, "generate", *SAMPLES, "-o", "out.png", "--model"]
EVAL_DIT = [PROGRAM, "eval", "dit", "data", "--split", "all", "--limit-files", "4", "--bootstrap", "2"]
DRAWN = ["--samples", "2", "--steps", "1", "--sampler", "euler"]
GATE = [PROGRAM, "eval", "gate", "data", "--count", "1", "--steps", "1", "--sampler", "euler"]
TRAIN_CLASSIFIER = [PROGRAM, "train", "classifier", "data", *CLASSIFIER, "--run-id", "run"]
TRAIN_DIT = [PROGRAM, "train", "dit", "data", *DIT, "--steps", "1", "--run-id", "run"]
SERVE = [PROGRAM, "serve", "--no-web", "--port", "0"]
TRAINED = ("out/*.safetensors",)


def targets():
    made = []

    def add(format, command, kind, seeds, file, arguments, **more):
        made.append(Target(format, command, kind, seeds, file, arguments, **more))

    for format, names in PICTURES.items():
        suffix = SUFFIX[format]
        seeds, file, inside = [f"pictures/{name}.{suffix}" for name in names], f"picture.{suffix}", f"data/Bengal/picture.{suffix}"
        classify = [PROGRAM, "classify", file, "good.png", "--model", "judge.safetensors"]
        add(format, "classify", format, seeds, file, classify, beside=JUDGE | {"good.png": "good.png"}, must=b"good.png", chatty=True)
        add(
            format,
            "classify --json",
            format,
            seeds,
            file,
            [*classify, "--json"],
            beside=JUDGE | {"good.png": "good.png"},
            must=b"good.png",
            chatty=True,
        )
        more = {"beside": TWO, "must": b"Bengal"}
        add(format, "data index", format, seeds, inside, [PROGRAM, "data", "index", "data"], **more)
        add(format, "data stats", format, seeds, inside, [PROGRAM, "data", "stats", "data"], **more)
        add(
            format,
            "data prepare",
            format,
            seeds,
            inside,
            [PROGRAM, "data", "prepare", "data", "made", "--crop", "centre", "--size", "16"],
            **more,
        )
        add(format, "train", format, seeds, inside, [*TRAIN_CLASSIFIER, "--epochs", "1", "--no-cache"], every=4, **more)
        evaluate = [PROGRAM, "eval", "classifier", "data", "--split", "all", "--model", "judge.safetensors"]
        add(format, "eval classifier", format, seeds, inside, evaluate, beside=TWO | JUDGE, must=b"Bengal")
        drawn = [
            *EVAL_DIT,
            "--images",
            "drawn",
            "--image-size",
            "32",
            "--features",
            "judge.safetensors",
            "--classifier",
            "judge.safetensors",
        ]
        add(
            format,
            "eval dit --images",
            format,
            seeds,
            f"drawn/{file}",
            drawn,
            beside=TWO | JUDGE | {"drawn/Bengal": "two/Bengal"},
            must=b"Bengal",
            every=2,
        )
        add(format, "HTTP classify", format, seeds, file, [], how="http")
    add("request", "HTTP generate", "json", ["generate.json"], "generate.json", [], how="http")

    for format, kind, guard in [("safetensors", "safetensors", "bytes"), ("pt", "zip", "entries"), ("onnx", "onnx", "initializers")]:
        file, more = f"generator.{format}", {"guard": guard}
        # The trainer's own archive has the smallest network that it trains, the others a smaller one.
        slow = 8 if format == "pt" else 1
        seeds = [file]
        add(format, "generate", kind, seeds, file, [*GENERATE, file], outputs=("out.png",), every=min(slow, 2), **more)
        beside = INDEXED | JUDGE
        judged = ["--features", "judge.safetensors", "--classifier", "judge.safetensors"]
        add(
            format,
            "eval dit",
            kind,
            seeds,
            file,
            [*EVAL_DIT, *DRAWN, *judged, "--model", file],
            beside=beside,
            every=max(2, slow),
            chatty=True,
            **more,
        )
        gate = [*GATE, "--classifier", "judge.safetensors", "--model", file]
        add(format, "eval gate", kind, seeds, file, gate, beside=beside, every=8, chatty=True, done=b"runtimes:", **more)
        if format != "pt":
            tract = [*GENERATE, file, "--runtime", "tract"]
            add(format, "generate --runtime tract", kind, seeds, file, tract, outputs=("out.png",), **more)
            add(
                format,
                "serve --model",
                kind,
                seeds,
                file,
                [*SERVE, "--no-classifier", "--model", file],
                how="serve",
                every=2,
                chatty=True,
                **more,
            )
        if format != "onnx":
            add(format, "verify-checkpoint", kind, seeds, file, [VERIFY, file], every=min(slow, 2), **more)
            add(format, "export", kind, seeds, file, [PROGRAM, "export", file, "-o", "out.onnx"], outputs=("out.onnx",), every=slow, **more)
            nano = ["nano.safetensors"] if format == "safetensors" else seeds
            add(
                format,
                "train dit --init",
                kind,
                nano,
                file,
                [*TRAIN_DIT, "--init", file],
                beside=INDEXED,
                outputs=TRAINED,
                every=8,
                chatty=True,
                **more,
            )
        else:
            verify = [VERIFY, "sound.safetensors", "--onnx", file]
            add(
                format, "verify-checkpoint --onnx", kind, seeds, file, verify, beside={"sound.safetensors": "generator.safetensors"}, **more
            )

        file = f"classifier.{format}"
        seeds = [file]
        add(
            format,
            "classify --model",
            kind,
            seeds,
            file,
            [PROGRAM, "classify", "good.png", "--model", file],
            beside={"good.png": "good.png"},
            **more,
        )
        evaluate = [PROGRAM, "eval", "classifier", "data", "--split", "all", "--model", file]
        add(format, "eval classifier", kind, seeds, file, evaluate, beside=INDEXED, chatty=True, **more)
        features = [*EVAL_DIT, "--images", "data", "--image-size", "32", "--classifier", "judge.safetensors", "--features", file]
        add(format, "eval dit --features", kind, seeds, file, features, beside=INDEXED | JUDGE, every=2, chatty=True, **more)
        if format != "pt":
            add(
                format,
                "serve --classifier",
                kind,
                seeds,
                file,
                [*SERVE, "--no-generator", "--classifier", file],
                how="serve",
                every=2,
                chatty=True,
                **more,
            )
        if format != "onnx":
            add(format, "verify-checkpoint", kind, seeds, file, [VERIFY, file], **more)
            add(format, "export", kind, seeds, file, [PROGRAM, "export", file, "-o", "out.onnx"], outputs=("out.onnx",), every=2, **more)
            train = [*TRAIN_CLASSIFIER, "--epochs", "1", "--init", file]
            add(format, "train classifier --init", kind, seeds, file, train, beside=INDEXED, outputs=TRAINED, every=4, chatty=True, **more)
        else:
            tract = [PROGRAM, "classify", "good.png", "--runtime", "tract", "--model", file]
            add(format, "classify --runtime tract", kind, seeds, file, tract, beside={"good.png": "good.png"}, **more)
            verify = [VERIFY, "sound.safetensors", "--onnx", file]
            add(
                format,
                "verify-checkpoint --onnx",
                kind,
                seeds,
                file,
                verify,
                beside={"sound.safetensors": "classifier.safetensors"},
                **more,
            )

    state, more = ["classifier-state.safetensors"], {"guard": "bytes"}
    add("state", "verify-checkpoint", "safetensors", state, "state.safetensors", [VERIFY, "state.safetensors"], **more)
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
            every=4,
            **more,
        )
    add(
        "state",
        "classify --model",
        "safetensors",
        state,
        "state.safetensors",
        [PROGRAM, "classify", "good.png", "--model", "state.safetensors"],
        beside={"good.png": "good.png"},
        **more,
    )
    resume = [PROGRAM, "train", "classifier", "data", *CLASSIFIER, "--epochs", "2", "--resume", "state.safetensors"]
    add(
        "state",
        "train classifier --resume",
        "safetensors",
        state,
        "state.safetensors",
        resume,
        beside=INDEXED,
        outputs=TRAINED,
        every=4,
        chatty=True,
        **more,
    )
    resume = [PROGRAM, "train", "dit", "data", *DIT, "--steps", "2", "--resume", "state.safetensors"]
    add(
        "state",
        "train dit --resume",
        "safetensors",
        ["dit-state.safetensors"],
        "state.safetensors",
        resume,
        beside=INDEXED,
        outputs=TRAINED,
        every=8,
        chatty=True,
        **more,
    )
    add(
        "state",
        "verify-checkpoint",
        "safetensors",
        ["dit-state.safetensors"],
        "state.safetensors",
        [VERIFY, "state.safetensors"],
        every=8,
        **more,
    )

    foreign(add)
    texts(add)
    return made


def foreign(add):
    """Models that other programs wrote."""
    for format, kind, files in [
        ("foreign pt", "pickle", [f"{layout}.pt" for layout in LAYOUTS]),
        ("foreign safetensors", "safetensors", [".safetensors", "hub.safetensors"]),
    ]:
        suffix = files[0].split(".")[-1]
        seeds = {name: [f"foreign/{name}{'' if file[0] == '.' else '-'}{file}" for file in files] for name in ("generator", "classifier")}
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
            [PROGRAM, "classify", "good.png", "--model", file],
            beside={"good.png": "good.png"},
        )
        evaluate = [PROGRAM, "eval", "classifier", "data", "--split", "all", "--model", file]
        add(format, "eval classifier", kind, seeds["classifier"], file, evaluate, beside=INDEXED, every=2, chatty=True)
        train = [*TRAIN_CLASSIFIER, "--epochs", "1", "--init", file]
        add(format, "train classifier --init", kind, seeds["classifier"], file, train, beside=INDEXED, every=4, chatty=True)
    # As data: anything but a pickle that is sound otherwise.
    add(
        "foreign pt", "verify-checkpoint", "zip", [f"foreign/generator-{layout}.pt" for layout in LAYOUTS], "model.pt", [VERIFY, "model.pt"]
    )

    generator, classifier, file = ["foreign/generator.onnx"], ["foreign/classifier.onnx"], "model.onnx"
    add("foreign onnx", "generate", "onnx", generator, file, [*GENERATE, file, "--runtime", "tract"])
    add(
        "foreign onnx",
        "classify --model",
        "onnx",
        classifier,
        file,
        [PROGRAM, "classify", "good.png", "--model", file],
        beside={"good.png": "good.png"},
    )
    features = [
        *EVAL_DIT,
        "--images",
        "data",
        "--image-size",
        "32",
        "--classifier",
        "judge.safetensors",
        "--runtime",
        "tract",
        "--features",
        file,
    ]
    add("foreign onnx", "eval dit --features", "onnx", classifier, file, features, beside=INDEXED | JUDGE, every=2, chatty=True)
    verify = [VERIFY, "sound.safetensors", "--onnx", file]
    sound = {"sound.safetensors": "classifier.safetensors"}
    add("foreign onnx", "verify-checkpoint --onnx", "onnx", classifier, file, verify, beside=sound)
    graph, numbers = "foreign/external.onnx", "foreign/external.onnx.data"
    for format, kind, seed, file, other in [
        ("onnx, external", "onnx", graph, "model.onnx", {"model.onnx.data": numbers}),
        ("onnx.data", "bytes", numbers, "model.onnx.data", {"model.onnx": graph}),
    ]:
        for command, arguments in [("eval dit --features", features), ("verify-checkpoint --onnx", verify)]:
            beside = other | (sound if command.startswith("verify") else INDEXED | JUDGE)
            add(
                format,
                command,
                kind,
                [seed],
                file,
                arguments,
                beside=beside,
                names=("model.onnx",),
                every=2,
                chatty=not command.startswith("verify"),
            )


def texts(add):
    """Files that people, or the program, write as text."""
    index, file, named = ["index.json"], "data/index.json", {"names": ("index.json", "data")}
    add("index.json", "data stats", "json", index, file, [PROGRAM, "data", "stats", "data"], beside=TWO, **named)
    add("index.json", "data index", "json", index, file, [PROGRAM, "data", "index", "data"], beside=TWO, **named)
    add(
        "index.json",
        "data index --held-out",
        "json",
        index,
        "held.json",
        [PROGRAM, "data", "index", "data", "--held-out", "held.json"],
        beside=TWO,
        names=("held.json", "data"),
    )
    add("index.json", "plan", "json", index, file, [PROGRAM, "plan", "train", "dit", "data", "--config", "smoke"], beside=TWO, **named)
    add("index.json", "train", "json", index, file, [*TRAIN_CLASSIFIER, "--epochs", "1"], beside=TWO, every=4, chatty=True, **named)
    evaluate = [PROGRAM, "eval", "classifier", "data", "--model", "judge.safetensors"]
    add("index.json", "eval classifier", "json", index, file, evaluate, beside=TWO | JUDGE, chatty=True, **named)

    for format, seed, file, boxes in [
        ("boxes.csv", "heads.csv", "heads.csv", "heads.csv"),
        ("boxes.xml", "xmls/Bengal_00000.xml", "xmls/Bengal_00000.xml", "xmls"),
    ]:
        prepare = [PROGRAM, "data", "prepare", "data", "made", "--crop", "head", "--size", "16", "--boxes", boxes]
        add(format, "data prepare", "text", [seed], file, prepare, beside=TWO, names=(boxes, "data"))
    add(
        "SYNTHETIC.json",
        "data synth",
        "json",
        ["manifest.json"],
        "drawn/SYNTHETIC.json",
        [PROGRAM, "data", "synth", "drawn", "--per-class", "1", "--size", "16"],
        names=("drawn",),
    )

    there, file = "pets/images/.unpacked.json", "pets/images/.unpacked.json"
    download = [PROGRAM, "data", "download", "pets", "--from", "http://127.0.0.1:1"]
    add(".unpacked.json", "data download", "json", [there], file, download, beside={"pets": "pets"}, names=("pets",), chatty=True)

    config, file, few = ["config.toml"], "config.toml", ["--gradient-accumulation-steps", "1", "--gpus", "1", "--max-time", "60s"]
    for task in ("dit", "classifier"):
        add(
            "config.toml",
            f"plan train {task}",
            "text",
            config,
            file,
            [PROGRAM, "plan", "train", task, "data", "--config", file],
            beside=INDEXED,
        )
    cloud = [PROGRAM, "cloud", "train", "dit", "data/cats", "--dry-run", "--config", file]
    add("config.toml", "cloud train --dry-run", "text", config, file, cloud)
    without = lambda arguments: [a for i, a in enumerate(arguments) if "--config" not in arguments[max(0, i - 1) : i + 1]]
    add(
        "config.toml",
        "train dit",
        "text",
        config,
        file,
        [*without(TRAIN_DIT), *few, "--config", file],
        beside=INDEXED,
        every=8,
        chatty=True,
    )
    add(
        "config.toml",
        "train classifier",
        "text",
        config,
        file,
        [*without(TRAIN_CLASSIFIER), *few, "--epochs", "1", "--config", file],
        beside=INDEXED,
        every=2,
        chatty=True,
    )

    sweep, file = ["sweep.toml"], "sweep.toml"
    add("sweep.toml", "sweep --dry-run", "text", sweep, file, [PROGRAM, "sweep", file, "--dry-run"])
    add("sweep.toml", "cloud sweep --dry-run", "text", sweep, file, [PROGRAM, "cloud", "sweep", file, "--dry-run"], names=("in a volume",))
    ledger = {"sweep.toml": "sweep.toml"}
    collect = [PROGRAM, "sweep", "sweep.toml", "--collect"]
    add(
        "sweep.json",
        "sweep --collect",
        "json",
        ["sweeps/sweep/sweep.json"],
        "runs/sweeps/sweep/sweep.json",
        collect,
        beside=ledger | {"runs/sweeps/sweep/.here": "latest"},
        names=("sweep.json", "sweeps/sweep"),
        chatty=True,
    )

    for name, kind in [("run.json", "json"), ("metrics.jsonl", "text"), ("config.toml", "text"), ("cloud.json", "json")]:
        format, file = f"runs/ID/{name}", f"runs/stopped/{name}"
        beside = {
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
                beside=beside,
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
            more = {"runs/stopped/classifier_step_00000002.safetensors": "classifier-state.safetensors"}
            add(
                format,
                "train --resume",
                kind,
                [f"stopped/{name}"],
                file,
                resume,
                beside=beside | more | INDEXED,
                names=(name, "stopped"),
                every=4,
                chatty=True,
            )
    beside = {f"runs/stopped/{name}": f"stopped/{name}" for name in ("run.json", "metrics.jsonl", "config.toml")}
    add("runs/latest", "runs show", "text", ["latest"], "runs/latest", [PROGRAM, "runs", "show"], beside=beside, names=("runs",))

    add("prices.toml", "plan prices", "text", ["prices.toml"], "prices.toml", [PROGRAM, "plan", "prices", "--prices", "prices.toml"])
    add(
        "prices.toml",
        "plan train",
        "text",
        ["prices.toml"],
        "prices.toml",
        [PROGRAM, "plan", "train", "dit", "data", "--config", "smoke", "--prices", "prices.toml"],
        beside=INDEXED,
    )
    serve = [*SERVE, "--no-generator", "--classifier", "judge.safetensors", "--token-file", "token.txt"]
    add("token", "serve --token-file", "text", ["token.txt"], "token.txt", serve, beside=JUDGE, how="serve", every=4, chatty=True)

    # Of pictures that cannot be decoded, and of runs.
    inside, broken = "data/Bengal/{name}", {"contents": "broken.png", "names": ("data",), "beside": TWO}
    for arguments in (
        ["data", "index", "data"],
        ["data", "stats", "data"],
        ["data", "prepare", "data", "made", "--crop", "centre", "--size", "16"],
    ):
        add("file name", " ".join(arguments[:2]), "name", ["name"], inside, [PROGRAM, *arguments], **broken)
    for arguments in (
        ["classify", "data", "--model", "judge.safetensors"],
        ["eval", "classifier", "data", "--split", "all", "--model", "judge.safetensors"],
    ):
        add(
            "file name",
            " ".join(a for a in arguments[:2] if a != "data"),
            "name",
            ["name"],
            inside,
            [PROGRAM, *arguments],
            **broken | {"beside": TWO | JUDGE},
            chatty=True,
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
        beside=INDEXED | {"pixels": "pixels"},
        outputs=TRAINED,
        every=2,
        chatty=True,
        guard="mended",
    )
