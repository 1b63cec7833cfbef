"""Inspection: compare an image with a defect-free version by SSIM, segment by Otsu's method, decide (isu-gan.txt).

The defect-free version is a golden image, or the image repaired by a network. The score map compares the two at the
image's own resolution. Otsu's method splits any image in two, so an image is defective only if its score is also above
a threshold that flawless images stay below.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from defectgen.imaging import masks
from defectgen.imaging.components import Components
from defectgen.imaging.images import OTHER_FORMATS, DecodedImage, ImageError, Pixels, read_image
from defectgen.imaging.ssim import STRIP, histogram, limits_of, otsu
from defectgen.imaging.windows import BoolArray, Box, FloatArray
from defectgen.inspection import thumbnails
from defectgen.inspection.alignment import aligned
from defectgen.inspection.scores import SSIM, Rows, Scorer
from defectgen.inspection.scoring import PixelCounts, count_pixels

T = TypeVar("T")
Repair = Callable[[Path, DecodedImage], Pixels]
"""Returns the defect-free version of an image, as pixels of the same shape; raises ImageError if there is none."""
Truth = Callable[[Path, DecodedImage], BoolArray | None]
"""Returns the true mask of an image, [H, W], or None if it is not known; raises ImageError if it is unusable."""

_TRIM = 0.25  # fraction of a defect's largest change; pixels that change less are trimmed
_WHOLE = 2**24  # pixels up to which a score map is kept


@dataclass(frozen=True)
class Criteria:
    """How images are judged."""

    threshold: float
    """The score above which an image is defective."""
    scorer: Scorer = SSIM
    border: int = 0
    """Pixels along the image's edges that are ignored."""
    floor: float = 0.0
    """The least score of a pixel of a defect, whatever Otsu's method says."""
    borders: tuple[int, ...] = ()
    """Other borders to score images with, for a comparison."""


