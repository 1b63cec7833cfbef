"""Inspection: compare an image with a defect-free version by SSIM, segment by Otsu's method, decide (isu-gan.txt).

The defect-free version is a golden image, or the image repaired by a network. The score map compares the two at the
image's own resolution. Otsu's method splits any image in two, so an image is defective only if its score is also above
a threshold that flawless images stay below.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from defectgen.errors import BadInputError
from defectgen.imaging import masks
from defectgen.imaging.components import Components
from defectgen.imaging.images import OTHER_FORMATS, DecodedImage, ImageError, Pixels, read_image
from defectgen.imaging.ssim import STRIP, WINDOW, histogram, limits_of, otsu, ssim_map
from defectgen.imaging.windows import BoolArray, Box, FloatArray, Limits, value_range, widened
from defectgen.inspection import thumbnails
from defectgen.inspection.scoring import PixelCounts, count_pixels

Repair = Callable[[Path, DecodedImage], Pixels]
"""Returns the defect-free version of an image, as pixels of the same shape; raises ImageError if there is none."""
Truth = Callable[[Path, DecodedImage], BoolArray | None]
"""Returns the true mask of an image, [H, W], or None if it is not known; raises ImageError if it is unusable."""

UNCALIBRATED = 0.5
"""The threshold for golden images if none is calibrated."""
_TRIM = 0.25  # fraction of a defect's largest change; pixels that change less are trimmed
_WHOLE = 2**24  # pixels up to which a score map is kept
_PIXELS = WINDOW**2  # number of pixels that reach the score: as many as one differing pixel affects


@dataclass(frozen=True)
class Finding:
    """The result for an image. `score`, 0 to 2, is the dissimilarity to the repaired image at the worst place."""

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

    @property
    def defective(self) -> bool:
        return bool(self.score > self.threshold)


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be inspected, and the reason."""

    path: Path
    reason: str


