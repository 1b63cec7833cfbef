"""Which method suits the images, for `train` without `--method`. The figures are those of `examples/benchmarks`."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.folders import NORMAL, Catalog, SourceImage
from defectgen.imaging.images import read_image
from defectgen.imaging.mask_files import read_masks
from defectgen.imaging.masks import depth, foreground
from defectgen.methods import Images, which

_LOOKED_AT = 9  # normals, to tell objects from textures
_MASKS = 25  # to tell lines from others
_LINE: Final = 32  # times its thickness
_ENOUGH: Final = 5  # defects of each category, with which all methods were tested
_BRIEF: Final = 180.0  # seconds


def suited(catalog: Catalog, seconds: float | None = None) -> tuple[str, str]:
    """The method that suits the images, and why, in one line.

    Args:
        catalog: at least one normal and one defect.
        seconds: the longest time of the training.
    """
    defects = [image for image in catalog.images if image.category != NORMAL]
    unmarked = sum(image.mask is None for image in defects)
    fewest = min(Counter(image.category for image in defects).values())
    if any(image.also for image in defects):
        return _suiting("unions"), "some images show several categories, which it alone takes apart and combines"
    if unmarked:
        return _suiting("unmasked"), (
            f"{unmarked} of {len(defects)} defects have no mask, which it can do without; masks would teach it more"
        )
    if fewest >= _ENOUGH and _show_objects([image for image in catalog.images if image.category == NORMAL]):
        return _suiting("objects"), (
            "the normals show objects before a plain background, and it lays defects where real ones lie; all have "
            f"masks, and each category has {_ENOUGH} or more"
        )
    if _show_lines(defects):
        return _suiting("lines"), (
            f"all defects have masks, and most are {_LINE} times as long as they are thick, or more: it painted such "
            "best in our test on roads"
        )
    if seconds is not None and seconds < _BRIEF:
        return _suiting("brief"), (
            "all defects have masks, which its defects fill after a minute; with ten, another one looked better in our "
            "tests on tiles"
        )
    return _suiting("surfaces"), (
        f"all defects have masks, and its defects, made from {_ENOUGH} of each category, taught a network most in our "
        "tests on tiles" + (f"; {_ENOUGH} or more are better than {fewest}" if fewest < _ENOUGH else "")
    )


def _suiting(images: Images) -> str:
    return which(lambda row: images in row.suits)[0]


def _show_objects(normals: Sequence[SourceImage]) -> bool:
    """Whether most normals show an object before a plain background, rather than a surface from edge to edge."""
    shown = [not foreground(read_image(image.path).pixels).all() for image in _some(normals, _LOOKED_AT)]
    return 2 * sum(shown) > len(shown)


def _show_lines(defects: Sequence[SourceImage]) -> bool:
    """Whether most defects, which have masks, are long and thin."""
    shown = [_is_line(read_masks(image.mask)) for image in _some(defects, _MASKS) if image.mask is not None]
    return 2 * sum(shown) > len(shown)


def _is_line(mask: NDArray[np.bool_]) -> bool:
    return max(cv2.boundingRect(mask.astype(np.uint8))[2:]) >= _LINE * 2 * depth(mask) > 0


def _some(images: Sequence[SourceImage], count: int) -> list[SourceImage]:
    """At most `count` images, evenly spread."""
    return [images[i] for i in sorted({int(i) for i in np.linspace(0, len(images) - 1, count)})]
