"""YOLO: a text file for each image, with rows `class x1 y1 x2 y2 ...` or boxes, and the names of the classes.

https://docs.ultralytics.com/datasets/segment. The names are in `data.yaml` (Ultralytics, Roboflow), or one on each line
of `classes.txt` (labelImg, Label Studio) or `obj.names` (darknet, CVAT).
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from defectgen.annotations.record import Annotation, Shape, malformed
from defectgen.errors import BadInputError
from defectgen.imaging import shapes

NAME: Final = "YOLO txt"
DISPLAYED: Final = False
YAML: Final = (".yaml", ".yml")

_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_ROW = re.compile(r"\d+(\s+[-+.\deE]+){4,}\s*")
_BEYOND = 0.01  # by which a corner may lie outside of the image
_ITEM = re.compile(
    r"""\s*(?:(?P<key>['"]?\d+['"]?)\s*:|-)\s*(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^#\n]*?)\s*(?:\#.*)?"""
)
_INLINE = re.compile(
    r"""\s*(?:(?P<key>['"]?\d+['"]?)\s*:)?\s*(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,\]}]+?)\s*(?:,|$)"""
)


def matches(path: Path, head: str) -> bool:
    """Whether a file, which begins with `head`, has this format. The last line of `head` may be cut off."""
    if path.suffix.lower() != ".txt" or path.name in _LISTS:
        return False
    lines = [line for line in head.splitlines()[:-1] or head.splitlines() if line.strip()]
    return all(_ROW.fullmatch(line.strip()) for line in lines)


def read(path: Path, names: Mapping[int, str]) -> list[Annotation]:
    """The annotation of an image.

    Args:
        names: those of the classes; empty if they have none.

    Raises:
        BadInputError: the file is damaged.
    """
    with malformed(path, NAME):
        found: list[Shape] = []
        unread: list[str] = []
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if not line.strip():
                continue
            number, *values = line.split()
            label = names.get(int(number), "") if names else f"class-{int(number)}"
            if label:
                found.append(_shape(label, [float(value) for value in values]))
            else:
                unread.append(f"object of the class {number}, which has no name")
        return [Annotation(path, (path.stem,), None, tuple(found), tuple(unread))]


def _shape(label: str, values: list[float]) -> Shape:
    """A box of 4 values, or an outline. An odd one at the end is the score of a prediction."""
    corners = shapes.points(values[: len(values) // 2 * 2])
    if corners.min() < -_BEYOND or corners.max() > 1 + _BEYOND:
        raise ValueError("coordinates must be fractions of the image's sides")
    if len(corners) == 2:
        return Shape(label, partial(shapes.relative_box, corners), "box")
    return Shape(label, partial(shapes.relative, corners))


# --- Names of classes -------------------------------------------------------------------------------------------


def class_names(folder: Path) -> dict[int, str]:
    """The names of the classes for labels in a folder, from the nearest file of names in it or up to 3 above.

    Raises:
        BadInputError: such a file is unreadable, or two of one folder differ.
    """
    for place in (folder, *folder.absolute().parents[:3]):
        try:
            candidates = sorted(path for path in place.iterdir() if path.suffix.lower() in YAML or path.name in _LISTS)
        except OSError:  # one above may be closed to us
            return {}
        known = {path: found for path in candidates if (found := read_names(path))}
        first = next(iter(known), None)
        for path, names in known.items():
            if first is not None and names != known[first]:
                raise BadInputError(f"{path}: names other classes than {first.name}; keep one, or give it by itself")
        if first is not None:
            return known[first]
    return {}


def read_names(path: Path) -> dict[int, str]:
    """The names of the classes in a file, by number; none if it has none. Raises BadInputError if it is unreadable."""
    with malformed(path, "a list of classes"):
        return _names(path)


def _names(path: Path) -> dict[int, str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if path.suffix.lower() not in YAML:
        return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    start = next((number for number, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        return {}
    text = re.sub(r"\s+#.*", "", lines[start].partition(":")[2]).strip()
    items = _inline(text, lines[start + 1 :]) if text[:1] in ("[", "{") else _block(lines[start + 1 :])
    return {int(key.strip("'\"")) if key else number: _text(value) for number, (key, value) in enumerate(items)}


def _block(lines: list[str]) -> Iterator[tuple[str, str]]:
    """The items of a YAML list or map of one item on each line."""
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        item = _ITEM.fullmatch(line)
        if item is None:
            return
        yield item["key"] or "", item["value"]


def _inline(text: str, more: list[str]) -> Iterator[tuple[str, str]]:
    """The items of a YAML list or map in brackets, which may go on in the next lines."""
    for line in more:
        if text[-1:] in ("]", "}"):
            break
        text += " " + line.strip()
    for item in _INLINE.finditer(text[1:-1]):
        yield item["key"] or "", item["value"]


def _text(value: str) -> str:
    """A YAML scalar as text."""
    if value[:1] == '"':
        return str(json.loads(re.sub(r"\\x(..)", r"\\u00\1", value)))
    return value[1:-1].replace("''", "'") if value[:1] == "'" else value.strip()
