"""Defects onto normal photographs: a request in, samples out, one at a time.

Sample k is decided by (seed, k) alone: its category, photograph, window, latent code. So it is the same picture
whatever the number of samples, workers or interruptions; on the CPU also for any batch size.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from defectgen import files, masks
from defectgen.dataset import Synthesized
from defectgen.device import numpy_rng, resolve, torch_rng
from defectgen.errors import OutOfMemoryError, UsageError
from defectgen.folders import Catalog, Sample
from defectgen.images import Photograph, Pixels
from defectgen.methods.base import GenerateBatch
from defectgen.registry import Entry
from defectgen.trainer import load_method
from defectgen.windows import FloatArray, Photographs, Window, cut, in_photograph, place, put_back, scale_of, tone

_ATTEMPTS = 6
_FEATHER = 4.0  # native pixels over which a change fades out, at scale 1
_RIM = 8  # pixels of the network's window
_BATCH_SIZE = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class SynthesisRequest:
    """What to make: samples 0 to num - 1, their categories in turn, without those in `skip`."""

    entry: Entry
    categories: tuple[str, ...]
    num: int
    normals: Catalog
    seed: int = 0
    device: str = "auto"
    batch_size: int | None = None
    workers: int = 2
    skip: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Draw:
    """All that was drawn for one attempt at a sample, and the window cut accordingly."""

    index: int
    attempt: int
    category: str
    sample: Sample
    photograph: Photograph
    window: Window
    x: FloatArray


class Synthesis:
    """An iterable of samples in the order of their indices; its counters are right when it has been read."""

    def __init__(self, request: SynthesisRequest) -> None:
        self._request = request
        self._device = resolve(request.device)
        self._method, _ = load_method(request.entry.file, self._device)
        self._task = self._method.task
        unknown = set(request.categories) - set(self._task.domains)
        if unknown:
            raise UsageError(
                f"--category {sorted(unknown)[0]}: {request.entry.name} knows {', '.join(self._task.domains[1:])}"
            )
        self._batch_size = request.batch_size or _BATCH_SIZE[self._device.type]
        self._photographs = Photographs()
        self._sha256 = cache(files.sha256)
        self.redrawn = 0
        self.failed: list[int] = []

    def __len__(self) -> int:
        return self._request.num - sum(index < self._request.num for index in self._request.skip)

    def __iter__(self) -> Iterator[Synthesized]:
        request = self._request
        coming = (index for index in range(request.num) if index not in request.skip)
        again: deque[tuple[int, int]] = deque()
        order: deque[int] = deque()
        finished: dict[int, Synthesized | None] = {}
        with ThreadPoolExecutor(max(1, request.workers), thread_name_prefix="samples") as pool:

            def take() -> list[Future[_Draw]]:
                retries = [again.popleft() for _ in range(min(len(again), self._batch_size))]
                fresh = list(islice(coming, self._batch_size - len(retries)))
                order.extend(fresh)
                return [pool.submit(self._draw, *key) for key in [*retries, *((index, 0) for index in fresh)]]

            upcoming = take()
            while upcoming:
                draws = [future.result() for future in upcoming]
                upcoming = take()  # drawn while the network works on these
                results = list(pool.map(self._finish, draws, self._generate(draws)))
                for draw, result in zip(draws, results, strict=True):
                    if result is None and draw.attempt + 1 < _ATTEMPTS:
                        self.redrawn += 1
                        again.append((draw.index, draw.attempt + 1))
                    else:
                        finished[draw.index] = result
                while order and order[0] in finished:
                    index = order.popleft()
                    result = finished.pop(index)
                    if result is None:
                        self.failed.append(index)
                    else:
                        yield result
                upcoming = upcoming or take()

    def normals(self, count: int = 50) -> Iterator[tuple[str, Pixels]]:
        """The first normals, with their products: what a detector is trained on beside the samples."""
        for sample in self._request.normals.samples[:count]:
            yield sample.product, self._photographs.read(sample.path).pixels

    def _draw(self, index: int, attempt: int) -> _Draw:
        rng = numpy_rng(self._request.seed, index, attempt)
        category = self._request.categories[index % len(self._request.categories)]
        samples = self._request.normals.samples
        sample = samples[int(rng.integers(len(samples)))]
        photograph = self._photographs.read(sample.path)
        image_size = self._method.config.image_size
        side = round(image_size / scale_of(self._task.scales, sample.product, category))
        window = place(rng, photograph.height, photograph.width, side)
        x = cut(photograph, window, image_size, self._task.channels)
        return _Draw(index, attempt, category, sample, photograph, window, x)

    def _generate(self, draws: list[_Draw]) -> list[FloatArray]:
        # On the CPU one at a time: it is as fast, and a sample's last bits, on which the outline of its mask may
        # hang, do not depend on how many are computed beside it.
        size = len(draws) if self._device.type == "cuda" else 1
        try:
            return [x for start in range(0, len(draws), size) for x in self._forward(draws[start : start + size])]
        except torch.OutOfMemoryError as error:
            smaller = max(1, self._batch_size // 2)
            raise OutOfMemoryError(
                f"{self._device} ran out of memory with --batch-size {self._batch_size}; try --batch-size {smaller}"
            ) from error

    def _forward(self, draws: list[_Draw]) -> FloatArray:
        x = torch.from_numpy(np.stack([draw.x for draw in draws])).to(self._device, memory_format=torch.channels_last)
        y = torch.tensor([self._task.domains.index(draw.category) for draw in draws], device=self._device)
        rngs = [torch_rng(self._request.seed, draw.index, draw.attempt) for draw in draws]
        return self._method.generate(GenerateBatch(x, y, rngs)).x.float().cpu().numpy()

    def _finish(self, draw: _Draw, after: FloatArray) -> Synthesized | None:
        """The sample on its photograph, or None if nothing of it can be seen there."""
        photograph, window = draw.photograph, draw.window
        after = draw.x + (after - draw.x) * _interior(after.shape[1])
        mask = native_mask(masks.changed(draw.x, after), window.side)
        alpha = masks.feather(mask, _FEATHER * window.side / len(draw.x[0]))
        image = put_back(photograph, window, draw.x, after, alpha)
        mask = in_photograph(mask, window, photograph.height, photograph.width)
        if not _visible(photograph, image, mask):
            return None
        record = {
            "source": str(draw.sample.path),
            "source_sha256": self._sha256(draw.sample.path),
            "window": {"x": window.x, "y": window.y, "side": window.side},
            "model": self._request.entry.name,
            "model_sha256": self._request.entry.sha256,
            "method": self._request.entry.method,
            "seed": self._request.seed,
            "parameters": {"index": draw.index, "attempt": draw.attempt},
        }
        return Synthesized(draw.index, draw.category, draw.sample.product, image, mask, record)


def synthesize(request: SynthesisRequest) -> Synthesis:
    """Defects from latent codes onto windows of normals.

    Raises:
        UsageError: a category that the model does not know. WeightsError: a model that cannot be read.
        OutOfMemoryError: while iterating, naming the batch size to try next.
    """
    return Synthesis(request)


def native_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """A window's mask at native resolution, [side, side], with a smooth outline."""
    if len(mask) == side:
        return mask
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.5


def _interior(size: int) -> FloatArray:
    """0 over a window's rim, where networks paint frames, then rising to 1 over four pixels. [size, size]."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    ramp: FloatArray = np.clip((distance - _RIM) / 4, 0, 1).astype(np.float32)
    return np.outer(ramp, ramp)


def _visible(photograph: Photograph, after: Pixels, mask: NDArray[np.bool_]) -> bool:
    """Whether a defect can be seen: more than a speck, and half of it changed by some ten gray levels of 255."""
    if mask.sum() < masks.SMALLEST:
        return False
    change = np.abs(after[mask].astype(np.float32) - photograph.pixels[mask])
    strongest = change.max(axis=1) if change.ndim == 2 else change
    low, high = tone(photograph)
    return bool(np.median(strongest) > 0.04 * (high - low))
