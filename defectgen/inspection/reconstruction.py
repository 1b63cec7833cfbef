"""Tiled reconstruction: repairs images of any size with a network that takes windows, without seams."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectgen.device import resolve
from defectgen.errors import WeightsError
from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.windows import FloatArray, mirrored, normalize, value_range, widened
from defectgen.methods import which
from defectgen.methods.base import Method, Repairer
from defectgen.models.model import load

_STRIP = 256  # rows
_OVERLAP = 4  # a tile shares a quarter of its side with the next one
_BATCH = {"cpu": 4, "cuda": 64}


class NetworkRepair:
    """A trained model as an `inspector.Repair`.

    Raises:
        WeightsError: the file is not a model, or its method cannot repair images.
    """

    def __init__(self, model: Path, device: str = "auto") -> None:
        loaded = load(model, resolve(device))
        if not isinstance(loaded.method, Repairer):
            can = " or ".join(which(lambda row: row.repairs))
            raise WeightsError(f"{model}: a model of {loaded.info.name} cannot repair images; use one of {can}")
        self._tiled = Tiled(loaded.method.repair, loaded.method, resolve(device))
        self._scale = min(scale for of_product in loaded.task.scales.values() for scale in of_product.values())
        self.criteria = loaded.criteria

    def __call__(self, _path: Path, photograph: DecodedImage) -> Pixels:
        """The image without its defects, with the same size, colors and depth. Alpha is unchanged."""
        return self._tiled(photograph, self._scale)


class Tiled:
    """Applies a function of windows, [B, C, S, S] in [-1, 1], to whole images.

    The function's change is added to the image at native resolution.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], method: Method, device: torch.device) -> None:
        self._function, self._device = function, device
        self._channels, self._size = method.task.channels, method.config.image_size
        self._ranges = tuple(method.task.ranges.values())

    def __call__(self, photograph: DecodedImage, scale: float) -> Pixels:
        """The changed image, with the same size, colors and depth; `scale` is that of the windows."""
        low, high = value_range(photograph)
        if photograph.depth == 16 and self._ranges:
            low, high = widened((low, high), *self._ranges)
        colors: NDArray[Any] = np.atleast_3d(photograph.pixels)[..., : photograph.channels]
        height, width, _ = colors.shape
        change = self._change(_scaled(colors, scale), low, high)
        if change.shape[2] != photograph.channels:
            change = change.mean(axis=2, keepdims=True)
        if change.shape[:2] != (height, width):
            change = np.asarray(cv2.resize(change, (width, height), interpolation=cv2.INTER_CUBIC))
            change = change.reshape(height, width, -1)
        changed = photograph.pixels.copy()
        target = changed.reshape(height, width, -1)[..., : photograph.channels]
        limit = np.iinfo(changed.dtype).max
        for top in range(0, height, _STRIP):  # strips, because a whole image in floating point may be large
            rows = slice(top, top + _STRIP)
            target[rows] = np.clip(np.rint(colors[rows] + change[rows] * ((high - low) / 2)), 0, limit)
        return changed

    def _change(self, image: NDArray[Any], low: float, high: float) -> FloatArray:
        """The network's change of an image [H, W, 1 or 3], in units of [-1, 1]: [H, W, C], from overlapping tiles."""
        size, (height, width, _) = self._size, image.shape
        weights_y, weights_x = _tile_weights(height, size), _tile_weights(width, size)
        places = [(top, left) for top in weights_y for left in weights_x]
        total = np.zeros((height, width, self._channels), np.float32)
        count = _BATCH.get(self._device.type, _BATCH["cpu"])
        for start in range(0, len(places), count):
            batch = places[start : start + count]
            tiles = np.stack([_tile(image, at, size, (low, high), self._channels) for at in batch])
            x = torch.from_numpy(tiles).to(self._device, memory_format=torch.channels_last)
            changes = self._function(x).float().cpu().numpy() - tiles
            for (top, left), change in zip(batch, changes.transpose(0, 2, 3, 1), strict=True):
                rows, columns = slice(max(-top, 0), height - top), slice(max(-left, 0), width - left)
                into = total[max(top, 0) : top + size, max(left, 0) : left + size]
                into += (change * weights_y[top][:, None, None] * weights_x[left][:, None])[rows, columns]
        return total


def _scaled(colors: NDArray[Any], scale: float) -> NDArray[Any]:
    if scale == 1:
        return colors
    height, width = (max(1, round(length * scale)) for length in colors.shape[:2])
    smaller = cv2.resize(colors.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller).reshape(height, width, -1)


def _tile(
    image: NDArray[Any], at: tuple[int, int], size: int, levels: tuple[float, float], channels: int
) -> FloatArray:
    """A tile as the network's input, [channels, size, size] in [-1, 1]; mirrored outside the image."""
    rows, columns = (mirrored(start, size, length) for start, length in zip(at, image.shape[:2], strict=True))
    return normalize(image[rows[:, None], columns].astype(np.float32), levels, channels)


def _tile_weights(length: int, size: int) -> dict[int, FloatArray]:
    """The start of each tile along one side of an image, with its blending weights, [size].

    Tiles overlap by at least a quarter of their side. They lie inside the image, because mirrored edges look like
    defects. An image smaller than a tile is centered in it. At each pixel, the weights of all tiles add up to 1.
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
