"""Inspection: an image against what it should look like, an SSIM score map, Otsu, a verdict (isu-gan.txt).

What it should look like is a golden image, or the image repaired by a network. The score map compares the two at
the image's own resolution, the verdict asks for more than Otsu, who splits any image in two: a score above a
threshold that flawless images stay below.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from defectgen.imaging import masks
from defectgen.imaging.images import DecodedImage, ImageError, Pixels, read_image
from defectgen.imaging.ssim import WINDOW, histogram, otsu, ssim_map
from defectgen.imaging.windows import BoolArray, FloatArray, value_range

Repair = Callable[[Path, DecodedImage], Pixels]
"""What an image should look like, as pixels of its own shape; raises ImageError where that cannot be told."""

UNCALIBRATED = 0.5
"""A threshold for golden images, where none was calibrated."""
_TRIM = 0.25  # of the largest change in a defect: less is not of it
_PIXELS = WINDOW**2  # a score is what so many pixels exceed: as many as see a single one that differs


@dataclass(frozen=True)
class Finding:
    """What was found on an image. `score` is how unlike the repaired image its worst place is, from 0 to 2."""

    path: Path
    photograph: DecodedImage
    score: float
    threshold: float
    mask: BoolArray
    """[H, W]; empty where nothing was found."""

    @property
    def defective(self) -> bool:
        return bool(self.score > self.threshold)


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be inspected, and why."""

    path: Path
    reason: str


def compare(photograph: DecodedImage, repaired: Pixels, *, threads: int = 1) -> FloatArray:
    """How unlike its repaired self a photograph is, 1 - SSIM, [H, W] in [0, 2]; alpha is left out."""
    low, high = value_range(photograph)
    x, y = (np.atleast_3d(each)[..., : photograph.channels] for each in (photograph.pixels, repaired))
    if photograph.depth == 16:  # black and white where the photograph's own are
        x, y = (np.clip(each, low, high) - low for each in (x, y))
    similar = ssim_map(x, y, high - low, threads=threads)
    return np.subtract(1, similar, out=similar)


def score_of(unlike: FloatArray) -> float:
    """The level that 81 pixels exceed: how unlike the worst place is, of the size of SSIM's window."""
    worst = min(_PIXELS, unlike.size)
    if unlike.size <= 1 << 16:
        return float(np.partition(unlike.ravel(), -worst)[-worst])
    counts, centres = histogram(unlike)
    exceeding = np.cumsum(counts[::-1])[::-1]
    least = centres[np.flatnonzero(exceeding >= worst)[-1]]
    top = unlike[unlike >= least - (centres[1] - centres[0] if len(centres) > 1 else 0)]
    return float(np.partition(top, -worst)[-worst])


def find(
    path: Path, photograph: DecodedImage, repaired: Pixels, threshold: float, *, border: int = 0, threads: int = 1
) -> Finding:
    """The verdict on a photograph, and its defects: what Otsu separates, where that holds a place above `threshold`.

    `border` are pixels along the photograph's edges that are not judged.
    """
    unlike = compare(photograph, repaired, threads=threads)
    if border:
        unlike[:border] = unlike[-border:] = 0
        unlike[:, :border] = unlike[:, -border:] = 0
    score = score_of(unlike)
    mask = np.zeros(unlike.shape, np.bool_)
    if score > threshold:
        mask = _defects(unlike, photograph.pixels, repaired, threshold)
    return Finding(path, photograph, score, threshold, mask)


def _defects(unlike: FloatArray, before: Pixels, after: Pixels, threshold: float) -> BoolArray:
    """The mask of what Otsu separates in a score map, where it holds a place above `threshold`."""
    count, labels = cv2.connectedComponents((unlike > otsu(unlike)).astype(np.uint8), connectivity=8)
    strong = np.zeros(count, np.bool_)
    strong[labels[unlike > threshold]] = True
    strong[0] = False
    mask: BoolArray = strong[labels]
    # SSIM looks around each pixel: what it finds is trimmed to where the gray values themselves changed.
    level = np.atleast_3d(cv2.absdiff(before, after)).max(axis=2)
    pieces, levels = labels[mask].astype(np.int64), level[mask].astype(np.float32)
    most = np.zeros(count, np.float32)
    np.maximum.at(most, pieces, levels)
    mask[mask] = levels > _TRIM * most[pieces]
    mask = masks.clean(mask)
    return mask if mask.any() else unlike > threshold


def inspect(
    paths: Iterable[Path | None], repair: Repair, threshold: float, *, border: int = 0, workers: int = 2
) -> Iterator[Finding | Unreadable]:
    """A finding for each image, in their order; several are read, repaired and compared at a time.

    None among the paths tells that no image is there at the moment: what is under way is then finished first.
    """
    queue: deque[Future[Finding | Unreadable]] = deque()
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="inspecting") as pool:
        try:
            for path in paths:
                if path is not None:
                    queue.append(pool.submit(_inspect, path, repair, threshold, border))
                while queue and (path is None or len(queue) > 2 * workers):
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _inspect(path: Path, repair: Repair, threshold: float, border: int) -> Finding | Unreadable:
    try:
        photograph = read_image(path)
        return find(path, photograph, repair(path, photograph), threshold, border=border)
    except ImageError as error:
        return Unreadable(path, error.reason if error.path == path else str(error))


def calibrate(findings: Iterable[Finding | Unreadable], share: float) -> float:
    """The score that `share` of the flawless images stays below or at."""
    scores = [finding.score for finding in findings if isinstance(finding, Finding)]
    return float(np.quantile(scores, share, method="higher"))


def golden(folder: Path) -> Repair:
    """Repair by a golden image of the same name in `folder`, or the one image that is in there."""
    return partial(_golden, folder)


def _golden(folder: Path, path: Path, photograph: DecodedImage) -> Pixels:
    reference = read_image(folder / path.name)
    if reference.pixels.shape != photograph.pixels.shape or reference.depth != photograph.depth:
        raise ImageError(
            path,
            f"is {_described(photograph)}, but its reference {folder / path.name} is {_described(reference)}",
        )
    return reference.pixels


def _described(photograph: DecodedImage) -> str:
    colours = "gray" if photograph.channels == 1 else "colour"
    return f"{photograph.width}x{photograph.height} {colours}, {photograph.depth} bit"
