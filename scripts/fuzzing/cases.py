"""Test cases: a target, one of its undamaged files, and changes. A case depends only on the seed and its number."""

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

# The time limit of a case: a minimum in seconds, and a multiple of the time with the undamaged file.
MIN_LIMIT_S = 20
LIMIT_FACTOR = 20
ROUNDS = 8
# Parts of the output that differ between identical runs.
VOLATILE = re.compile(rb"[0-9.]+ s\b|[0-9.]+ images/s|\d+ MiB|\s+\d+ % waiting for data|\d{8}-\d{6}-[\w-]+")


class Failure:
    def __init__(self, number, target, message, folder):
        self.number, self.target, self.message, self.folder = number, target, message, folder

    @property
    def group(self):
        """The key of similar failures, which probably have the same cause."""
        return self.target.format, self.target.command, re.sub(r"\d+(\.\d+)?|'.*|b'.*|: error:.*", "", self.message)[:60]


class Fuzzer:
    def __init__(self, programs, seeds, work, failures, seed, targets):
        self.programs, self.seeds, self.work, self.failures, self.seed = (
            programs,
            pathlib.Path(seeds),
            pathlib.Path(work),
            pathlib.Path(failures),
            seed,
        )
        self.targets = targets
        self.baselines, self.locks, self.lock = {}, {}, threading.Lock()
        self.server, self.server_failures = None, []
        for target in targets:
            globs = [sorted(str(p.relative_to(self.seeds)) for p in self.seeds.glob(s)) if "*" in s else [s] for s in target.seeds]
            target.seeds = [name for names in globs for name in names]

    # --- Selection

    def cycle(self, number):
        """The targets of a cycle of eight rounds, in a different order in each round."""
        rng, order = random.Random(f"{self.seed}/cycle/{number}"), []
        for round_number in range(ROUNDS):
            selected = [target for i, target in enumerate(self.targets) if (round_number + i) % target.period == 0]
            rng.shuffle(selected)
            order += selected
        return order

    def case(self, number):
        """Returns the target, the name of the undamaged file, the damaged data, the changes, and True if its checksums are valid."""
        length = sum(ROUNDS // target.period for target in self.targets)
        target = self.cycle(number // length)[number % length]
        rng = random.Random(f"{self.seed}/case/{number}")
        seed = rng.choice(target.seeds)
        data, changes, is_sound = mutations.mutate(rng, target.kind, (self.seeds / seed).read_bytes())
        return target, seed, data, changes, is_sound

    # --- Execution

    def prepare(self, folder, target, seed, data):
        """Fills the folder of a case; returns the command and the name of the damaged file."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, source in target.extra_files.items():
            source, path = self.seeds / source, folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, path, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, path)
        if target.kind == "name":
            # The file's name is damaged.
            file, data = target.file.format(name=os.fsdecode(data)), (self.seeds / target.contents).read_bytes()
        else:
            file = target.file.format(seed=seed)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return [self.programs.get(a, a) if i == 0 else a for i, a in enumerate(target.arguments)], file

    def run(self, folder, target, command, timeout):
        if target.mode == "serve":
            return server.start_and_stop(command, folder, timeout)
        return process.run(command, folder, timeout)

    def output_digest(self, folder, target, result):
        """The digest of the results of a run."""
        digest = hashlib.sha256(VOLATILE.sub(b"", result.out))
        for pattern in target.outputs:
            for path in sorted(folder.glob(pattern)):
                data = path.read_bytes()
                # The metadata may contain the time.
                digest.update(formats.tensors(data)[1] if path.suffix == ".safetensors" else data)
        return digest.digest()

    def baseline(self, folder, target, seed):
        """The result with the undamaged file."""
        key = (target.name, seed)
        with self.lock:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self.baselines:
                command, _ = self.prepare(folder, target, seed, (self.seeds / seed).read_bytes())
                result = self.run(folder, target, command, 600)
                result.output_digest = self.output_digest(folder, target, result)
                self.baselines[key] = result
            return self.baselines[key]

    def check(self, worker, number):
        """Runs a case; returns the target and the failures."""
        return self.examine(self.work / f"worker-{worker}", *self.case(number), number)

    def examine(self, folder, target, seed, data, changes, is_sound, number):
        if target.mode == "http":
            problems, result, command = self.send(target, data), None, ["POST", f"/v1/{target.command.split()[1]}"]
            file = target.file
        else:
            before = self.baseline(folder, target, seed)
            command, file = self.prepare(folder, target, seed, data)
            result = self.run(folder, target, command, max(MIN_LIMIT_S, LIMIT_FACTOR * before.seconds))
            if result.timed_out:
                # The machine may be busy: measure the undamaged file again and retry with a longer timeout.
                with self.lock:
                    self.baselines.pop((target.name, seed), None)
                before = self.baseline(folder, target, seed)
                self.prepare(folder, target, seed, data)
                result = self.run(folder, target, command, max(2 * MIN_LIMIT_S, 2 * LIMIT_FACTOR * before.seconds))
            names = (*target.names, os.path.basename(file))
            problems = process.find_problems(result, names, target.is_verbose, self.is_complete(target, before, result), "--json" in command)
            if not problems:
                problems = self.find_silent_damage(folder, target, seed, data, is_sound, before, result)
            if not problems and target.required_output and target.required_output not in result.out:
                problems = [f"isolation: the output does not contain {target.required_output.decode()!r} of the undamaged files"]
        failures = [
            Failure(number, target, message, self.save(number, target, seed, data, changes, is_sound, command, file, message, result))
            for message in problems
        ]
        return target, failures

    def is_complete(self, target, before, result):
        """True if the command completed, as with the undamaged file."""
        if target.completion_pattern:
            return bool(re.search(target.completion_pattern, result.out))
        # A nonzero exit code can be a result, such as a warning about assumed values.
        return result.code == 0 or (result.code == before.code and not process.errors(result))

    def find_silent_damage(self, folder, target, seed, data, is_sound, before, result):
        """Returns a problem if the program did not detect damage that a checksum shows."""
        original = (self.seeds / seed).read_bytes()
        if target.integrity_check is None or is_sound or data == original:
            return []
        if target.integrity_check == "repaired":
            if not self.is_complete(target, before, result):
                return ["silent: a damaged cache stops the run"]
            return [] if self.output_digest(folder, target, result) == before.output_digest else ["silent: another result from a damaged cache"]
        if not self.is_complete(target, before, result) or b"unchecked" in result.output:
            return []
        if target.integrity_check == "bytes" and checksum_entry(original) in data:
            return ["silent: a file with a wrong checksum was used"]
        if target.integrity_check == "initializers":
            if differ_only_in(original, data, formats.weight_ranges(original)):
                return ["silent: a file with changed weights was used"]
            digest = digest_entry(original)
            if digest and digest in data and target.mode == "command" and self.output_digest(folder, target, result) != before.output_digest:
                return ["silent: another result although the file has a digest"]
        if target.integrity_check == "entries" and formats.has_checksums(data) and self.output_digest(folder, target, result) != before.output_digest:
            return ["silent: another result from a damaged archive"]
        return []

    def save(self, number, target, seed, data, changes, is_sound, command, file, message, result):
        """Saves a case: its files, the command, and its output."""
        name = re.sub(r"[^\w.-]+", "-", f"{target.format}-{target.command}").strip("-")
        folder = self.failures / f"{name}-{self.seed}-{number}"
        if not folder.exists():
            self.prepare(folder / "files", target, seed, data)
            line = " ".join(shlex.quote(str(c)) for c in command)
            record = {"seed": self.seed, "case": number, "format": target.format, "command": target.command, "file": file}
            record |= {"undamaged": seed, "changes": changes, "sound": is_sound}
            if target.kind == "name":
                record["name"] = data.hex()
            (folder / "case.json").write_text(json.dumps(record, indent=2) + "\n")
            (folder / "command").write_text(f"cd files && {line}\n" if result else f"{line} < files/{file}\n")
            if result:
                (folder / "stdout").write_bytes(result.out)
                (folder / "stderr").write_bytes(result.err)
        with open(folder / "problems", "a") as problems:
            problems.write(message + "\n")
        return folder

    # --- The server

    def send(self, target, data):
        """Sends a damaged file to the server that all cases share."""
        running = self.running_server()
        if target.command == "HTTP generate":
            status, body = self.request(running, "/v1/generate", data, server.TYPES["json"])
        else:
            content_type = server.TYPES[target.file.rsplit(".", 1)[1]]
            # Send half of the files as forms.
            data, content_type = server.multipart(target.file, data) if data and data[-1] % 2 else (data, content_type)
            status, body = self.request(running, "/v1/classify", data, content_type)
        if status is None:
            return [f"server: no response: {body}"]
        return server.find_problems(status, body, process.MAX_MESSAGE_LINE)

    def request(self, running, path, data, content_type):
        try:
            return running.request("POST", path, data, content_type)
        except (OSError, server.http.client.HTTPException) as error:
            # The server may respond and close the connection before the whole body is sent.
            if isinstance(error, (BrokenPipeError, ConnectionResetError)) and not running.ended.wait(0.5):
                return 400, b'{"detail": "closed"}'
            return None, repr(error)

    def running_server(self):
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
                if not self.server.wait_until_ready(600):
                    raise SystemExit("fuzz: the server did not start:\n" + self.server.read(self.server.err).decode(errors="replace"))
            return self.server

    def close(self):
        """Stops the server and returns the problems of its run."""
        if self.server is None:
            return []
        result = self.server.stop(150)
        # Its log is not an error.
        result.err = b"\n".join(line for line in result.err.split(b"\n") if b" /v1/" not in line)
        problems = process.find_problems(result, ("",), True, True)
        return problems + ([f"server: exit code {result.code} after SIGTERM"] if result.code != 0 and not problems else [])


def checksum_entry(data):
    """The entry of a safetensors file's header with its checksum."""
    start = data.find(b'"sha256":"')
    return data[start : start + 75]


def digest_entry(data):
    """The entry of an ONNX file's metadata with its digest, if there is one."""
    key = b"tiny-cats.sha256"
    start = data.find(key)
    return data[start : start + len(key) + 2 + 64] if start >= 0 else None


def differ_only_in(original, data, ranges):
    """True if two files differ only in these byte ranges."""
    if len(original) != len(data):
        return False
    at = 0
    for begin, end in sorted(ranges):
        if original[at:begin] != data[at:begin]:
            return False
        at = end
    return original[at:] == data[at:]
