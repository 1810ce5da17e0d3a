"""Cases: a target, an undamaged file of it, and a change. Each is a function of the seed and the case's number."""

import hashlib
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import threading

from . import formats, mutations, process, server
from .targets import PROGRAM

# A case is given at least so many seconds, or so many times what the undamaged file takes.
PATIENCE = 20
TIMES = 20
CYCLE = 8
TIME = re.compile(rb"[0-9.]+ s\b|[0-9.]+ pictures/s|\d+ MiB|\s+\d+ % waiting for data|\d{8}-\d{6}-[\w-]+")


class Failure:
    def __init__(self, number, target, what, folder):
        self.number, self.target, self.what, self.folder = number, target, what, folder

    @property
    def sort(self):
        """Failures of one sort are likely to have one cause."""
        return self.target.format, self.target.command, re.sub(r"\d+(\.\d+)?|'.*|b'.*|: error:.*", "", self.what)[:60]


class Fuzzer:
    def __init__(self, programs, seeds, work, keep, seed, targets):
        self.programs, self.seeds, self.work, self.keep, self.seed = (
            programs,
            pathlib.Path(seeds),
            pathlib.Path(work),
            pathlib.Path(keep),
            seed,
        )
        self.targets = targets
        self.undamaged, self.locks, self.lock = {}, {}, threading.Lock()
        self.server, self.server_failures = None, []
        for target in targets:
            globs = [sorted(str(p.relative_to(self.seeds)) for p in self.seeds.glob(s)) if "*" in s else [s] for s in target.seeds]
            target.seeds = [name for names in globs for name in names]

    # --- Which case

    def cycle(self, number):
        """The targets of a cycle: eight rounds, in each round in another order."""
        rng, order = random.Random(f"{self.seed}/cycle/{number}"), []
        for turn in range(CYCLE):
            these = [target for i, target in enumerate(self.targets) if (turn + i) % target.every == 0]
            rng.shuffle(these)
            order += these
        return order

    def case(self, number):
        """The target, the undamaged file's name, the damaged one, what was done, and whether its checksums are right again."""
        length = sum(CYCLE // target.every for target in self.targets)
        target = self.cycle(number // length)[number % length]
        rng = random.Random(f"{self.seed}/case/{number}")
        seed = rng.choice(target.seeds)
        data, done, sound = mutations.mutate(rng, target.kind, (self.seeds / seed).read_bytes())
        return target, seed, data, done, sound

    # --- Running it

    def prepare(self, folder, target, seed, data):
        """Fills the folder of a case. The arguments, and the name of the file in question."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, source in target.beside.items():
            source, place = self.seeds / source, folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, place, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, place)
        if target.kind == "name":
            # What is damaged is the file's name.
            file, data = target.file.format(name=os.fsdecode(data)), (self.seeds / target.contents).read_bytes()
        else:
            file = target.file.format(seed=seed)
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return [self.programs.get(a, a) if i == 0 else a for i, a in enumerate(target.arguments)], file

    def run(self, folder, target, command, limit):
        if target.how == "serve":
            return server.start_and_stop(command, folder, limit)
        return process.run(command, folder, limit)

    def computed(self, folder, target, result):
        """What a run has computed, so that two can be compared."""
        hashed = hashlib.sha256(TIME.sub(b"", result.out))
        for pattern in target.outputs:
            for path in sorted(folder.glob(pattern)):
                data = path.read_bytes()
                # The metadata may say when it was made.
                hashed.update(formats.tensors(data)[1] if path.suffix == ".safetensors" else data)
        return hashed.digest()

    def baseline(self, folder, target, seed):
        """What becomes of the undamaged file."""
        key = (target.name, seed)
        with self.lock:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self.undamaged:
                command, _ = self.prepare(folder, target, seed, (self.seeds / seed).read_bytes())
                result = self.run(folder, target, command, 600)
                result.computed = self.computed(folder, target, result)
                self.undamaged[key] = result
            return self.undamaged[key]

    def check(self, worker, number):
        """Runs a case. The target, and what is wrong."""
        return self.examine(self.work / f"worker-{worker}", *self.case(number), number)

    def examine(self, folder, target, seed, data, done, sound, number):
        if target.how == "http":
            found, result, command = self.send(target, data), None, ["POST", f"/v1/{target.command.split()[1]}"]
            file = target.file
        else:
            before = self.baseline(folder, target, seed)
            command, file = self.prepare(folder, target, seed, data)
            result = self.run(folder, target, command, max(PATIENCE, TIMES * before.seconds))
            if result.timed_out:
                # Was it the file, or is the machine busy? The undamaged one says how fast it is now.
                with self.lock:
                    self.undamaged.pop((target.name, seed), None)
                before = self.baseline(folder, target, seed)
                self.prepare(folder, target, seed, data)
                result = self.run(folder, target, command, max(2 * PATIENCE, 2 * TIMES * before.seconds))
            names = (*target.names, os.path.basename(file))
            found = process.problems(result, names, target.chatty, self.finished(target, before, result), "--json" in command)
            if not found:
                found = self.silent(folder, target, seed, data, sound, before, result)
            if not found and target.must and target.must not in result.out:
                found = [f"isolation: nothing is said of the sound files: the output has no {target.must.decode()!r}"]
        kept = [
            Failure(number, target, what, self.save(number, target, seed, data, done, sound, command, file, what, result)) for what in found
        ]
        return target, kept

    def finished(self, target, before, result):
        """Whether the command got to its end, as with the undamaged file."""
        if target.done:
            return bool(re.search(target.done, result.out))
        # Another exit status than 0 may be an answer, as of values that had to be assumed.
        return result.code == 0 or (result.code == before.code and not process.errors(result))

    def silent(self, folder, target, seed, data, sound, before, result):
        """Whether damage that a checksum shows went unnoticed."""
        original = (self.seeds / seed).read_bytes()
        if target.guard is None or sound or data == original:
            return []
        if target.guard == "mended":
            if not self.finished(target, before, result):
                return ["silent: a damaged cache stops the run"]
            return [] if self.computed(folder, target, result) == before.computed else ["silent: another result from a damaged cache"]
        if not self.finished(target, before, result) or b"unchecked" in result.said:
            return []
        if target.guard == "bytes" and checksum(original) in data:
            return ["silent: used although its checksum does not match"]
        if target.guard == "initializers":
            if within(original, data, formats.numbers_of(original)):
                return ["silent: used although its weights were changed"]
            kept = digest(original)
            if kept and kept in data and target.how == "command" and self.computed(folder, target, result) != before.computed:
                return ["silent: another result although its digest is there"]
        if target.guard == "entries" and formats.checked(data) and self.computed(folder, target, result) != before.computed:
            return ["silent: another result from a damaged archive"]
        return []

    def save(self, number, target, seed, data, done, sound, command, file, what, result):
        """Keeps a case: its files as they were, the command, and what came of it."""
        name = re.sub(r"[^\w.-]+", "-", f"{target.format}-{target.command}").strip("-")
        folder = self.keep / f"{name}-{self.seed}-{number}"
        if not folder.exists():
            self.prepare(folder / "files", target, seed, data)
            line = " ".join(shlex.quote(str(c)) for c in command)
            about = {"seed": self.seed, "case": number, "format": target.format, "command": target.command, "file": file}
            about |= {"undamaged": seed, "changes": done, "sound": sound}
            if target.kind == "name":
                about["name"] = data.hex()
            (folder / "case.json").write_text(json.dumps(about, indent=2) + "\n")
            (folder / "command").write_text(f"cd files && {line}\n" if result else f"{line} < files/{file}\n")
            if result:
                (folder / "stdout").write_bytes(result.out)
                (folder / "stderr").write_bytes(result.err)
        with open(folder / "why", "a") as why:
            why.write(what + "\n")
        return folder

    # --- The server

    def send(self, target, data):
        """Sends a damaged file to the server that all cases share."""
        running = self.running()
        if target.command == "HTTP generate":
            status, body = self.ask(running, "/v1/generate", data, server.TYPES["json"])
        else:
            kind = server.TYPES[target.file.rsplit(".", 1)[1]]
            # Half of them in a form.
            data, kind = server.multipart(target.file, data) if data and data[-1] % 2 else (data, kind)
            status, body = self.ask(running, "/v1/classify", data, kind)
        if status is None:
            return [f"server: no answer: {body}"]
        return server.problems(status, body, process.LONGEST_LINE)

    def ask(self, running, path, data, kind):
        try:
            return running.request("POST", path, data, kind)
        except (OSError, server.http.client.HTTPException) as error:
            # An early answer closes the connection while a large body is still being sent.
            if isinstance(error, (BrokenPipeError, ConnectionResetError)) and not running.ended.wait(0.5):
                return 400, b'{"detail": "closed"}'
            return None, repr(error)

    def running(self):
        with self.lock:
            if self.server is None or self.server.ended.is_set():
                folder = self.work / "server"
                folder.mkdir(parents=True, exist_ok=True)
                command = [
                    self.programs[PROGRAM],
                    "serve",
                    "--no-web",
                    "--port",
                    "0",
                    *server.LIMITS,
                    "--model",
                    self.seeds / "generator.safetensors",
                    "--classifier",
                    self.seeds / "classifier.safetensors",
                ]
                self.server = server.Server(command, folder)
                if not self.server.ready(600):
                    raise SystemExit("fuzz: the server does not start:\n" + self.server.said(self.server.err).decode(errors="replace"))
            return self.server

    def close(self):
        """Stops the server. What is wrong with how it ran."""
        if self.server is None:
            return []
        result = self.server.stop(150)
        # Its log is not an error.
        result.err = b"\n".join(line for line in result.err.split(b"\n") if b" /v1/" not in line)
        found = process.problems(result, ("",), True, True)
        return found + ([f"server: exit code {result.code} when it was stopped"] if result.code != 0 and not found else [])


def checksum(data):
    """The part of a safetensors file's header that holds its checksum."""
    place = data.find(b'"sha256":"')
    return data[place : place + 75]


def digest(data):
    """The part of an ONNX file's metadata that holds its digest, if there is one."""
    key = b"tiny-cats.sha256"
    place = data.find(key)
    return data[place : place + len(key) + 2 + 64] if place >= 0 else None


def within(original, data, places):
    """Whether two files differ only at these places."""
    if len(original) != len(data):
        return False
    at = 0
    for begin, end in sorted(places):
        if original[at:begin] != data[at:begin]:
            return False
        at = end
    return original[at:] == data[at:]
