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
from defectgen.windows import FloatArray, as_seen, mirrored, tone

_STRIP = 256  # rows
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
        self.border: int = saved.get("border", 0)

    def __call__(self, _path: Path, photograph: Photograph) -> Pixels:
        """The photograph without its defects: its own size, colours and depth; alpha as it was."""
        low, high = tone(photograph)
        colours: NDArray[Any] = np.atleast_3d(photograph.pixels)[..., : photograph.channels]
        height, width, _ = colours.shape
        change = self._change(_scaled(colours, self._scale), low, high)
        if change.shape[2] != photograph.channels:
            change = change.mean(axis=2, keepdims=True)
        if change.shape[:2] != (height, width):
            change = np.asarray(cv2.resize(change, (width, height), interpolation=cv2.INTER_CUBIC))
            change = change.reshape(height, width, -1)
        repaired = photograph.pixels.copy()
        target = repaired.reshape(height, width, -1)[..., : photograph.channels]
        limit = np.iinfo(repaired.dtype).max
        for top in range(0, height, _STRIP):  # a whole image in floating point may be large
            rows = slice(top, top + _STRIP)
            target[rows] = np.clip(np.rint(colours[rows] + change[rows] * ((high - low) / 2)), 0, limit)
        return repaired

    def _change(self, image: NDArray[Any], low: float, high: float) -> FloatArray:
        """What the network changes of an image [H, W, 1 or 3]: [H, W, C], from tiles that fade into each other."""
        size, (height, width, _) = self._size, image.shape
        fades_y, fades_x = _fades(height, size), _fades(width, size)
        places = [(top, left) for top in fades_y for left in fades_x]
        total = np.zeros((height, width, self._channels), np.float32)
        count = _BATCH[self._device.type]
        for start in range(0, len(places), count):
            batch = places[start : start + count]
            tiles = np.stack([_tile(image, at, size, (low, high), self._channels) for at in batch])
            given = torch.from_numpy(tiles).to(self._device, memory_format=torch.channels_last)
            made = self._method.repair(given).float().cpu().numpy() - tiles
            for (top, left), change in zip(batch, made.transpose(0, 2, 3, 1), strict=True):
                rows, columns = slice(max(-top, 0), height - top), slice(max(-left, 0), width - left)
                into = total[max(top, 0) : top + size, max(left, 0) : left + size]
                into += (change * fades_y[top][:, None, None] * fades_x[left][:, None])[rows, columns]
        return total


def hold_out(catalog: Catalog) -> tuple[Catalog, list[Path]]:
    """A catalog without every tenth normal of each product, and these: to calibrate on what was never trained on."""
    held: list[Path] = []
    for product in catalog.products:
        normals = [s.path for s in catalog.samples if s.product == product and s.category == NORMAL]
        held += normals[4::10]
    samples = tuple(sample for sample in catalog.samples if sample.path not in held)
    return catalog.model_copy(update={"samples": samples}), held


def keep_threshold(model: Path, threshold: float, border: int = 0) -> None:
    """Write a threshold, and the border that it was calibrated with, into a model's file, whose sha256 changes."""
    tensors, saved = checkpoint.load(model)
    checkpoint.save(model, tensors, {**saved, "threshold": threshold, "border": border})


def _scaled(colours: NDArray[Any], scale: float) -> NDArray[Any]:
    if scale == 1:
        return colours
    height, width = (max(1, round(length * scale)) for length in colours.shape[:2])
    smaller = cv2.resize(colours.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller).reshape(height, width, -1)


def _tile(image: NDArray[Any], at: tuple[int, int], size: int, tones: tuple[float, float], channels: int) -> FloatArray:
    """A window as the network sees it, [channels, size, size] in [-1, 1]; mirrored outside the image."""
    rows, columns = (mirrored(start, size, length) for start, length in zip(at, image.shape[:2], strict=True))
    return as_seen(image[rows[:, None], columns].astype(np.float32), tones, channels)


def _fades(length: int, size: int) -> dict[int, FloatArray]:
    """Where tiles begin along one side of an image, with the weight of each along it.

    They overlap by a quarter of their side or more, and lie inside: mirrored, an edge is a shape that no image has.
    An image smaller than a tile lies in its middle. The weights of all tiles at a place add to 1.
    """
    whole = max(length, size)
    count = 1 + -(-(whole - size) // (size - size // _OVERLAP))
    starts = [round(i * (whole - size) / max(count - 1, 1)) for i in range(count)]
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    ramp = np.clip(distance / (size / _OVERLAP), 0, 1).astype(np.float32)
    total = np.zeros(whole, np.float32)
    for start in starts:
        total[start : start + size] += ramp
    before = (whole - length) // 2
    return {start - before: ramp / total[start : start + size] for start in starts}
