"""`examples/ship.py`: models in float16, and their entries in the list."""

import runpy
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch

from defectgen import files
from defectgen.models import checkpoint, registry

SCRIPT = Path(__file__).parents[1] / "examples/ship.py"


def test_a_model_is_halved_and_still_that_of_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, weights = tmp_path / "m/model.safetensors", tmp_path / "weights.toml"
    checkpoint.save(file, {"w": torch.linspace(-1, 1, 3000)}, {"method": "dt-gan", "config": {}, "task": {}})
    before = file.stat().st_size
    entry = registry.Entry(
        name="m", method="dt-gan", categories=("a",), products=("p",), image_size=32, channels=1, file=file,
        sha256=files.sha256(file), created=datetime(2026, 1, 1, tzinfo=timezone.utc), trained_on={},
    )  # fmt: skip
    registry.add(entry, weights)
    monkeypatch.setattr(sys, "argv", ["ship.py", "m", "--weights", str(weights)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.startswith("m: 0.01 MB\n")
    assert file.stat().st_size < 0.6 * before
    (after,) = registry.read(weights)
    registry.verify(after)
    assert after == entry.model_copy(update={"sha256": after.sha256, "created": after.created})
    assert after.created > entry.created  # of several that fit, the one shipped last is the default
    assert checkpoint.load(file)[0]["w"].dtype == torch.float16