def compare(
    photograph: DecodedImage, repaired: Pixels, rows: tuple[int, int] | None = None, limits: Limits | None = None
) -> FloatArray:
    """The score map, 1 - SSIM of an image and its repaired version, [H, W] in [0, 2]. Alpha is ignored.

    Args:
        rows: only these, from the first to before the last, [rows, W]. Exactly equal to those of the whole map if the
            first is a multiple of `ssim.STRIP`.
        limits: as `_common_limits`, if they are known.
    """
    low, high = limits or _common_limits(photograph, repaired)
    top, bottom = rows or (0, photograph.height)
    first = max(top - WINDOW // 2, 0)
    near = slice(first, bottom + WINDOW // 2)
    x, y = (np.atleast_3d(each)[near, :, : photograph.channels] for each in (photograph.pixels, repaired))
    if photograph.depth == 16:  # what is above the range, such as a hot spot, stays above it
        x, y = (each.astype(np.float32) - np.float32(low) for each in (x, y))
    similar = ssim_map(x, y, high - low, rows=(top - first, bottom - first))
    return np.subtract(1, similar, out=similar)


def _common_limits(photograph: DecodedImage, repaired: Pixels) -> Limits:
    """The value range of an image and its repaired version together."""
    return widened(value_range(photograph), value_range(DecodedImage(repaired)))


class _ScoreMap:
    """A score map in strips of rows, with the border set to 0.

    A small map is one strip, which is kept. The strips of a large one, which would need four times the memory of its
    image, are computed each time that they are read. `limits` are the least and greatest value of each strip, by its
    first row; known after the first reading.
    """

    def __init__(self, photograph: DecodedImage, repaired: Pixels, border: int) -> None:
        self._photograph, self._repaired, self._border = photograph, repaired, border
        self._range = _common_limits(photograph, repaired)
        height, width = photograph.height, photograph.width
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

    def judged(self) -> Iterator[FloatArray]:
        """The scores of each strip within the border, if it has any."""
        border, (height, width) = self._border, self._photograph.pixels.shape[:2]
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
        scores = compare(self._photograph, self._repaired, (top, bottom), self._range)
        border, height = self._border, self._photograph.height
        if border:
            scores[: max(border - top, 0)] = 0
            scores[max(height - border - top, 0) :] = 0
            scores[:, :border] = scores[:, -border:] = 0
        return scores


def score_of(strips: Iterable[FloatArray]) -> float:
    """The score of a map in strips: the greatest value that at least 81 pixels, the area of SSIM's window, reach."""
    greatest = np.concatenate([_greatest(strip) for strip in strips])
    worst = min(_PIXELS, greatest.size)
    return float(np.partition(greatest, -worst)[-worst])


def _greatest(scores: FloatArray) -> FloatArray:
    """The 81 greatest values, in any order, or all if there are fewer."""
    worst = min(_PIXELS, scores.size)
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
    repaired: Pixels,
    threshold: float,
    *,
    border: int = 0,
    truth: BoolArray | None = None,
    pictured: bool = True,
) -> Finding:
    """Inspect an image: its score, its defects, and thumbnails of them.

    Defects are the components that Otsu's method separates and that have a pixel above `threshold`.

    Args:
        repaired: the defect-free version.
        border: pixels along the image's edges that are ignored.
        truth: the true mask, [H, W], to count `Finding.pixels` by.
        pictured: whether to make the thumbnails.
    """
    scores = _ScoreMap(photograph, repaired, border)
    small = thumbnails.Shrunk(photograph.height, photograph.width)

    def noted() -> Iterator[FloatArray]:
        for rows, strip in scores.read():
            if pictured:
                small.add(rows, strip)
            yield strip

    score = score_of(noted())
    if score > threshold:
        mask = _defects(scores, photograph.pixels, repaired, threshold)
    else:
        mask = np.zeros((photograph.height, photograph.width), np.bool_)
    pixels = None if truth is None else count_pixels(scores.read(), truth, mask)
    shown = b""
    if pictured:
        shown = thumbnails.strip(photograph, repaired, small, mask, threshold, scores.crop)
    return Finding(path, photograph, score, threshold, mask, pixels, shown)


def _defects(scores: _ScoreMap, before: Pixels, after: Pixels, threshold: float) -> BoolArray:
    """The components that Otsu's method separates in a score map and that have a pixel above `threshold`, [H, W]."""
    limits = min(low for low, _ in scores.limits.values()), max(high for _, high in scores.limits.values())
    # The border, which is not judged, would count as very like its repaired version.
    separating = otsu(scores.judged(), limits)
    separated, exceeding = np.zeros((2, *before.shape[:2]), np.bool_)
    for rows, strip in scores.read(above=min(separating, threshold)):
        separated[rows] = strip > separating
        exceeding[rows] = strip > threshold
    components = Components(separated)
    strong = np.zeros(len(components), np.bool_)
    for rows, labels in components:
        strong[labels[exceeding[rows]]] = True
    strong[0] = False
    # SSIM compares windows, so its components are too large: trim them to the pixels whose gray values change.
    most = np.zeros(len(components), np.float32)
    for rows, labels in components:
        inside = strong[labels]
        np.maximum.at(most, labels[inside], _change(before[rows], after[rows])[inside])
    mask = np.zeros_like(separated)
    for rows, labels in components:
        mask[rows] = strong[labels] & (_change(before[rows], after[rows]) > _TRIM * most[labels])
    mask = masks.clean(mask)
    return mask if mask.any() else exceeding


def _change(before: Pixels, after: Pixels) -> FloatArray:
    """The largest change of any channel, [H, W]."""
    return np.atleast_3d(cv2.absdiff(before, after)).max(axis=2).astype(np.float32)


def inspect(
    paths: Iterable[Path | None],
    repair: Repair,
    threshold: float,
    *,
    border: int = 0,
    workers: int = 2,
    truth: Truth | None = None,
    pictured: bool = False,
) -> Iterator[Finding | Unreadable]:
    """Yield a finding for each image, in order. Worker threads inspect several images at a time.

    A path of None means that no image is available at the moment. All pending findings are yielded before the next
    path is taken. With `truth`, findings have `pixels`, and an image with an unusable mask is unreadable; with
    `pictured`, they have thumbnails. If only scores are needed, an infinite threshold saves the masks.
    """
    queue: deque[Future[Finding | Unreadable]] = deque()
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="inspecting") as pool:
        try:
            for path in paths:
                if path is not None:
                    queue.append(pool.submit(_inspect, path, repair, threshold, border, truth, pictured))
                while queue and (path is None or len(queue) > 2 * workers):
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _inspect(
    path: Path, repair: Repair, threshold: float, border: int, truth: Truth | None, pictured: bool
) -> Finding | Unreadable:
    if path.suffix.lower() in OTHER_FORMATS:
        return Unreadable(path, f"{path.suffix} is not supported; convert it to PNG, JPEG, BMP, TIFF or WebP")
    try:
        photograph = read_image(path)
        known = None if truth is None else truth(path, photograph)
        repaired = repair(path, photograph)
        return find(path, photograph, repaired, threshold, border=border, truth=known, pictured=pictured)
    except ImageError as error:
        return Unreadable(path, error.reason if error.path == path else str(error))
    except Exception as error:  # whatever is wrong with one image must not end the inspection of the others
        return Unreadable(path, reason_of(error))


def reason_of(error: Exception) -> str:
    """An unexpected error as the reason why an image could not be inspected."""
    if isinstance(error, MemoryError):
        return "out of memory; inspect fewer images at a time with --workers 1"
    return f"{type(error).__name__}: {error}"


def calibrate(findings: Iterable[Finding | Unreadable], share: float) -> float:
    """The `share` quantile of the flawless images' scores: the next score at or above it.

    Raises:
        BadInputError: none of the images can be read.
    """
    scores, unreadable = list[float](), list[Unreadable]()
    for finding in findings:
        if isinstance(finding, Finding):
            scores.append(finding.score)
        else:
            unreadable.append(finding)
    if not scores:
        named = "; ".join(f"{each.path}: {each.reason}" for each in unreadable[:3])
        more = f"; and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise BadInputError(f"no readable image to calibrate on ({named or 'there are none'}{more})")
    return float(np.quantile(scores, share, method="higher"))


def golden(folder: Path, root: Path | None = None) -> Repair:
    """A `Repair` that returns the golden image of `golden_path`."""
    return partial(_golden, folder, root)


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


def _golden(folder: Path, root: Path | None, path: Path, photograph: DecodedImage) -> Pixels:
    file = golden_path(folder, path, root)
    reference = read_image(file)
    if reference.pixels.shape != photograph.pixels.shape or reference.depth != photograph.depth:
        raise ImageError(
            path,
            f"is {_format_of(photograph)}, but its reference {file} is {_format_of(reference)}",
        )
    return reference.pixels


def _format_of(photograph: DecodedImage) -> str:
    kind = "gray" if photograph.channels == 1 else "color"
    return f"{photograph.width}x{photograph.height} {kind}, {photograph.depth} bit"
