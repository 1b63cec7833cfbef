"""COCO: one JSON file for all images, with polygons, run lengths or boxes. https://cocodataset.org/#format-data"""

import re
from functools import partial
from pathlib import Path
from typing import Any, Final

from defectgen.annotations.record import Annotation, Shape, label_of, load_json, malformed, name_of, size_of
from defectgen.imaging import shapes
from defectgen.imaging.windows import BoolArray

NAME: Final = "COCO JSON"
DISPLAYED: Final = False

_KEYS = ("images", "annotations", "categories")
_LIST = re.compile(r'"(images|annotations|categories|licenses)"\s*:\s*\[\s*[{\]]')


def matches(path: Path, head: str) -> bool:
    """Whether a file, which begins with `head`, may have this format."""
    return path.suffix.lower() == ".json" and _LIST.search(head) is not None


def read(path: Path) -> list[Annotation]:
    """The annotations of each image; none if it is some other JSON file.

    Raises:
        BadInputError: the file is damaged.
    """
    with malformed(path, NAME):
        data = load_json(path)
        if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in _KEYS):
            return []
        names = {each["id"]: label_of(each["name"]) for each in data["categories"]}
        found: dict[Any, list[Shape]] = {each["id"]: [] for each in data["images"]}
        unread: dict[Any, list[str]] = {each["id"]: [] for each in data["images"]}
        for each in data["annotations"]:
            image, category = each["image_id"], each["category_id"]
            if image not in found:
                raise ValueError(f"annotation {each.get('id')} is of image {image}, which is not listed")
            if category not in names:
                unread[image].append(f"object of the unknown category {category}")
            elif drawn := _shapes(each, names[category]):
                found[image] += drawn
            else:
                unread[image].append("object without a shape")
        return [
            Annotation(
                path,
                (name_of(each["file_name"]),),
                size_of(each.get("height"), each.get("width")),
                tuple(found[each["id"]]),
                tuple(unread[each["id"]]),
            )
            for each in data["images"]
        ]


def _shapes(each: dict[str, Any], label: str) -> list[Shape]:
    """The parts of an object, crowds included: polygons, run lengths, or its box if it has neither."""
    outline = each.get("segmentation")
    if isinstance(outline, dict):
        counts, (height, width) = outline["counts"], outline["size"]
        counts = shapes.uncompressed(counts) if isinstance(counts, str) else list(map(int, counts))
        return [Shape(label, partial(_runs, counts, (int(height), int(width))))]
    if outline:
        parts = outline if isinstance(outline[0], list) else [outline]  # some tools write a single one flat
        corners = [shapes.points(part) for part in parts]
        return [Shape(label, partial(shapes.polygon, part)) for part in corners if len(part) > 2]
    if each.get("bbox"):
        x, y, width, height = map(float, each["bbox"])
        return [Shape(label, partial(shapes.polygon, shapes.box(x, y, x + width, y + height)), "box")]
    return []


def _runs(counts: list[int], size: tuple[int, int], height: int, width: int) -> BoolArray:
    if size != (height, width):
        raise ValueError(f"its run lengths are of {size[1]}x{size[0]} pixels, but the image has {width}x{height}")
    return shapes.runs(counts, size, (0, 0), "columns", height, width)
