"""The costs that `train --dry-run` tells beside those of a run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from defectgen import methods
from defectgen.folders import ProductFolders, read_catalog
from defectgen.methods.base import MethodConfig
from defectgen.methods.dfmgan import DFMGAN
from defectgen.training import costs
from defectgen.training.costs import estimate, kinds_of_steps
from defectgen.training.run import TrainSpec
from defectgen.training.trainer import train


@pytest.fixture
def spec_for(
    source: ProductFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, dict[str, str]], TrainSpec]:
    """A run of a method's preset `tiny`; its estimate measures each kind of step once."""
    monkeypatch.setattr(costs, "_MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(costs, "_WARMUP_SECONDS", 0.0)

    def make(name: str, settings: dict[str, str]) -> TrainSpec:
        config = methods.info(name).configure("tiny", settings)
        return TrainSpec(name, "run", tmp_path / "run", read_catalog([source]), (source,), config, device="cpu")

    return make


def configured(name: str, preset: str, **settings: str) -> MethodConfig:
    return methods.info(name).configure(preset, settings)


def test_kinds_of_steps_are_counted() -> None:
    """By hand, from the intervals of the penalties and the parts of the training."""
    critic = kinds_of_steps(configured("defect-gan", "paper", steps="1000"))
    assert sorted(count for count, _ in critic.values()) == [200, 800]
    stages = kinds_of_steps(configured("dfmgan", "paper", steps="64", backbone_steps="32"))
    assert sorted(count for count, _ in stages.values()) == [2, 2, 6, 6, 24, 24]
    assert sum(count for count, last in stages.values() if last >= 32) == 32
    late = kinds_of_steps(configured("dcdganc", "tiny", steps="100"))
    assert sorted(count for count, _ in late.values()) == [50, 50]
    varied = kinds_of_steps(configured("dt-gan", "tiny", steps="400"))
    assert sorted(count for count, _ in varied.values()) == [75, 100, 225]
    assert kinds_of_steps(configured("dfmgan", "paper", steps="64", backbone_steps="32"), start=32).keys() == {
        kind for kind, (_, last) in stages.items() if last >= 32
    }


@pytest.mark.parametrize("name", ["dfmgan", "defect-gan"])
def test_steps_of_a_kind_do_what_it_says(name: str, spec_for: Callable[[str, dict[str, str]], TrainSpec]) -> None:
    """Penalties have losses of their own names."""
    settings = {"steps": "9", "batch_size": "2"}
    settings |= (
        {"backbone_steps": "5", "pl_every": "2", "r1_every": "4"}
        if name == "dfmgan"
        else {"masks": "false", "critic_steps": "3", "width": "8", "image_size": "32"}
    )
    request = spec_for(name, settings)
    seen: dict[tuple[bool, ...], set[str]] = {}
    built = methods.info(name).load()
    step_of = built.training_step

    def watched(self: object, batch: object, step: int, progress: float, rng: torch.Generator) -> object:
        losses = step_of(self, batch, step, progress, rng)  # type: ignore[arg-type]
        names = set(losses)
        assert seen.setdefault(request.config.extras(step, progress), names) == names
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built, "training_step", watched)
        train(request)
    assert len({frozenset(names) for names in seen.values()}) == len(seen) > 1


def test_only_the_remaining_stage_is_counted(
    spec_for: Callable[[str, dict[str, str]], TrainSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"steps": "3", "backbone_steps": "2", "batch_size": "2"}
    train(spec_for("dfmgan", settings))
    kept = (tmp_path / "run").rename(tmp_path / "kept") / "backbone.safetensors"
    steps: list[int] = []
    step_of = DFMGAN.training_step

    def watched(self: DFMGAN, batch: object, step: int, progress: float, rng: torch.Generator) -> object:
        steps.append(step)
        return step_of(self, batch, step, progress, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(DFMGAN, "training_step", watched)
    request = spec_for("dfmgan", settings)
    estimate(request)
    assert min(steps) < 2 <= max(steps)
    steps.clear()
    estimate(TrainSpec(**{**vars(request), "backbone": kept}))
    assert steps
    assert min(steps) >= 2


@pytest.mark.parametrize("name", methods.names())
def test_the_disk_space_is_that_of_a_run(name: str, spec_for: Callable[[str, dict[str, str]], TrainSpec]) -> None:
    size = methods.info(name).load().Config.sizes[0]
    small = {"steps": "8", "batch_size": "2", "image_size": str(size)}
    if len(methods.info(name).stages) > 1:
        small["backbone_steps"] = "6"
    request = spec_for(name, small)
    plan = estimate(request)
    assert json.dumps(plan)
    assert not request.run.exists()
    train(request)
    taken = sum(path.stat().st_size for path in request.run.rglob("*") if path.is_file())
    assert plan["estimated_disk_bytes"] == pytest.approx(taken, rel=0.1)


MEMORY = """
import os, sys
from pathlib import Path
from defectgen import methods
from defectgen.folders import ProductFolders, read_catalog
from defectgen.training import costs
from defectgen.training.run import TrainSpec
from defectgen.training.trainer import train

costs._MEASURED_SECONDS = costs._WARMUP_SECONDS = 0.0
folder, out = map(Path, sys.argv[1:])
source = ProductFolders(product="part", normals=folder / "normals", defects=folder / "defects")
settings = {
    "residual": "false", "prior": "latent", "exposure": "false", "image_size": "64", "width": "8", "max_width": "32",
    "c_channels": "4", "batch_size": "32", "r1_every": "1", "steps": "2",
}
config = methods.info("dt-gan").configure("tiny", settings)
spec = TrainSpec("dt-gan", "run", out, read_catalog([source]), (source,), config, device="cpu")
print(costs.peak_memory(costs.torch.device("cpu")), flush=True)
for run in (lambda: costs.estimate(spec)["estimated_memory_bytes"], lambda: train(spec) and None):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        said = run()
        print(said or costs.peak_memory(costs.torch.device("cpu")), flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork, and resident memory as Linux counts it")
def test_the_memory_is_that_of_a_run(source: ProductFolders, tmp_path: Path) -> None:
    """What a training adds to the memory of a process that has only loaded everything."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(source.normals.parent), str(tmp_path / "run")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, said, taken = map(int, done.stdout.split())
    assert taken - before > 100e6
    assert said - before == pytest.approx(taken - before, rel=0.25)
