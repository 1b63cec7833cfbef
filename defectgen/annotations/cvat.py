"""CVAT for images 1.1: an XML file for a task. https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/

Coordinates refer to the image as CVAT shows it, turned by its EXIF orientation.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as Xml

from defectgen.annotations.record import Annotation, Shape, malformed, name_of, size_of
from defectgen.errors import BadInputError
from defectgen.imaging import shapes
from defectgen.imaging.shapes import Points

NAME: Final = "CVAT XML"
DISPLAYED: Final = True


def matches(path: Path, head: str) -> bool:
    """Whether a file, which begins with `head`, has this format."""
    return path.suffix.lower() == ".xml" and re.search(r"<annotations\b", head) is not None


def read(path: Path) -> list[Annotation]:
    """The annotations of each image.

    Raises:
        BadInputError: the file is damaged, or of a video.
    """
    with malformed(path, NAME):
        root = parsed(path)
        if root.find("track") is not None:
            raise BadInputError(f"{path}: is of a video; export it from CVAT as 'CVAT for images 1.1'")
        found = []
        for image in root.iter("image"):
            drawn = [(each.tag, _shape(each)) for each in image]
            found.append(
                Annotation(
                    path,
                    (name_of(image.attrib["name"]),),
                    size_of(image.get("height"), image.get("width")),
                    tuple(shape for _, shape in drawn if shape is not None),
                    tuple(tag for tag, shape in drawn if shape is None),
                )
            )
        return found


def parsed(path: Path) -> Xml.Element:
    """The root of an XML file. Raises ValueError, also for entities of its own, which could expand without end."""
    text = path.read_bytes()
    if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
        raise ValueError("it defines entities")
    try:
        return Xml.fromstring(text)  # noqa: S314 - without entities
    except Xml.ParseError as error:
        raise ValueError(str(error)) from error


def _shape(each: Xml.Element) -> Shape | None:
    """A shape of an image; None for a tag, a cuboid or a skeleton."""
    label = each.get("label", "").strip()
    turned = float(each.get("rotation") or 0)
    match each.tag:
        case "polygon":
            corners = _points(each)
            return Shape(label, partial(shapes.polygon, corners)) if len(corners) > 2 else None
        case "polyline":
            return Shape(label, partial(shapes.line, _points(each)), "line")
        case "points":
            return Shape(label, partial(shapes.dots, _points(each)), "line")
        case "box":
            x0, y0, x1, y1 = _floats(each, "xtl", "ytl", "xbr", "ybr")
            corners = shapes.box(x0, y0, x1, y1, turned)
            return Shape(label, partial(shapes.polygon, corners), "box")
        case "ellipse":
            x, y, rx, ry = _floats(each, "cx", "cy", "rx", "ry")
            corners = shapes.ellipse(x, y, rx, ry, turned)
            return Shape(label, partial(shapes.polygon, corners))
        case "mask":
            left, top, width, height = map(int, _floats(each, "left", "top", "width", "height"))
            lengths = [int(count) for count in each.attrib["rle"].split(",")]
            return Shape(label, partial(shapes.runs, lengths, (height, width), (left, top), "rows"))
        case _:
            return None


def _points(each: Xml.Element) -> Points:
    return shapes.points([pair.split(",") for pair in each.attrib["points"].split(";")])


def _floats(each: Xml.Element, *names: str) -> Iterator[float]:
    return (float(each.attrib[name]) for name in names)
