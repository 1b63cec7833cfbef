"""The table of methods: no other module names a method, and other packages can add one."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import defectgen
from defectgen import methods
from defectgen.__main__ import main
from defectgen.errors import UsageError
from defectgen.imaging.images import encode_png
from defectgen.methods.base import Method
from defectgen.methods.dcdganc import DCDGANc
from defectgen.methods.defect_gan import DefectGAN
from defectgen.methods.dfmgan import DFMGAN
from defectgen.methods.dt_gan import DTGAN
from defectgen.methods.isu_gan import ISUGAN

PACKAGE = Path(defectgen.__file__).parent
# mypy checks here that each class fits the protocol.
CLASSES: dict[str, type[Method]] = {
    "dt-gan": DTGAN, "dcdganc": DCDGANc, "isu-gan": ISUGAN, "defect-gan": DefectGAN, "dfmgan": DFMGAN,
}  # fmt: skip

TOY = '''
"""A method of another package: it learns the mean of the defects, and adds it to normals."""
from typing import ClassVar

import torch
from torch import nn

from defectgen.methods import MethodInfo
from defectgen.methods.base import Generated, MethodConfig
from defectgen.methods.networks import Networks

INFO = MethodInfo(
    name="toy", implementation="toy_method:Toy", learns="pairs", makes="window", presets=("tiny",),
)


class Toy:
    Config: ClassVar = MethodConfig
    presets: ClassVar = {"tiny": {"image_size": 32, "batch_size": 2, "steps": 40}}

    def __init__(self, config, task, device):
        self.config, self.task = config, task
        self.change = nn.Conv2d(task.channels, task.channels, 1)
        self.networks = Networks(
            {"change": self.change}, {"change": torch.optim.Adam(self.change.parameters(), lr=0.1)},
            averaged=("change",), device=device,
        )

    def training_step(self, batch, step, progress, rng):
        self.networks.begin()
        loss = (self.change(batch.x).mean() - batch.x_ref.amin()).square()
        loss.backward()
        self.networks.step("change")
        return {"loss": loss.detach()}

    @torch.no_grad()
    def generate(self, request):
        x = request.x.clone()
        x[:, :, 12:20, 12:20] = self.change(x)[:, :, 12:20, 12:20].clamp(-1, 1)
        return Generated(x)
'''


def test_the_built_in_rows_lead_to_the_classes() -> None:
    assert {name: methods.info(name).load() for name in CLASSES} == CLASSES
    assert methods.names()[: len(CLASSES)] == tuple(CLASSES)


def test_no_other_file_names_a_method() -> None:
    """Code that depends on a method looks up its abilities in the table."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.is_relative_to(PACKAGE / "methods"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                named = [name for name in CLASSES if name in node.value]
                assert not named, f"{path}:{node.lineno} names {named}"
            if isinstance(node, ast.ImportFrom):
                assert not {alias.name for alias in node.names} & {cls.__name__ for cls in CLASSES.values()}, path


def test_an_unknown_method_is_refused_with_the_available_ones() -> None:
    with pytest.raises(UsageError, match=r"--method nope: unknown method; available: dt-gan, .*dfmgan"):
        methods.info("nope")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder where another package with entry points is installed."""
    folder = tmp_path / "site"
    (folder / "toy_method-1.0.dist-info").mkdir(parents=True)
    (folder / "toy_method.py").write_text(TOY)
    (folder / "toy_method-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n")
    (folder / "toy_method-1.0.dist-info/entry_points.txt").write_text(
        "[defectgen.methods]\ntoy = toy_method:INFO\nbroken = toy_gone:INFO\ndt-gan = toy_method:INFO\n"
    )
    rng = np.random.default_rng(0)
    for name, count in (("normals", 6), ("defects", 3)):
        for i in range(count):
            pixels = rng.integers(110, 140, (48, 64)).astype(np.uint8)
            if name == "defects":
                pixels[20:30, 20:30] = 0
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_png(pixels))
    return folder


def in_own_process(site: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join([str(site), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "defectgen", *arguments], cwd=site.parent, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process, to which the other package is added."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(site.parent)

    def command(*arguments: str) -> tuple[int, str, str]:
        methods._added.cache_clear()
        capsys.readouterr()
        return main([*arguments]), *capsys.readouterr()

    yield command
    sys.modules.pop("toy_method", None)
    monkeypatch.undo()
    methods._added.cache_clear()


TRAIN = ("train", "--method", "toy", "normals", "defects", "--name", "t", "--device", "cpu", "-q", "--preset")


def test_another_package_adds_a_method_by_an_entry_point(site: Path, run: Run) -> None:
    done = in_own_process(site, *TRAIN, "tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert "t: 40 steps" in done.stdout
    code, out, err = run("synthesize", "--model", "t", "-n", "3", "--device", "cpu", "-q")
    assert (code, err) == (0, "defectgen: warning: t was trained for 40 steps only; for better samples train longer\n")
    assert "3 samples written" in out
    refusal = "defectgen: error: --preset compact: not a preset of toy; it has tiny\n"
    assert run(*TRAIN, "compact") == (2, "", refusal)
    code, _, err = run("synthesize", "--model", "t", "-n", "3", "--region", "0,0,9,9", "--out", "r", "-q")
    assert code == 2
    assert "toy cannot place defects in a region (--region)" in err
    assert "|toy" in in_own_process(site, "train", "--help").stdout


def test_a_broken_package_is_named_and_does_not_affect_other_methods(run: Run) -> None:
    code, _, err = run("train", "--method", "broken", "normals", "defects")
    assert code == 2
    assert "the package toy-method cannot be loaded: No module named 'toy_gone'" in err
    assert methods.info("dt-gan").load() is DTGAN  # another package cannot override a built-in method


def test_a_model_of_an_uninstalled_method_is_refused(site: Path, run: Run) -> None:
    assert run(*TRAIN, "tiny", "--steps", "2")[0] == 0
    (site / "toy_method-1.0.dist-info/entry_points.txt").write_text("")
    importlib.invalidate_caches()
    code, _, err = run("synthesize", "--model", "t", "-n", "3")
    assert code == 5
    assert "model.safetensors: toy: unknown method; available: dt-gan" in err
