"""Which method suits the images, for `train` without `--method`. The figures are those of `examples/benchmarks`."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from defectgen.folders import NORMAL, Catalog, SourceImage
from defectgen.imaging.images import read_image
from defectgen.imaging.masks import foreground
from defectgen.methods import Images, which

_LOOKED_AT = 9  # normals, to tell objects from textures
_ENOUGH: Final = 5  # defects of each category, with which all methods were tested


def suited(catalog: Catalog) -> tuple[str, str]:
    """The method that suits the images, at least one normal and one defect, and why, in one line."""
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
    return _suiting("surfaces"), (
        f"all defects have masks, and its defects, made from {_ENOUGH} of each category, looked most like real ones in "
        "our tests on tiles and roads, after a minute already"
        + (f"; {_ENOUGH} or more are better than {fewest}" if fewest < _ENOUGH else "")
    )


def _suiting(images: Images) -> str:
    return which(lambda row: images in row.suits)[0]


def _show_objects(normals: Sequence[SourceImage]) -> bool:
    """Whether most normals show an object before a plain background, rather than a surface from edge to edge."""
    shown = [not foreground(read_image(image.path).pixels).all() for image in _some(normals, _LOOKED_AT)]
    return 2 * sum(shown) > len(shown)


def _some(images: Sequence[SourceImage], count: int) -> list[SourceImage]:
    """At most `count` images, evenly spread."""
    return [images[i] for i in sorted({int(i) for i in np.linspace(0, len(images) - 1, count)})]
