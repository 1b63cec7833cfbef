"""`examples/benchmarks/all.sh` and `results.py`: what is left to do, and the tables."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "examples/benchmarks"
STEEL = Path(__file__).parents[1] / "examples/samples/steel"

# Stands for the commands that take hours: notes its call, and writes what these leave. It fails where a file says so.
FAKE = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
with open(Path(sys.argv[0]).parent / "calls", "a") as file:
    file.write(" ".join(words[:2] if words[0] != "train" else ["train", words[words.index("--method") + 1]]) + "\\n")
if (Path(sys.argv[0]).parent / "broken").exists() and words[0] == "evaluate":
    sys.exit(4)
of = lambda option: words[words.index(option) + 1]
score = {"scores": {name: {"mean": 0.5, "spread": 0.1} for name in ("balanced_accuracy", "mean_ap")}}
verdict = {"verdict": "helps", "low": 0.01, "high": 0.2}
if words[0] == "train":
    run = Path("runs", of("--name"))
    run.mkdir(parents=True)
    (run / "model.safetensors").touch()
    steps = [10, 20, 30, 40, 50, 60, 6000, 6010]  # a time limit left out all but the first of a stage
    rows = [{"step": step, "seconds": 1200 * (i + 1) / len(steps)} for i, step in enumerate(steps)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
elif "dcdganc" in words:
    sys.exit(5)  # no visible defects
elif words[0] in ("compose", "synthesize"):
    Path(of("--out")).mkdir(exist_ok=True)
    Path(of("--out"), "manifest.jsonl").write_text("{}\\n" * 4)
elif words[0] == "evaluate":
    names = words[2 : words.index("--test")]
    answer = {"share": 0.25, "tasks": {"classification": verdict, "segmentation": {"verdict": "do not use it"}}}
    shots = {"augmentation": "traditional", "sets": {"traditional": score} | {name: score for name in names}}
    shots["datasets"] = {name: answer for name in names}
    found = {"extent": {"seeds": 5}, "downstream": [{"shots": 5, **shots}, {"shots": None, **shots}]}
    Path(of("--out")).mkdir(exist_ok=True)
    Path(of("--out"), "report.json").write_text(json.dumps(found))
else:  # quality.py
    row = {"told": 0.5, "iou": None, "variety": 1.0, "ratio": 1.5, "copies": 0.0, "redrawn": 0.1}
    row |= {"kid": {"crack": 2.0, "spot": None}, "floor": {"crack": 0.3}}
    names = words[2 : words.index("--one-category" if "--one-category" in words else "--json")]
    Path(of("--json")).write_text(json.dumps([{"dataset": name, **row} for name in names]))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight normals, and eight defects of two categories."""
    for part in ("normals", *(f"{kind}/{category}" for kind in ("defects", "masks") for category in ("crack", "spot"))):
        folder = tmp_path / "steel" / part
        folder.mkdir(parents=True)
        for file in sorted((STEEL / part).iterdir())[:8]:
            (folder / file.name).symlink_to(file)
    return tmp_path / "steel"


def test_what_was_interrupted_goes_on_and_what_is_done_is_not_done_again(data: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    scripts = tmp_path / "bin"
    scripts.mkdir()
    choose = f'case $1 in *results.py) exec {sys.executable} "$@" ;; *) exec {sys.executable} {fake} "$@" ;; esac'
    for name in ("python", "defectgen"):
        (scripts / name).write_text(f"#!/bin/sh\n{choose}\n")
        (scripts / name).chmod(0o755)
    settings = {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "METHODS": "dt-gan dcdganc isu-gan",
    }

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPTS / "all.sh"), str(data)],
            env={**os.environ, **settings}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    (tmp_path / "broken").touch()
    assert run().returncode == 4
    (tmp_path / "broken").unlink()
    first, again = run(), run()
    assert first.returncode == again.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [calls.count(f"train {method}") for method in ("dt-gan", "dcdganc", "isu-gan")] == [1, 1, 1]
    assert sum("quality" in call for call in calls) == 2
    assert sum("evaluate" in call for call in calls) == 1 + 2

    rows = [line for line in first.stdout.splitlines() if line.startswith("|") and "---" not in line]
    assert rows[1] == "| *two halves of the real ones* | | 0.3 |  | | | | | | |"
    assert rows[3].startswith("| `dt-gan` | 70 steps, 20 min | 2.0 |  | 1.50 | 0.50 |  | 1.00 | 0% | ")
    assert rows[5:7] == [
        "| real images, augmented | | 0.500 ± 0.100 | | 0.500 ± 0.100 | |",
        "| and `compose` | 0.25 | 0.500 ± 0.100 | helps, +0.010 to +0.200 | 0.500 ± 0.100 | do not use it |",
    ]
    assert "`dcdganc` (70 steps, 20 min) made no visible defect." in first.stdout
    assert sum("dcdganc" in row for row in rows) == 0
    tables = first.stdout.split("\n\n")
    assert all(len({row.count("|") for row in table.splitlines() if row.startswith("|")}) <= 1 for table in tables)
    assert len(list((tmp_path / "out/steel").glob("dev/*/crack/*"))) == 2 * 6  # images and masks
    assert len(list((tmp_path / "out/steel").glob("test/*/crack/*"))) == 2 * 2
    assert json.loads((tmp_path / "out/steel/quality-one.json").read_text())[1]["dataset"] == "isu-gan"


def test_steps_that_were_left_out_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    taken = importlib.import_module("results").taken

    def log(*rows: tuple[int, float]) -> None:
        lines = (json.dumps({"step": step, "seconds": seconds}) for step, seconds in rows)
        (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))

    assert taken(tmp_path) == (0, 0, 0)  # ended before the first were logged
    log((10, 5.0), (20, 8.0), (30, 12.0), (6000, 13.0), (6010, 60.0))
    assert taken(tmp_path) == (40, pytest.approx(0.45), 1)
    log((6000, 6.0))
    assert taken(tmp_path) == (0, 0, 0.1)