@dataclass(frozen=True)
class Finding:
    """The result for an image. `score`, 0 to 2, is that of the worst place."""

    path: Path
    photograph: DecodedImage
    score: float
    threshold: float
    mask: BoolArray
    """The defects, [H, W]; all False if there are none."""
    pixels: PixelCounts | None = None
    """The scores of the pixels, if the true mask is known."""
    thumbnails: bytes = b""
    """A JPEG, see `thumbnails.strip`."""
    bordered: tuple[float, ...] = ()
    """The score with each of `Criteria.borders`; NaN if nothing is left."""

    @property
    def defective(self) -> bool:
        return bool(self.score > self.threshold)


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be inspected, and the reason."""

    path: Path
    reason: str


class _ScoreMap:
    """A score map in strips of rows, with the border set to 0.

    A small map is one strip, which is kept. The strips of a large one, which would need four times the memory of its
    image, are computed each time that they are read. `limits` are the least and greatest value of each strip, by its
    first row; known after the first reading.
    """

    def __init__(self, scores: Rows, height: int, width: int, border: int) -> None:
        self._scores, self._border, self._height, self._width = scores, border, height, width
        step = height if height * width <= _WHOLE else STRIP * max(1, _WHOLE // (4 * STRIP * width))
        self._strips = [(top, min(top + step, height)) for top in range(0, height, step)]
        self._kept: FloatArray | None = None
        self.limits: dict[int, tuple[float, float]] = {}

    def read(self, above: float = -np.inf) -> Iterator[tuple[slice, FloatArray]]:
        """The rows and scores of each strip that has a score greater than `above`, from top to bottom."""
        for top, bottom in self._strips:
            if top in self.limits and self.limits[top][1] <= above:
                continue
            scores = self._kept
            if scores is None:
                scores = self._compute(top, bottom)
                self.limits[top] = limits_of(scores)
            if len(self._strips) == 1:
                self._kept = scores
            yield slice(top, bottom), scores

    def judged(self, border: int | None = None) -> Iterator[FloatArray]:
        """The scores of each strip within the border, if it has any; or within another."""
        border = self._border if border is None else max(border, self._border)
        height, width = self._height, self._width
        for rows, strip in self.read():
            inner = strip[max(border - rows.start, 0) : max(height - border - rows.start, 0), border : width - border]
            if inner.size:
                yield inner

    def crop(self, box: Box) -> FloatArray:
        """The scores of a part of the image, [box.height, box.width]."""
        bottom, columns = box.y + box.height, slice(box.x, box.x + box.width)
        parts = []
        for first, end in self._strips:
            if first < bottom and end > box.y:
                scores = self._compute(first, end) if self._kept is None else self._kept
                parts.append(scores[max(box.y - first, 0) : bottom - first, columns])
        return np.concatenate(parts)

    def _compute(self, top: int, bottom: int) -> FloatArray:
        scores = self._scores(top, bottom)
        border, height = self._border, self._height
        if border:
            scores[: max(border - top, 0)] = 0
            scores[max(height - border - top, 0) :] = 0
            scores[:, :border] = scores[:, -border:] = 0
        return scores


def score_of(strips: Iterable[FloatArray], pixels: int) -> float:
    """The score of a map in strips: the greatest value that so many pixels reach, or all if there are fewer."""
    greatest = np.concatenate([_greatest(strip, pixels) for strip in strips])
    worst = min(pixels, greatest.size)
    return float(np.partition(greatest, -worst)[-worst])


def _greatest(scores: FloatArray, pixels: int) -> FloatArray:
    """The greatest values, in any order, or all if there are fewer."""
    worst = min(pixels, scores.size)
    if scores.size <= 1 << 16:
        return np.partition(scores.ravel(), -worst)[-worst:]
    counts, centers = histogram([scores], limits_of(scores))
    exceeding = np.cumsum(counts[::-1])[::-1]
    least = centers[np.flatnonzero(exceeding >= worst)[-1]]
    top = scores[scores >= least - (centers[1] - centers[0] if len(centers) > 1 else 0)]
    return np.partition(top, -worst)[-worst:]


def find(
    path: Path,
    photograph: DecodedImage,
    repaired: Pixels | None,
    criteria: Criteria,
    *,
    truth: BoolArray | None = None,
    pictured: bool = True,
) -> Finding:
    """Inspect an image: its score, its defects, and thumbnails of them.

    Defects are the components that Otsu's method separates and that have a pixel above the threshold.

    Args:
        repaired: the defect-free version, if the scorer compares with one.
        truth: the true mask, [H, W], to count `Finding.pixels` by.
        pictured: whether to make the thumbnails.
    """
    height, width = photograph.height, photograph.width
    scorer, threshold = criteria.scorer, criteria.threshold
    scores = _ScoreMap(scorer(photograph, repaired), height, width, criteria.border)
    small = thumbnails.Shrunk(height, width)

    def noted() -> Iterator[FloatArray]:
        for rows, strip in scores.read():
            if pictured:
                small.add(rows, strip)
            yield strip

    score = score_of(noted(), scorer.pixels)
    mask = np.zeros((height, width), np.bool_)
    if score > threshold:
        mask = _defects(scores, criteria, mask.shape)
        if scorer is SSIM and repaired is not None:
            mask = _trimmed(mask, photograph.pixels, repaired)
    pixels = None if truth is None else count_pixels(scores.read(), truth, mask)
    shown = b""
    if pictured:
        shown = thumbnails.strip(photograph, repaired, small, mask, threshold, scores.crop)
    bordered = tuple(
        score_of(scores.judged(border), scorer.pixels)
        if 2 * max(border, criteria.border) < min(height, width)
        else math.nan
        for border in criteria.borders
    )
    return Finding(path, photograph, score, threshold, mask, pixels, shown, bordered)


def _defects(scores: _ScoreMap, criteria: Criteria, shape: tuple[int, int]) -> BoolArray:
    """The components that Otsu's method separates in a score map and that have a pixel above the threshold, [H, W]."""
    limits = min(low for low, _ in scores.limits.values()), max(high for _, high in scores.limits.values())
    # The border, which is not judged, would count as very like its repaired version. And Otsu's method splits what is
    # above the threshold in two as well, if it is most of an image.
    separating = min(max(otsu(scores.judged(), limits), criteria.floor), criteria.threshold)
    separated, exceeding = np.zeros((2, *shape), np.bool_)
    for rows, strip in scores.read(above=separating):
        separated[rows] = strip > separating
        exceeding[rows] = strip > criteria.threshold
    components = Components(separated)
    strong = np.zeros(len(components), np.bool_)
    for rows, labels in components:
        strong[labels[exceeding[rows]]] = True
    strong[0] = False
    mask = np.zeros_like(separated)
    for rows, labels in components:
        mask[rows] = strong[labels]
    return mask


