"""`compose` and `train` under SIGKILL, at moments drawn with a seed."""

import json
from pathlib import Path

import pytest

import defectgen
from tests import kills

ROOT = Path(defectgen.__file__).parents[1]
STEEL = ROOT / "examples/samples/steel"
SMALL = ["image_size=32", "width=8", "max_width=16", "c_channels=2", "style_dim=4", "batch_size=2"]


def dataset(out: Path) -> dict[str, object]:
    """All files; of `dataset.json` what does not hold the command."""
    found: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    record = json.loads((out / "dataset.json").read_text())
    return {**found, "dataset.json": {key: value for key, value in record.items() if key != "command"}}


def run(folder: Path) -> dict[str, object]:
    """All files but the page to watch; what does not hold the seconds of the metrics and the checkpoint."""
    found: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("checkpoint.safetensors", "index.html")
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**found, "metrics.jsonl": [{**row, "seconds": None} for row in rows]}


@pytest.mark.parametrize(("layout", "count"), [("yolo", 5), ("mvtec", 4)])
def test_composing(tmp_path: Path, layout: str, count: int) -> None:
    command = ["compose", str(STEEL / "defects"), str(STEEL / "normals"), "-n", "40", "--format", layout, "--out"]
    environment = kills.environment(ROOT)
    kills.run_with_kills(
        [*command, str(tmp_path / "whole")], tmp_path / "whole", kills=0, longest=0, seed=0, environment=environment
    )
    killed = kills.run_with_kills(
        [*command, str(tmp_path / "d")], tmp_path / "d", kills=count, longest=0.8, seed=1, environment=environment
    )
    assert killed >= count / 2
    kills.assert_same(tmp_path / "d", tmp_path / "whole", dataset)


def test_training(tmp_path: Path) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [
        "train", "--method", "dt-gan", "--preset", "tiny", str(STEEL / "normals"), str(STEEL / "defects"), *settings,
        "--steps", "12", "--device", "cpu", "--name", "r",
    ]  # fmt: skip
    environment = kills.environment(ROOT)
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for name, count in (("whole", 0), ("killed", 2)):
        more = ["--out", str(folders[name]), "--weights", str(folders[name] / "weights.toml")]
        killed = kills.run_with_kills(
            [*command, *more], folders[name] / "r", kills=count, longest=1.2, seed=2, environment=environment
        )
        assert killed >= count / 2
    kills.assert_same(folders["killed"] / "r", folders["whole"] / "r", run)
