"""Pascal VOC: an XML file for each image, with boxes. http://host.robots.ox.ac.uk/pascal/VOC/"""

import re
from functools import partial
from pathlib import Path
from typing import Final

from defectgen.annotations.cvat import parsed
from defectgen.annotations.record import Annotation, Shape, malformed, name_of, size_of
from defectgen.imaging import shapes

NAME: Final = "Pascal VOC XML"
DISPLAYED: Final = False


def matches(path: Path, head: str) -> bool:
    """Whether a file, which begins with `head`, has this format."""
    return path.suffix.lower() == ".xml" and re.search(r"<annotation\b", head) is not None


def read(path: Path) -> list[Annotation]:
    """The annotation of an image. The first pixel of VOC is (1, 1), and a box includes the last one.

    Raises:
        BadInputError: the file is damaged.
    """
    with malformed(path, NAME):
        root = parsed(path)
        found: list[Shape] = []
        unread: list[str] = []
        for each in root.iter("object"):
            box = each.find("bndbox")
            if box is None:
                unread.append("object without a box")
                continue
            x0, y0, x1, y1 = (float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax"))
            corners = shapes.box(x0 - 1, y0 - 1, x1, y1)
            found.append(Shape(each.findtext("name", "").strip(), partial(shapes.polygon, corners), "box"))
        size = size_of(int(root.findtext("size/height", "0")), int(root.findtext("size/width", "0")))
        return [Annotation(path, (path.stem, name_of(root.findtext("filename"))), size, tuple(found), tuple(unread))]
