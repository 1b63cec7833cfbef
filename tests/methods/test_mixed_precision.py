"""Every method trains in bfloat16, as on a GPU, on the sample images."""

import importlib
from pathlib import Path

import pytest
import torch

from defectgen import methods
from defectgen.device import torch_rng
from defectgen.folders import ProductFolders, read_catalog
from defectgen.models.model import build
from defectgen.training.costs import kinds_of_steps
from defectgen.training.data import Feeder, make_task, training_data

CPU = torch.device("cpu")
STEEL = Path(__file__).parents[2] / "examples/samples/steel"


@pytest.mark.parametrize("row", methods.BUILT_IN, ids=lambda row: row.name)
def test_every_kind_of_step_runs(row: methods.MethodInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU has all operations that a GPU has, and the same rules for mixed types."""
    module = importlib.import_module(row.implementation.partition(":")[0])
    monkeypatch.setattr(module, "mixed_precision", lambda _device: torch.autocast("cpu", torch.bfloat16))
    config = row.configure("tiny", {"batch_size": "2", "image_size": "64" if row.name == "dfmgan" else "32"})
    source = ProductFolders(product="steel", normals=STEEL / "normals", defects=STEEL / "defects")
    windows = training_data(row.name, read_catalog([source]), config)
    feeder = Feeder(windows, config.batch_size, 0, CPU, 1)
    batch = feeder.batch(0)
    feeder.close()
    method = build(row.name, config, make_task(windows), CPU, 0)
    for i, (_, step) in enumerate(kinds_of_steps(config).values()):
        losses = method.training_step(batch, step, step / config.steps, torch_rng(0, 0, i))
        assert losses
        assert all(torch.isfinite(value).all() for value in losses.values()), losses
    assert all(torch.isfinite(value.float()).all() for value in method.networks.state().values())
    assert {value.dtype for value in method.networks.state().values() if value.is_floating_point()} == {torch.float32}
