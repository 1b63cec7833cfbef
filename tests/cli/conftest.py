"""Stand-ins for training and generating, so that the commands can be tried alone."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from defectgen import dataset, errors, files
from defectgen.models import registry
from defectgen.models.registry import Entry
from defectgen.synthesis import generated
from defectgen.training import costs, trainer
from defectgen.training.run import TrainSpec

Requests = list[Any]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEFECTGEN_")]:
        monkeypatch.delenv(name)
    # What is started here is this defectgen, installed or not.
    paths = [str(Path(errors.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "site" / "defectgen")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder `tiles` with four normals, two cracks, and their masks."""
    rng = np.random.default_rng(1)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 30:50] = 255
    for index in range(4):
        _save(tmp_path / "tiles" / "good" / f"{index}.png", rng.integers(0, 255, (60, 80), np.uint8))
    for index in range(2):
        _save(
            tmp_path / "tiles" / "defects" / "crack" / f"{index}.png",
            rng.integers(0, 255, (60, 80), np.uint8),
        )
        _save(tmp_path / "tiles" / "masks" / "crack" / f"{index}.png", mask)
    return tmp_path / "tiles"


@pytest.fixture
def defects(photographs: Path) -> Path:
    """Two cracks that show: the fixture's photographs are noise, which nothing stands out from."""
    for index in range(2):
        pixels = np.full((60, 80), 120, np.uint8)
        pixels[20:30, 30:50] = 10
        _save(photographs / f"defects/crack/{index}.png", pixels)
    for path in (photographs / "good").iterdir():
        _save(path, np.full((60, 80), 140, np.uint8))
    return photographs


def _save(path: Path, pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Instead of training: notes the request, reports three steps, leaves a model file."""
    requests: Requests = []

    def stand_in(request: TrainSpec, on_step: Callable[[trainer.Progress], None]) -> trainer.Trained:
        requests.append(request)
        for step in (1, 2, 3):
            on_step(trainer.Progress(step, 3, 12.5, 60.0, {"d": 0.5, "g": 1.25}, passes=2.5))
        model = request.run / "model.safetensors"
        files.write(model, b"model")
        task: Any = SimpleNamespace(domains=("normal", "crack"), products=("tiles",), channels=1)
        return trainer.Trained(model, task, 3, 75.0, {"d": 0.5}, None)

    monkeypatch.setattr(trainer, "train", stand_in)
    return requests


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Requests:
    requests: Requests = []

    def stand_in(request: TrainSpec) -> dict[str, Any]:
        requests.append(request)
        return {"name": request.name, "scales": {"tiles": {"crack": 0.5}}, "domains": ("normal", "crack")}

    monkeypatch.setattr(costs, "estimate", stand_in)
    return requests


class _Samples:
    def __init__(self, request: generated.SynthesisRequest) -> None:
        self.wanted = request.wanted
        self.redrawn = 2
        self.failed = [1]
        self.metadata: dict[str, Any] = {}
        self.refused: dict[str, int] = {}
        self.warnings: list[str] = []

    def __len__(self) -> int:
        return self.wanted.num - len(self.wanted.skip)

    def __iter__(self) -> Iterator[int]:
        return iter(index for index in range(self.wanted.num) if index not in self.wanted.skip)

    def of_ranks(self) -> Iterator[int]:
        return iter(self)

    def normals(self) -> list[Any]:
        return []


class _Dataset:
    done = frozenset({0})
    rejected = frozenset[int]()
    warnings = ()
    sides: ClassVar[dict[str, bool]] = {}

    def __init__(self, out: Path, **settings: Any) -> None:
        self.out = out
        self.settings = settings

    def write(
        self,
        samples: Iterator[int],
        *,
        normals: list[Any],
        metadata: dict[str, Any],
        workers: int,
        on_sample: Callable[[Any], None],
    ) -> SimpleNamespace:
        assert not normals
        made = list(samples)
        for sample in made:
            on_sample(sample)
        return SimpleNamespace(written=len(made) - 1, kept=1, sheet=self.out / "sheet.jpg")


@pytest.fixture
def synthesized(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Instead of generating and writing: notes the requests and the datasets."""
    made = SimpleNamespace(requests=[], datasets=[])

    def synthesize(request: generated.SynthesisRequest) -> _Samples:
        made.requests.append(request)
        return _Samples(request)

    def open_folder(out: Path, **settings: Any) -> _Dataset:
        opened = _Dataset(out, **settings)
        made.datasets.append(opened)
        return opened

    monkeypatch.setattr(generated, "synthesize", synthesize)
    monkeypatch.setattr(dataset, "open_folder", open_folder)
    return made


@pytest.fixture
def model(photographs: Path) -> Entry:
    file = Path("runs/one/model.safetensors").absolute()
    files.write(file, b"model")
    entry = Entry(
        name="one",
        method="dt-gan",
        categories=("blowhole", "crack"),
        products=("tiles",),
        image_size=64,
        channels=1,
        file=file,
        sha256=files.sha256(file),
        created=datetime(2026, 11, 20, tzinfo=timezone.utc),
        trained_on={"tiles": photographs / "good"},
    )
    registry.add(entry, Path("weights.toml"))
    return entry
