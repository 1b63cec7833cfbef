"""The Python API: every name is there, documented, light to import, and its example runs."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import defectgen
from defectgen.imaging.images import encode_png

ROOT = Path(defectgen.__file__).parents[1]
SAMPLES = ROOT / "examples/samples"
FUNCTIONS = [
    "train", "synthesize", "transfer", "compose", "write", "review", "inspect", "evaluate", "read_catalog",
    "load_model",
]  # fmt: skip


def _all_but_some(folder: str, names: list[str]) -> list[str]:
    """Three images of each category are enough to evaluate."""
    return [] if any((Path(folder) / name).is_dir() for name in names) else sorted(names)[3:]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples start from: images of a part, of another one, of a line, real and made ones to compare."""
    shutil.copytree(SAMPLES / "steel", tmp_path / "photos")
    shutil.copytree(SAMPLES / "ceramic/normals", tmp_path / "other/normals")
    rng = np.random.default_rng(0)
    for name in ("line", "golden"):
        (tmp_path / name).mkdir()
    for i in range(2):
        coarse = cv2.resize(rng.normal(130, 40, (6, 6)), (96, 96), interpolation=cv2.INTER_CUBIC)
        whole = np.clip(coarse + rng.normal(0, 3, (96, 96)), 0, 255).astype(np.uint8)
        (tmp_path / f"golden/{i}.png").write_bytes(encode_png(whole))
        whole[40:50, 20 : 20 + 50 * i] = 0
        (tmp_path / f"line/{i}.png").write_bytes(encode_png(whole))
    for source, name in (("ceramic", "real"), ("steel", "made")):
        shutil.copytree(SAMPLES / source, tmp_path / name, ignore=_all_but_some)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_each_function_runs(plant: Path, name: str) -> None:
    function = getattr(defectgen, name)
    examples = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert len(examples) == 1
    assert examples[0].examples, "it has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(examples[0], out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_every_name_is_there_and_documented() -> None:
    for name in set(defectgen.__all__) - {"__version__"}:
        assert getattr(defectgen, name).__doc__, name
    assert set(defectgen.__all__) <= set(dir(defectgen))
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        _ = defectgen.generate


def test_what_needs_no_network_loads_no_torch(plant: Path) -> None:
    """Composing cut-outs, and inspecting against golden images."""
    program = """
import sys, defectgen
from pathlib import Path
job = defectgen.prepare_composition(
    defectgen.ComposeRequest(num=2, defects=Path("photos/defects"), normals=Path("photos/normals")))
assert defectgen.write(job, defectgen.DatasetRequest(out=Path("out"))).written == 2
assert len(list(defectgen.inspect(defectgen.InspectRequest(images=Path("line"), reference=Path("golden"))))) == 2
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=plant, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_function_and_its_command_make_the_same_samples(plant: Path) -> None:
    region = defectgen.Region(box=defectgen.Box(20, 20, 150, 150), name="20,20,150,150")
    request = defectgen.ComposeRequest(
        num=3, seed=5, defects=Path("photos/defects"), normals=Path("photos/normals"),
        placement=defectgen.Placement(scale=(0.5, 1.0), region=region),
    )  # fmt: skip
    defectgen.write(defectgen.prepare_composition(request), defectgen.DatasetRequest(out=Path("by-function")))
    command = [
        "compose", "photos/defects", "photos/normals", "-n", "3", "--seed", "5", "--scale", "0.5:1",
        "--region", "20,20,150,150", "--out", "by-command", "--quiet",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "defectgen", *command], check=True, capture_output=True, timeout=120)
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in Path(root).rglob("*.*") if path.name != "dataset.json"}
        for root in ("by-function", "by-command")
    )
    assert ours == theirs
    assert len(ours) == 3 + 3 + 3


def test_the_script_with_cells_runs(plant: Path) -> None:
    """`examples/notebook.py`, from a folder to pictures, with fewer steps."""
    text = (ROOT / "examples/notebook.py").read_text(encoding="utf-8")
    assert "STEPS = " in text
    short = [("STEPS = 2" if line.startswith("STEPS = ") else line) for line in text.splitlines()]
    (plant / "notebook.py").write_text("\n".join(short))
    shutil.copytree(SAMPLES, plant / "examples/samples")
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=plant, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((plant / "demo/composed/dataset.json").read_text())
    assert record["samples"] > 0