def _trimmed(mask: BoolArray, before: Pixels, after: Pixels) -> BoolArray:
    """Defects without the pixels that hardly change: SSIM compares windows, so its components are too large."""
    components = Components(mask)
    most = np.zeros(len(components), np.float32)
    for rows, labels in components:
        inside = mask[rows]
        np.maximum.at(most, labels[inside], _change(before[rows], after[rows])[inside])
    trimmed = np.zeros_like(mask)
    for rows, labels in components:
        trimmed[rows] = mask[rows] & (_change(before[rows], after[rows]) > _TRIM * most[labels])
    trimmed = masks.clean(trimmed)
    return trimmed if trimmed.any() else mask


def _change(before: Pixels, after: Pixels) -> FloatArray:
    """The largest change of any channel, [H, W]."""
    return np.atleast_3d(cv2.absdiff(before, after)).max(axis=2).astype(np.float32)


def inspect(
    paths: Iterable[Path | None],
    repair: Repair | None,
    criteria: Criteria,
    *,
    workers: int = 2,
    truth: Truth | None = None,
    pictured: bool = False,
) -> Iterator[Finding | Unreadable]:
    """Yield a finding for each image, in order. Worker threads inspect several images at a time.

    A path of None means that no image is available at the moment. All pending findings are yielded before the next
    path is taken. With `truth`, findings have `pixels`, and an image with an unusable mask is unreadable; with
    `pictured`, they have thumbnails. If only scores are needed, an infinite threshold saves the masks.
    """
    judge = partial(_inspect, repair=repair, criteria=criteria, truth=truth, pictured=pictured)
    queue: deque[Future[Finding | Unreadable]] = deque()
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="inspecting") as pool:
        try:
            for path in paths:
                if path is not None:
                    queue.append(pool.submit(judge, path))
                while queue and (path is None or len(queue) > 2 * workers):
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _inspect(
    path: Path, *, repair: Repair | None, criteria: Criteria, truth: Truth | None, pictured: bool
) -> Finding | Unreadable:
    def judge(photograph: DecodedImage) -> Finding:
        known = None if truth is None else truth(path, photograph)
        repaired = None if repair is None else repair(path, photograph)
        return find(path, photograph, repaired, criteria, truth=known, pictured=pictured)

    return attempt(path, judge)


def attempt(path: Path, work: Callable[[DecodedImage], T]) -> T | Unreadable:
    """What `work` makes of an image, or the reason why it cannot be read or used."""
    if path.suffix.lower() in OTHER_FORMATS:
        return Unreadable(path, f"{path.suffix} is not supported; convert it to PNG, JPEG, BMP, TIFF or WebP")
    try:
        return work(read_image(path))
    except ImageError as error:
        return Unreadable(path, error.reason if error.path == path else str(error))
    except Exception as error:  # whatever is wrong with one image must not end the inspection of the others
        return Unreadable(path, reason_of(error))


def reason_of(error: Exception) -> str:
    """An unexpected error as the reason why an image could not be inspected."""
    if isinstance(error, MemoryError):
        return "out of memory; inspect fewer images at a time with --workers 1"
    return f"{type(error).__name__}: {error}"


def golden(folder: Path, root: Path | None = None, *, align: bool = False) -> Repair:
    """A `Repair` that returns the golden image of `golden_path`; with `align` in the place and light of the image."""
    return partial(_golden, folder, root, align)


def golden_path(folder: Path, path: Path, root: Path | None = None) -> Path:
    """The golden image of an image: that of the same file name in `folder`.

    Of an image below `root` it is the one at the same place below `folder`, if that exists: images of several
    categories often have the same names.
    """
    if root is not None and path.is_relative_to(root):
        same = folder / path.relative_to(root)
        if same.is_file():
            return same
    return folder / path.name


def _golden(folder: Path, root: Path | None, align: bool, path: Path, photograph: DecodedImage) -> Pixels:
    file = golden_path(folder, path, root)
    reference = read_image(file)
    if reference.pixels.shape != photograph.pixels.shape or reference.depth != photograph.depth:
        raise ImageError(
            path,
            f"is {_format_of(photograph)}, but its reference {file} is {_format_of(reference)}",
        )
    return aligned(photograph, reference.pixels) if align else reference.pixels


def _format_of(photograph: DecodedImage) -> str:
    kind = "gray" if photograph.channels == 1 else "color"
    return f"{photograph.width}x{photograph.height} {kind}, {photograph.depth} bit"
