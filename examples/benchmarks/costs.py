"""Compares what `train --dry-run` says that a training costs with what it costs.

    python examples/benchmarks/costs.py --preset tiny --steps 200

Trains on the sample images of steel, in a process of its own: the time of the training, the peak of its resident memory
and the bytes of its run folder. Runs are shorter than a preset says, with their parts in proportion.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from defectgen.methods import info, names

STEEL = Path(__file__).parents[1] / "samples/steel"
WALL = "import sys; from defectgen.__main__ import main; sys.exit(main())"
CPU = f"import time; time.perf_counter = time.monotonic = time.process_time; {WALL}"


def run(program: str, *arguments: str) -> tuple[dict[str, Any], int]:
    """The last JSON line of a command, and the peak of its memory in bytes."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--json", "--quiet"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(process.returncode)
    return json.loads(lines[-1]), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=names(), help="repeatable [default: all]")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="count the processes' CPU time, for a busy machine")
    arguments = parser.parse_args()

    program = CPU if arguments.cpu_time else WALL
    print("| method | preset, steps | time, s: said | taken | memory, MB: said | taken | disk, MB: said | taken |")
    print("|---|---|---|---|---|---|---|---|")
    for method in arguments.method or names():
        of_preset = info(method).configure(arguments.preset, {}).model_dump()
        with tempfile.TemporaryDirectory() as folder:
            command = [
                "train", "--method", method, "--preset", arguments.preset, "--steps", str(arguments.steps),
                "--device", arguments.device, "--name", "run", "--out", folder,
                "--weights", f"{folder}/weights.toml", str(STEEL / "normals"), str(STEEL / "defects"),
            ]  # fmt: skip
            if "backbone_steps" in of_preset:
                part = of_preset["backbone_steps"] / of_preset["steps"]
                command += ["--set", f"backbone_steps={round(part * arguments.steps)}"]
            if arguments.batch_size:
                command += ["--batch-size", str(arguments.batch_size)]
            plan, _ = run(program, *command, "--dry-run")
            summary, memory = run(program, *command)
            disk = sum(path.stat().st_size for path in (Path(folder) / "run").rglob("*") if path.is_file())
        said = plan["estimated_seconds"], plan["estimated_memory_bytes"] / 1e6, plan["estimated_disk_bytes"] / 1e6
        pairs = zip(said, (summary["seconds"], memory / 1e6, disk / 1e6), strict=True)
        cells = " | ".join(f"{a:.{digits}f} | {b:.{digits}f}" for (a, b), digits in zip(pairs, (0, 0, 1), strict=True))
        print(f"| {method} | {arguments.preset}, {arguments.steps} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
