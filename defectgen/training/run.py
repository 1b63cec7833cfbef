"""The folder of a training run: its files, and how a run is resumed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen import files, ranks
from defectgen.device import torch_rng
from defectgen.errors import BadInputError, UsageError, WeightsError
from defectgen.folders import Catalog, ProductFolders, SourceImage
from defectgen.imaging.images import encode_jpeg
from defectgen.imaging.mask_files import digests
from defectgen.methods.base import Batch, GenerateBatch, Interpolating, Method, MethodConfig, Staged, Task
from defectgen.methods.networks import Average, unflatten
from defectgen.models import checkpoint, model, registry
from defectgen.text import recorded
from defectgen.training.view import PREVIEWS, Sheet, View
from defectgen.version import __version__

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
_PREVIEW = re.compile(r"\d{7}(-classes)?\.jpg|twins\.jpg")
_FEWEST = 2  # domains: the normals and one category, between which and itself there is nothing to show
_STEPS = 11  # from one category to the next


@dataclass(frozen=True)
class Initial:
    """A trained model to start from: its name in the request, and its file."""

    name: str
    file: Path


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
    init: Initial | None = None
    """A model of the same method, whose weights are the initial ones."""


class Run:
    """Writes the files of a run folder, and restores a run from them. On other ranks than 0 it writes nothing."""

    def __init__(
        self, folder: Path, method: Method, average: Average, identity: dict[str, Any], inputs: list[list[str]]
    ) -> None:
        self.folder = folder
        self._method = method
        self._average = average
        self._identity = identity
        self._inputs = inputs
        self._checkpoint = folder / CHECKPOINT
        self._model = folder / registry.MODEL
        self._config = folder / CONFIG
        self._metrics = folder / "metrics.jsonl"
        self._previews = folder / PREVIEWS

    def begin(self, *, overwrite: bool) -> tuple[int, float]:
        """Start in an empty folder, or replace a run: the first step, and 0 seconds.

        Raises:
            UsageError: the folder holds a run that is not to be replaced, or something else.
            BadInputError: a part of the folder is a link.
        """
        if (self._checkpoint.exists() or self._model.exists()) and not overwrite:
            raise UsageError(
                f"{self.folder}: a run exists; use --resume to continue, --overwrite to replace it, or another --name"
            )
        if not self._is_ours():
            raise UsageError(f"{self.folder}: not empty, and not a run of defectgen; choose another --name or --out")
        self._tidy()
        previews = (path for path in self._previews.glob("*.jpg") if _PREVIEW.fullmatch(path.name))
        # The backbone first: a run without a checkpoint would take it for its own. The model stays till replaced.
        for stale in (self.folder / registry.BACKBONE, self._checkpoint, self._metrics, *previews):
            stale.unlink(missing_ok=True)
        self._write_config()
        return 0, 0.0

    def can_resume(self) -> bool:
        """Whether there is a checkpoint. A run that ended before its first one starts again.

        Raises:
            WeightsError: there is only a model, which would be lost.
        """
        if not self._checkpoint.exists() and self._model.exists():
            raise WeightsError(f"{self._checkpoint}: no checkpoint to resume; start again with --overwrite")
        return self._checkpoint.exists()

    def resume(self) -> tuple[int, float, int]:
        """Load the checkpoint: the next step, the seconds that were trained, and the ranks that trained.

        Raises:
            UsageError: the run has another configuration, or other images.
            WeightsError: the checkpoint is damaged.
            BadInputError: the metrics are damaged, or a part of the folder is a link.
        """
        tensors, saved = checkpoint.load(self._checkpoint)
        try:
            self._check_same(saved)
            self._method.networks.load_state(unflatten("training", tensors))
            self._average.load_state(unflatten("average", tensors))
            step, seconds, count = int(saved["step"]), float(saved.get("seconds", 0.0)), int(saved.get("ranks", 1))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{self._checkpoint}: not a checkpoint of this version of defectgen ({__version__}): {error}; start "
                "again with --overwrite"
            ) from error
        self._tidy()
        self._drop_metrics_after(step)
        self._write_config()
        return step, seconds, count

    def _is_ours(self) -> bool:
        """Whether the folder is a run, or holds nothing."""
        if self._checkpoint.exists() or files.vacant(self.folder):
            return True
        try:
            return "defectgen" in dict(json.loads(self._config.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            return False

    def _tidy(self) -> None:
        """Delete what a killed process left, after a check that no other folder is written to through a link."""
        for path in (self._metrics, self._previews):
            files.inside(self.folder, path.name)
        files.sweep(self.folder)

    def _write_config(self) -> None:
        files.write(self._config, self._config_text())

    def _config_text(self) -> str:
        return json.dumps(self._identity, indent=2, ensure_ascii=False) + "\n"

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        """Check that a checkpoint is of this configuration and these images."""
        for key in ("method", "task", "config", "seed", "init"):
            before, now = ({"init": None, **each}[key] for each in (saved["identity"], self._identity))
            if key == "config":  # the number of steps may change, nothing else
                before, now = {**before, "steps": 0}, {**now, "steps": 0}
            if before != now:
                raise UsageError(
                    f"{self.folder}: cannot resume, {_difference(key, before, now)}; restart with --overwrite"
                )
        if "inputs" in saved:
            change = _changed_input(saved["inputs"], self._inputs)
        else:  # of an older version
            same = saved["identity"].get("trained_on") == self._identity["trained_on"]
            change = None if same else "an image has changed, is missing, or is new"
        if change is not None:
            raise UsageError(
                f"{self.folder}: cannot resume, {change} since the training began; restore it, train under another "
                "--name, or restart with --overwrite"
            )

    def _drop_metrics_after(self, step: int) -> None:
        """Drop the metrics of steps after the checkpoint. These steps will be repeated."""
        if not self._metrics.exists():
            return
        kept = []
        for number, line in enumerate(self._metrics.read_bytes().splitlines(keepends=True), start=1):
            if line.endswith(b"\n"):  # the last one may be incomplete
                try:
                    before = float(json.loads(line)["step"]) <= step
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise BadInputError(
                        f"{self._metrics}: line {number} cannot be read; delete this line, or the file"
                    ) from error
                kept += [line] if before else []
        files.write(self._metrics, b"".join(kept))

    def log(self, row: Mapping[str, float]) -> None:
        if not ranks.is_main():
            return
        path = self._metrics
        with files.writable(path), path.open("a", encoding="utf-8") as file:
            file.write(line(row))

    def checkpoint(self, step: int, seconds: float) -> None:
        if ranks.is_main():
            checkpoint.save(self._checkpoint, *self._state(step, seconds))

    def _state(self, step: int, seconds: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"training.{name}": value for name, value in self._method.networks.state().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state().items()}
        state = {
            "step": step, "seconds": seconds, "ranks": ranks.count(), "identity": self._identity,
            "inputs": self._inputs,
        }  # fmt: skip
        return tensors, state

    def sizes(self, step: int) -> tuple[int, int]:
        """The bytes of the checkpoint, and of the other files of weights and settings that a run ends with.

        Packs each of them as for writing, which takes as much memory.
        """
        others = len(checkpoint.pack(self._average.state(), {**self._identity, "steps": step}))
        if isinstance(self._method, Staged):
            others += len(checkpoint.pack(self._method.backbone(), self._identity))
        return len(checkpoint.pack(*self._state(step, 0.0))), others + len(self._config_text().encode())

    def has_preview(self, step: int) -> bool:
        return (self._previews / f"{step:07d}.jpg").is_file()

    def view(self, name: str, step: int, steps: int) -> View:
        """The page of the run, after `step` steps of `steps`, with what an earlier part of it logged."""
        return View(self.folder, name, self._metrics, step, steps)

    def preview(self, batch: Batch, step: int, seed: int) -> list[Sheet]:
        """Write a sheet with a row for each example: a normal, three defects on it, and a real defect of that category.

        For methods that make whole images: the image without the defect, its mask, the image with it, a real defect.
        """
        if not ranks.is_main():
            return []
        columns, names = [batch.x], ["normal", "made 1", "made 2", "made 3", "real"]
        # A method with a backbone shows what this makes: without windows, it makes whole images.
        x = torch.empty(len(batch.x), 0) if isinstance(self._method, Staged) else batch.x
        with self._average.in_place():
            for i in range(3):
                rngs = [torch_rng(seed, i, row) for row in range(len(batch.x))]
                made = self._method.generate(GenerateBatch(x, batch.y_ref, rngs, a=batch.a, tones=batch.tones))
                if made.normal is not None and made.mask is not None:
                    columns = [made.normal, made.mask.expand_as(made.x) * 2 - 1, made.x]
                    names = ["made normal", "its mask", "its defect", "real"]
                    break
                columns.append(made.x)
        columns.append(batch.x_ref)
        columns = [column[:, : self._method.task.channels] for column in columns]  # without a channel for masks
        sheet = Sheet(f"{step:07d}.jpg", names, [self._method.task.domains[y] for y in batch.y_ref.tolist()])
        files.write(self._previews / sheet.name, encode_jpeg(_sheet(torch.stack(columns, dim=1))))
        if isinstance(self._method, Interpolating) and len(self._method.task.domains) > _FEWEST:
            return [sheet, self._preview_classes(step, seed)]
        return [sheet]

    def _preview_classes(self, step: int, seed: int) -> Sheet:
        """Write a sheet with a row for each category: from it to the next one under one code."""
        method = self._method
        assert isinstance(method, Interpolating)
        last = len(method.task.domains) - 1
        with self._average.in_place():
            rows = [method.interpolated(y, y % last + 1, _STEPS, torch_rng(seed, y)).x for y in range(1, last + 1)]
        names = method.task.domains[1:]
        sheet = Sheet(
            f"{step:07d}-classes.jpg",
            [f"{100 * part // (_STEPS - 1)}%" for part in range(_STEPS)],
            [f"{name} to {names[(y + 1) % last]}" for y, name in enumerate(names)],
        )
        files.write(self._previews / sheet.name, encode_jpeg(_sheet(torch.stack(rows))))
        return sheet

    def finish_backbone(self) -> None:
        """End the first stage: copy the averaged weights into the networks, and save the backbone."""
        assert isinstance(self._method, Staged)
        self._average.give()
        if ranks.is_main():
            checkpoint.save(self.folder / registry.BACKBONE, self._method.backbone(), self._identity)

    def take_backbone(self, tensors: Mapping[str, Tensor]) -> int:
        """Start from another run's backbone, and return the first step of the second stage."""
        assert isinstance(self._method, Staged)
        self._method.take_backbone(tensors)
        self._average.take()
        self.finish_backbone()
        return self._method.backbone_steps

    def save_model(self, step: int) -> Path:
        if ranks.is_main():
            model.save(self._model, self._average, self._identity, step)
        return self._model


