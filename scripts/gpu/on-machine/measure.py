"""Runs the checks, times training against PyTorch, and prints both as one table. Called by run."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
PEERS = {"tiny-dit": "torch_dit.py", "resnet": "torch_resnet.py"}
# Pictures in a batch: what fills a card, and what tries this out on a processor.
BATCH = {"cuda": 64, "cpu": 8}
STEPS = {"cuda": 50, "cpu": 3}


def lines(command, allowed=(0,)):
    """The JSON lines that a program prints; ends this one where it fails otherwise than by a check."""
    result = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if result.returncode not in allowed:
        sys.exit(f"{' '.join(map(str, command))}: exit code {result.returncode}")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def start(program):
    """Seconds from calling the program to its end."""
    begin = time.perf_counter()
    subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def kind(file):
    """The kind of network that a safetensors file holds."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["tiny-cats"])["config"]["kind"]


def threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def against_pytorch(programs, device, rounds):
    """Rows of training speed, ours and PyTorch's in turn, with factors of products in f32 and rounded to TF32."""
    work = programs / "training-cases"
    work.mkdir(exist_ok=True)
    training = [programs / "training", "--batch", BATCH[device]]
    lines([*training, "--write", work])
    rows = []
    for file in sorted(work.glob("*.safetensors")):
        for arithmetic in [[], ["--tf32"]] if device == "cuda" else [[]]:
            ours, theirs = [], []
            for _ in range(rounds):
                ours += lines([*training, "--device", device, *arithmetic, file.stem])
                theirs += lines([sys.executable, HERE / PEERS[kind(file)], file, "--device", device, *arithmetic,
                                 "--threads", threads(), "--steps", STEPS[device]])
            speeds = [[r["images_per_second"] for r in results] for results in (ours, theirs)]
            ratios = [o / t for o, t in zip(*speeds)]
            rows.append({
                "name": f"training {file.stem}, {'TF32' if arithmetic else 'f32'}", "batch": BATCH[device],
                "ours": statistics.median(speeds[0]), "pytorch": statistics.median(speeds[1]),
                "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
                "difference": theirs[0]["difference"],
                "peak_bytes": {"ours": max(r.get("peak_bytes", 0) for r in ours),
                               "pytorch": max(r.get("peak_bytes", 0) for r in theirs)},
            })
    return rows


def aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def table(checks, timings):
    rows = [("check", "found", "to be below", "", "")]
    for c in checks:
        found = f"{c['value']:.2g}" if isinstance(c["value"], float) else c["value"]
        rows.append((c["name"], found, f"{c['limit']:g}", "ok" if c["passed"] else "FAILED", c["note"]))
    aligned(rows)
    if timings:
        print()
        rows = [("pictures a second", "ours", "PyTorch", "ours ÷ PyTorch", "memory in use, ours and PyTorch's")]
        for t in timings:
            ratio = f"{t['ratio']:.2f} ({t['lowest']:.2f} to {t['highest']:.2f})"
            memory = " and ".join(f"{t['peak_bytes'][who] / 1e6:.0f} MB" for who in ("ours", "pytorch"))
            rows.append((f"{t['name']}, batch {t['batch']}", f"{t['ours']:.1f}", f"{t['pytorch']:.1f}", ratio, memory))
        aligned(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    seconds = start(args.programs / "tiny-cats")
    checks = [{"name": "start of the program, seconds", "value": seconds, "limit": 5.0, "passed": seconds < 5.0, "note": ""}]
    checks += lines([args.programs / "gpu", args.programs / "cats", "--device", args.device], allowed=(0, 1))
    timings = [] if args.quick else against_pytorch(args.programs, args.device, args.rounds)
    table(checks, timings)
    passed = all(c["passed"] for c in checks)
    machine = {"system": platform.platform(), "threads": threads(), "device": args.device}
    results = {"passed": passed, "machine": machine, "checks": checks, "timings": timings}
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {args.output}", file=sys.stderr)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
