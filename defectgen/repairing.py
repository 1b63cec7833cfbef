"""Photographs of any size repaired by a network that knows windows alone, tile by tile, without seams."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen import checkpoint
from defectgen.device import resolve
from defectgen.errors import WeightsError
from defectgen.folders import NORMAL, Catalog
from defectgen.images import Photograph, Pixels
from defectgen.trainer import load_method
from defectgen.windows import FloatArray, tone

_OVERLAP = 4  # a tile shares a quarter of its side with the next one
_BATCH = {"cpu": 4, "cuda": 64}


@runtime_checkable
class Repairer(Protocol):
    """A method that can take the defects out of windows, [B, C, S, S] in [-1, 1]."""

    def repair(self, x: Tensor) -> Tensor: ...


class NetworkRepair:
    """A trained model as an `inspector.Repair`. What it changes is added to the photograph, at its own resolution.

    Raises:
        WeightsError: a file that is no model, or one of a method that cannot repair.
    """

    def __init__(self, model: Path, device: str = "auto") -> None:
        self._device = resolve(device)
        method, saved = load_method(model, self._device)
        if not isinstance(method, Repairer):
            raise WeightsError(f"{model}: a model of {method.name} cannot repair images; take one of isu-gan")
        self._method = method
        self._scale = min(scale for of_product in method.task.scales.values() for scale in of_product.values())
        self._channels, self._size = method.task.channels, method.config.image_size
        self.threshold: float | None = saved.get("threshold")

    def __call__(self, _path: Path, photograph: Photograph) -> Pixels:
        """The photograph without its defects: its own size, colours and depth; alpha as it was."""
        low, high = tone(photograph)
        colours: NDArray[Any] = np.atleast_3d(photograph.pixels)[..., : photograph.channels]
        x = _seen(colours, self._scale, (low, high), self._channels)
        change: NDArray[Any] = self._change(x).transpose(1, 2, 0)
        shape = photograph.width, photograph.height
        if change.shape[:2] != shape[::-1]:
            change = np.asarray(cv2.resize(change, shape, interpolation=cv2.INTER_CUBIC)).reshape(*shape[::-1], -1)
        if change.shape[2] != photograph.channels:
            change = change.mean(axis=2, keepdims=True)
        repaired = photograph.pixels.copy()
        target = repaired[..., None] if repaired.ndim == 2 else repaired[..., : photograph.channels]
        limit = np.iinfo(repaired.dtype).max
        target[...] = np.clip(np.rint(colours + change * ((high - low) / 2)), 0, limit).astype(repaired.dtype)
        return repaired

    def _change(self, x: FloatArray) -> FloatArray:
        """What the network changes of an image [C, H, W]: overlapping tiles that fade into each other."""
        size, (height, width) = self._size, x.shape[1:]
        tops, lefts = (_starts(length, size) for length in (height, width))
        beyond = max(tops[-1] + size - height, 0), max(lefts[-1] + size - width, 0)
        padded = np.pad(x, ((0, 0), (0, beyond[0]), (0, beyond[1])), mode="symmetric")
        fade = _fade(size)
        total, weight = np.zeros_like(padded), np.zeros(padded.shape[1:], np.float32)
        places = [(top, left) for top in tops for left in lefts]
        count = _BATCH[self._device.type]
        for start in range(0, len(places), count):
            batch = places[start : start + count]
            tiles = np.stack([padded[:, top : top + size, left : left + size] for top, left in batch])
            given = torch.from_numpy(tiles).to(self._device, memory_format=torch.channels_last)
            made = self._method.repair(given).float().cpu().numpy() - tiles
            for (top, left), change in zip(batch, made, strict=True):
                total[:, top : top + size, left : left + size] += change * fade
                weight[top : top + size, left : left + size] += fade
        return (total / weight)[:, :height, :width]


def hold_out(catalog: Catalog) -> tuple[Catalog, list[Path]]:
    """A catalog without every tenth normal of each product, and these: to calibrate on what was never trained on."""
    held: list[Path] = []
    for product in catalog.products:
        normals = [s.path for s in catalog.samples if s.product == product and s.category == NORMAL]
        held += normals[4::10]
    samples = tuple(sample for sample in catalog.samples if sample.path not in held)
    return catalog.model_copy(update={"samples": samples}), held


def keep_threshold(model: Path, threshold: float) -> None:
    """Write a calibrated threshold into a model's file, whose sha256 changes."""
    tensors, saved = checkpoint.load(model)
    checkpoint.save(model, tensors, {**saved, "threshold": threshold})


def _seen(colours: NDArray[Any], scale: float, tones: tuple[float, float], channels: int) -> FloatArray:
    """A photograph as the network sees it, [channels, H, W] in [-1, 1]."""
    low, high = tones
    height, width = (max(1, round(length * scale)) for length in colours.shape[:2])
    pixels = colours.astype(np.float32)
    if scale != 1:
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.float32)
        pixels = pixels.reshape(height, width, -1)
    pixels = np.clip((pixels - low) * (2 / (high - low)) - 1, -1, 1)
    if channels == 1:
        pixels = pixels.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(pixels, (height, width, channels)).transpose(2, 0, 1))


def _starts(length: int, size: int) -> list[int]:
    """Where tiles begin, so that they overlap and the last one ends with the image, or holds all of it."""
    if length <= size:
        return [0]
    count = 1 + -(-(length - size) // (size - size // _OVERLAP))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def _fade(size: int) -> FloatArray:
    """A tile's weight: 1 inside, falling to nearly 0 over the part that it shares. [size, size]."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    ramp = np.clip(distance / (size / _OVERLAP), 0, 1).astype(np.float32)
    weight: FloatArray = np.outer(ramp, ramp)
    return weight
