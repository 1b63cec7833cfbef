"""LabelMe: a JSON file for each image. https://github.com/wkentaro/labelme

Coordinates refer to the image as LabelMe shows it, turned by its EXIF orientation. Later derivatives, such as
X-AnyLabeling, write the same with more types of shapes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from defectgen.annotations.record import Annotation, Kind, Shape, label_of, load_json, malformed, name_of, size_of
from defectgen.imaging import shapes
from defectgen.imaging.shapes import Draw, Points

NAME: Final = "LabelMe JSON"
DISPLAYED: Final = True
_NO_DEFECTS = ("__ignore__", "_background_")  # labels of LabelMe's own


def matches(path: Path, head: str) -> bool:
    """Whether a file, which begins with `head`, has this format."""
    return path.suffix.lower() == ".json" and any(key in head for key in ('"shapes"', '"imagePath"', '"imageData"'))


def read(path: Path) -> list[Annotation]:
    """The annotation of an image.

    Raises:
        BadInputError: the file is damaged.
    """
    with malformed(path, NAME):
        data = load_json(path)
        found: list[Shape] = []
        unread: list[str] = []
        for each in data["shapes"]:
            label, kind = label_of(each["label"]), str(each.get("shape_type") or "polygon")
            if label in _NO_DEFECTS:
                continue
            shape = _shape(each, label, kind)
            if shape is None:
                unread.append(kind)
            else:
                found.append(shape)
        size = size_of(data.get("imageHeight"), data.get("imageWidth"))
        names = (path.stem, name_of(data.get("imagePath")))  # LabelMe opens the file that is named as the image
        return [Annotation(path, names, size, tuple(found), tuple(unread))]


def _shape(each: dict[str, Any], label: str, kind: str) -> Shape | None:
    corners = shapes.points(each["points"])
    if kind == "mask":
        x, y = corners[0].astype(int).tolist()
        return Shape(label, partial(shapes.bitmap, str(each["mask"]), (x, y)))
    for kinds, fewest, of, name in _KINDS:
        if kind in kinds and len(corners) >= fewest:
            return Shape(label, of(corners), name)
    return None


def _box(corners: Points) -> Draw:
    if len(corners) > 2:
        return partial(shapes.outlined, corners)
    (x0, y0), (x1, y1) = corners
    return partial(shapes.outlined, shapes.box(x0, y0, x1, y1))


def _circle(corners: Points) -> Draw:
    (x, y), radius = corners[0], float(np.hypot(*(corners[1] - corners[0])))
    return partial(shapes.outlined, shapes.ellipse(x, y, radius, radius))


_KINDS: tuple[tuple[tuple[str, ...], int, Callable[[Points], Draw], Kind], ...] = (
    (("polygon", "quadrilateral", "rotation", "oriented_rectangle"), 3, lambda c: partial(shapes.outlined, c), "area"),
    (("rectangle",), 2, _box, "box"),
    (("circle",), 2, _circle, "area"),
    (("line", "linestrip"), 2, lambda c: partial(shapes.line, c), "line"),
    (("point", "points"), 1, lambda c: partial(shapes.dots, c), "line"),
)
"""The names of shapes, the least number of points, how they are drawn, and what they are."""
