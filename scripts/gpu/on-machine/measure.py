"""Runs the checks, compares training speed with PyTorch, and prints the results. Called by run."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent
PEERS = {"tiny-dit": "torch_dit.py", "resnet": "torch_resnet.py"}
# The batch size: large enough for a GPU, and a small one to test this script on a CPU.
BATCH = {"cuda": 64, "cpu": 8}
STEPS = {"cuda": 50, "cpu": 3}


def run(command):
    """Runs a program; returns its exit code and the JSON lines of its output."""
    result = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def run_lines(command, allowed=(0,)):
    """Runs a program and returns the JSON lines of its output; exits if its exit code is not allowed."""
    code, lines = run(command)
    if code not in allowed:
        sys.exit(f"{' '.join(map(str, command))}: exit code {code}")
    return lines


def startup_time(program):
    """Measures the seconds to start and exit the program."""
    start = time.perf_counter()
    subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def kind(file):
    """Returns the kind of network in a safetensors file."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["tiny-cats"])["config"]["kind"]


def threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def compare_with_pytorch(programs, device, rounds):
    """Measures the training speed of tiny-cats, of it without fused kernels, and of PyTorch, alternately, in f32 and with TF32; returns rows."""
    work = programs / "training-cases"
    work.mkdir(exist_ok=True)
    training = [programs / "training", "--batch", BATCH[device]]
    run_lines([*training, "--write", work])
    rows = []
    for file in sorted(work.glob("*.safetensors")):
        peer = [sys.executable, FOLDER / PEERS[kind(file)], file, "--device", device, "--threads", threads(), "--steps", STEPS[device]]
        for arithmetic in [[], ["--tf32"]] if device == "cuda" else [[]]:
            ours, composed, theirs = [], [], []
            for _ in range(rounds):
                ours += run_lines([*training, "--device", device, *arithmetic, file.stem])
                composed += run_lines([*training, "--device", device, *arithmetic, "--candle-ops", file.stem])
                code, lines = run([*peer, *arithmetic])
                theirs += lines
                if code != 0:
                    print(f"{file.stem}: skipped PyTorch: exit code {code}", file=sys.stderr)
                    break
            rows.append({
                "name": f"training {file.stem}, {'TF32' if arithmetic else 'f32'}", "batch": BATCH[device],
                "ours": summary(ours), "composed": summary(composed), "pytorch": summary(theirs) if theirs else None,
                "ratios": [o["images_per_second"] / t["images_per_second"] for o, t in zip(ours, theirs)],
                "difference": theirs[0]["difference"] if theirs else None,
            })
    return rows


def summary(results):
    peaks = [r["peak_bytes"] for r in results if "peak_bytes" in r]
    return {"images_per_second": statistics.median(r["images_per_second"] for r in results),
            "peak_bytes": max(peaks) if peaks else None,
            "planned_bytes": results[0].get("planned_bytes")}


def print_aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_tables(checks, timings):
    rows = [("check", "found", "limit", "", "")]
    for c in checks:
        value = f"{c['value']:.2g}" if isinstance(c["value"], float) else c["value"]
        rows.append((c["name"], value, f"{c['limit']:g}", "ok" if c["passed"] else "FAILED", c["note"]))
    print_aligned(rows)
    if timings:
        print()
        rows = [("images/s", "ours", "without fused kernels", "PyTorch", "ours ÷ PyTorch", "memory: ours, PyTorch; planned")]
        for t in timings:
            both = [t["ours"], t["pytorch"] or {}]
            speeds = [f"{w['images_per_second']:.1f}" if w else "-" for w in [both[0], t["composed"], both[1]]]
            memory = [f"{w['peak_bytes'] / 1e6:.0f} MB" if w.get("peak_bytes") else "-" for w in both]
            ratios = t["ratios"]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"
            planned = t["ours"]["planned_bytes"]
            memory = ", ".join(memory) + (f"; {planned / 1e6:.0f} MB without CUDA's own" if planned else "")
            rows.append((f"{t['name']}, batch {t['batch']}", *speeds, ratio, memory))
        print_aligned(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    seconds = startup_time(args.programs / "tiny-cats")
    checks = [{"name": "startup of the program, s", "value": seconds, "limit": 5.0, "passed": seconds < 5.0, "note": ""}]
    checks += run_lines([args.programs / "gpu", args.programs / "cats", "--device", args.device], allowed=(0, 1))
    timings = [] if args.quick else compare_with_pytorch(args.programs, args.device, args.rounds)
    print_tables(checks, timings)
    passed = all(c["passed"] for c in checks)
    machine = {"system": platform.platform(), "threads": threads(), "device": args.device}
    results = {"passed": passed, "machine": machine, "checks": checks, "timings": timings}
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {args.output}", file=sys.stderr)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
