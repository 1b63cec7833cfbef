"""The folder of a training run: its files, and how a run is resumed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen import files
from defectgen.device import torch_rng
from defectgen.errors import UsageError, WeightsError
from defectgen.folders import Catalog, ProductFolders
from defectgen.imaging.images import encode_jpeg
from defectgen.methods.base import Batch, GenerateBatch, Interpolating, Method, MethodConfig, Staged, Task
from defectgen.methods.networks import Average, unflatten
from defectgen.models import checkpoint, model
from defectgen.version import __version__

BACKBONE = "backbone.safetensors"
_FEWEST = 2  # domains: the normals and one category, between which and itself there is nothing to show
_STEPS = 11  # from one category to the next


@dataclass(frozen=True)
class TrainSpec:
    """Everything that a training run depends on. It ends after `config.steps` or `seconds`, whichever comes first.

    Both count from the start of the run, also when it is resumed.
    """

    method: str
    name: str
    run: Path
    catalog: Catalog
    sources: tuple[ProductFolders, ...]
    config: MethodConfig
    seconds: float | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    resume: bool = False
    overwrite: bool = False
    backbone: Path | None = None
    """A `backbone.safetensors` of an earlier run, which replaces the first stage."""


class Run:
    """Writes the files of a run folder, and restores a run from them."""

    def __init__(self, folder: Path, method: Method, average: Average, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._method = method
        self._average = average
        self._identity = identity
        self._checkpoint = folder / "checkpoint.safetensors"
        self._metrics = folder / "metrics.jsonl"

    def begin(self, *, overwrite: bool) -> tuple[int, float]:
        """Start an empty run folder: the first step, and 0 seconds."""
        if self._checkpoint.exists() and not overwrite:
            raise UsageError(
                f"{self.folder}: a run exists; use --resume to continue, --overwrite to replace it, or another --name"
            )
        for stale in (self._checkpoint, self._metrics, *(self.folder / "previews").glob("*.jpg")):
            stale.unlink(missing_ok=True)
        files.write(self.folder / "config.json", json.dumps(self._identity, indent=2, ensure_ascii=False) + "\n")
        return 0, 0.0

    def resume(self) -> tuple[int, float]:
        """Load the checkpoint: the next step, and the seconds that were trained."""
        if not self._checkpoint.exists():
            raise WeightsError(f"{self._checkpoint}: no checkpoint to resume; run without --resume")
        tensors, saved = checkpoint.load(self._checkpoint)
        for key in ("method", "task", "config", "seed"):
            before, now = saved["identity"][key], self._identity[key]
            if key == "config":  # the number of steps may change, nothing else
                before, now = {**before, "steps": 0}, {**now, "steps": 0}
            if before != now:
                raise UsageError(
                    f"{self.folder}: cannot resume, {_difference(key, before, now)}; restart with --overwrite"
                )
        self._method.networks.load_state(unflatten("training", tensors))
        self._average.load_state(unflatten("average", tensors))
        self._drop_metrics_after(saved["step"])
        return int(saved["step"]), float(saved.get("seconds", 0.0))

    def _drop_metrics_after(self, step: int) -> None:
        """Drop the metrics of steps after the checkpoint. These steps will be repeated."""
        if not self._metrics.exists():
            return
        lines = self._metrics.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        files.write(self._metrics, "".join(kept))

    def log(self, row: Mapping[str, float]) -> None:
        with files.disk_errors(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def checkpoint(self, step: int, seconds: float) -> None:
        tensors = {f"training.{name}": value for name, value in self._method.networks.state().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state().items()}
        checkpoint.save(self._checkpoint, tensors, {"step": step, "seconds": seconds, "identity": self._identity})

    def preview(self, batch: Batch, step: int, seed: int) -> None:
        """Write a sheet with a row for each example: a normal, three defects on it, and a real defect of that category.

        For methods that make whole images: the image without the defect, its mask, the image with it, a real defect.
        """
        columns = [batch.x]
        with self._average.in_place():
            for i in range(3):
                rngs = [torch_rng(seed, i, row) for row in range(len(batch.x))]
                made = self._method.generate(GenerateBatch(batch.x, batch.y_ref, rngs, a=batch.a))
                if made.normal is not None and made.mask is not None:
                    columns = [made.normal, made.mask.expand_as(made.x) * 2 - 1, made.x]
                    break
                columns.append(made.x)
        columns.append(batch.x_ref)
        columns = [column[:, : self._method.task.channels] for column in columns]  # without a channel for masks
        image = _sheet(torch.stack(columns, dim=1))
        files.write(self.folder / "previews" / f"{step:07d}.jpg", encode_jpeg(image))
        if isinstance(self._method, Interpolating) and len(self._method.task.domains) > _FEWEST:
            self._preview_classes(step, seed)

    def _preview_classes(self, step: int, seed: int) -> None:
        """Write a sheet with a row for each category: from it to the next one under one code."""
        method = self._method
        assert isinstance(method, Interpolating)
        last = len(method.task.domains) - 1
        with self._average.in_place():
            rows = [method.interpolated(y, y % last + 1, _STEPS, torch_rng(seed, y)).x for y in range(1, last + 1)]
        files.write(self.folder / "previews" / f"{step:07d}-classes.jpg", encode_jpeg(_sheet(torch.stack(rows))))

    def finish_backbone(self) -> None:
        """End the first stage: copy the averaged weights into the networks, and save the backbone."""
        assert isinstance(self._method, Staged)
        self._average.give()
        checkpoint.save(self.folder / BACKBONE, self._method.backbone(), self._identity)

    def take_backbone(self, tensors: Mapping[str, Tensor]) -> int:
        """Start from another run's backbone, and return the first step of the second stage."""
        assert isinstance(self._method, Staged)
        self._method.take_backbone(tensors)
        self._average.take()
        self.finish_backbone()
        return self._method.backbone_steps

    def save_model(self, step: int) -> Path:
        path = self.folder / "model.safetensors"
        model.save(path, self._average, self._identity, step)
        return path


def _sheet(x: Tensor) -> NDArray[np.uint8]:
    """Rows of images, [rows, columns, C, H, W] in [-1, 1], as one image, uint8 [H, W] or [H, W, 3]."""
    joined = x.float().permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    pixels = ((joined.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def identity(request: TrainSpec, task: Task, before: Sequence[str]) -> dict[str, Any]:
    """The metadata of a model. A resumed run must match it in method, task, seed, and configuration except `steps`.

    `trained_on` holds the SHA-256 of all training images, including those of the backbone, `before`. From these, an
    evaluation detects test images that were used for training.
    """
    return {
        "defectgen": __version__,
        "method": request.method,
        "config": request.config.model_dump(mode="json"),
        "task": task.model_dump(mode="json"),
        "seed": request.seed,
        "trained_on": sorted({*before, *(files.sha256(image.path) for image in request.catalog.images)}),
    }


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                return f"{name} was {before.get(name)} and is {now.get(name)}"
    return f"{key} was {before} and is {now}"
