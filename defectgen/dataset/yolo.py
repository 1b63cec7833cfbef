"""YOLO segmentation labels: one text file per image, and `data.yaml`.

A label file has a row `class x1 y1 x2 y2 ...` for each defect (https://docs.ultralytics.com/datasets/segment); its
pieces are joined, and holes cut, by lines of zero width. This module writes the rows itself, because Ultralytics' mask
converter drops 0/255 masks and holes.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from defectgen import files
from defectgen.dataset.instances import Instances, read
from defectgen.dataset.manifest import Row
from defectgen.dataset.polygons import bridged, together
from defectgen.imaging.images import read_mask

DATA: Final = "data.yaml"


def label(image: str) -> str:
    """The label file of an image, where Ultralytics looks for it."""
    return str(PurePosixPath("labels", *PurePosixPath(image).parts[1:]).with_suffix(".txt"))


def quoted(text: str) -> str:
    """A string as YAML: as JSON, without the characters that YAML does not allow, and without pairs of surrogates."""
    unprintable = "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]"
    return re.sub(unprintable, lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def write(out: Path, rows: Callable[[], Iterable[Row]], normals: Iterable[str], instances: Instances) -> None:
    """Write the labels of all manifest rows, empty ones for the images `normals`, and `data.yaml`."""
    names = sorted({row.category for row in rows()})
    for row in rows():
        mask = read_mask(out / row.mask)
        height, width = mask.shape
        lines = []
        for defect in read(mask, row, instances):
            points = together([bridged(piece) for piece in defect]) / [width, height]
            lines.append(" ".join([str(names.index(row.category)), *(f"{value:.6f}" for value in points.ravel())]))
        files.write(files.inside(out, label(row.image)), "\n".join(lines) + "\n")
    for image in normals:
        files.write(files.inside(out, label(image)), "")
    # Ultralytics fails if a named folder is missing or empty, and a small dataset may have no validation samples.
    val = "val" if any(row.split == "val" for row in rows()) else "train"
    listed = "".join(f"  {i}: {quoted(name)}\n" for i, name in enumerate(names))
    # Without `path`, which Ultralytics would take from the working folder, it takes the folder of this file.
    files.write(out / DATA, f"train: images/train\nval: images/{val}\nnames:\n{listed}")