def _sheet(x: Tensor) -> NDArray[np.uint8]:
    """Rows of images, [rows, columns, C, H, W] in [-1, 1], as one image, uint8 [H, W] or [H, W, 3]."""
    joined = x.float().permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    pixels = ((joined.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def line(row: Mapping[str, float]) -> str:
    """A line of `metrics.jsonl`."""
    return json.dumps(row) + "\n"


def inputs(catalog: Catalog) -> list[list[str]]:
    """For each image to train on: its path, product and category, and the SHA-256 of its file and of its masks."""
    sha256, of_mask = cache(files.sha256), cache(digests)

    def read_from(image: SourceImage) -> list[str]:
        masks = (mask for mask in (image.mask, *(mask for _, mask in image.also)) if mask is not None)
        return [sha256(image.path), *(each for mask in masks for each in of_mask(mask))]

    return [[recorded(str(image.path)), image.product, image.category, *read_from(image)] for image in catalog.images]


def identity(
    request: TrainSpec,
    task: Task,
    before: Sequence[str],
    trained_on: Sequence[Sequence[str]],
    init: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of a model. A resumed run must match it in method, task, seed, and configuration except `steps`.

    `trained_on` holds the SHA-256 of all training images, including those of the backbone and of the model that
    the run started from, `before`. From these, an evaluation detects test images that were used for training.

    Args:
        trained_on: as `inputs` returns them.
        init: the record of the model that the run started from.
    """
    return {
        "defectgen": __version__,
        "method": request.method,
        "config": request.config.model_dump(mode="json"),
        "task": task.model_dump(mode="json"),
        "seed": request.seed,
        "trained_on": sorted({*before, *(sha256 for _, _, _, sha256, *_ in trained_on)}),
        **({} if init is None else {"init": init}),
    }


def _changed_input(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> str | None:
    """The first difference between two results of `inputs`, for a message. Files that have only moved are the same."""
    if [each[1:] for each in before] == [each[1:] for each in now]:
        return None
    old, new = ({tuple(each[:3]): each[3:] for each in of} for of in (before, now))
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            how = "is new" if key not in old else "is missing" if key not in new else "or its mask has changed"
            return f"{key[0]} {how}"
    return "the order of the images has changed"


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return f"{name} was {before.get(name)} and is {now.get(name)}"
    return f"{key} was {before} and is {now}"
