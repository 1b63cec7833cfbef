"""Models: build them with initial weights, save them, and load them for generating."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from defectgen.device import resolve
from defectgen.errors import UsageError, WeightsError
from defectgen.methods import MethodInfo, info
from defectgen.methods.base import Method, MethodConfig, Task
from defectgen.methods.networks import Average, unflatten
from defectgen.models import checkpoint, registry
from defectgen.version import __version__


@dataclass(frozen=True)
class Model:
    """A trained method, ready to generate, and the metadata of its file."""

    file: Path
    info: MethodInfo
    method: Method
    steps: int
    trained_on: tuple[str, ...]
    """The SHA-256 of each image that it was trained on; empty if the file does not list them."""
    criteria: "SavedCriteria | None" = None
    """How `inspect` judges with it; None if it is not calibrated."""

    @property
    def threshold(self) -> float | None:
        """The score above which an image is defective; None if it is not calibrated."""
        return None if self.criteria is None else self.criteria.threshold

    @property
    def task(self) -> Task:
        return self.method.task


class SavedCriteria(BaseModel):
    """How `inspect` judges with a model (`inspection.inspector.Criteria`), in the metadata of its file."""

    model_config = ConfigDict(frozen=True)

    threshold: float = Field(ge=0, le=2)
    border: int = Field(default=0, ge=0)
    scorer: str = "ssim"
    floor: float = Field(default=0, ge=0, le=2)


class _Saved(BaseModel):
    """The metadata of a model's file."""

    method: str
    config: dict[str, Any]
    task: dict[str, Any]
    steps: int = 0
    trained_on: tuple[str, ...] = ()


def build(name: str, config: MethodConfig, task: Task, device: torch.device, seed: int) -> Method:
    """Build a method with initial weights, which depend only on the seed.

    Raises:
        UsageError: unknown method.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return info(name).load()(config, task, device)


def save(path: Path, average: Average, identity: dict[str, Any], steps: int) -> None:
    """Write the averaged networks and their metadata to `path`.

    Raises:
        DiskFullError: the disk is full. An earlier file at `path` is unchanged.
    """
    checkpoint.save(path, average.state(), {**identity, "steps": steps})


def load(path: Path, device: torch.device) -> Model:
    """Load the model from a `model.safetensors`.

    Raises:
        WeightsError: the file is missing, damaged, or not a model, or its method is not installed.
    """
    tensors, record = checkpoint.load(path, "method", "config", "task")
    if record["method"] == registry.MEMORY_BANK:
        raise WeightsError(f"{path}: a memory bank, which only inspect uses; choose a model that generates")
    try:
        saved, criteria = _Saved.model_validate(record), criteria_of(record)
        row = info(saved.method)
        cls = row.load()
        method = cls(cls.Config.model_validate(saved.config), Task.model_validate(saved.task), device)
        for name, network in method.networks.averaged.items():
            network.load_state_dict(unflatten(name, tensors))
            network.eval().requires_grad_(False)
    except UsageError as error:
        raise WeightsError(f"{path}: {str(error).removeprefix('--method ')}") from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a model of this version of defectgen ({__version__}), train it again: {error}"
        ) from error
    return Model(path, row, method, saved.steps, saved.trained_on, criteria)


def save_half(model: Path, path: Path) -> None:
    """Write the model in the file `model` to `path` with its weights in float16, for shipping.

    The file has about half the size. Loading it turns the weights into float32 again; they differ by rounding, by a
    part of 2000 at most.

    Raises:
        WeightsError: the model is missing or damaged, or has weights beyond the range of float16.
        DiskFullError: as `save`.
    """
    tensors, record = checkpoint.load(model, "method", "config", "task")
    half = {name: each.half() if each.dtype == torch.float32 else each for name, each in tensors.items()}
    for name, each in half.items():
        if each.is_floating_point() and not each.isfinite().all():
            raise WeightsError(f"{model}: {name} has values beyond the range of float16; ship the file as it is")
    checkpoint.save(path, half, record)


def load_model(name: str | Path, *, weights: Path | None = None, device: str = "auto") -> Model:
    """Load a trained model by its name in `weights.toml`, or by the path of its `model.safetensors`.

    `model.method.generate` makes windows, [B, C, S, S] in [-1, 1]; `defectgen.synthesize` pastes them onto images.

    >>> import defectgen
    >>> model = defectgen.load_model("dt-gan-samples", device="cpu")
    >>> model.info.name, model.task.domains
    ('dt-gan', ('normal', 'crack', 'scratch', 'spot'))

    Args:
        weights: the list of models; None searches the nearest `weights.toml`, then that of the package.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        WeightsError: the model is not listed, or its file is missing, altered or damaged.
        NoDeviceError: the device is not available.
    """
    path = Path(name)
    if not (isinstance(name, Path) or path.is_file()):
        entry = registry.find(name=str(name), files=registry.find_registry(weights))
        registry.verify(entry)
        path = entry.file
    return load(path, resolve(device))


def criteria_of(record: Mapping[str, Any]) -> SavedCriteria | None:
    """The criteria in the metadata of a model's file; None if it is not calibrated. Raises ValueError if damaged."""
    return None if record.get("threshold") is None else SavedCriteria.model_validate(record)


def keep_criteria(path: Path, criteria: SavedCriteria) -> None:
    """Store how to inspect with a model in its file. This changes its SHA-256."""
    tensors, saved = checkpoint.load(path)
    checkpoint.save(path, tensors, {**saved, **criteria.model_dump()})
