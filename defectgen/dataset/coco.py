"""COCO: `annotations.json`, with an annotation for each connected component of a mask.

https://cocodataset.org/#format-data. `iscrowd` is always 0, because COCO evaluation ignores crowds. Segmentations are
polygons, or run lengths for components with holes, which polygons cannot express.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset.manifest import Row
from defectgen.dataset.polygons import pieces
from defectgen.imaging.images import read_mask
from defectgen.imaging.windows import paste_on_zeros
from defectgen.version import __version__

ANNOTATIONS: Final = "annotations.json"

Rows = Callable[[], Iterable[Row]]


def write(out: Path, rows: Rows) -> None:
    """Write the annotations of all manifest rows, one row at a time."""
    names = sorted({row.category for row in rows()})
    now = datetime.now(timezone.utc).date().isoformat()
    info = {
        "description": "made by defectgen",
        "version": __version__,
        "date_created": now,
        "year": int(now[:4]),
    }
    head = {
        "info": info,
        "licenses": [],
        "categories": [{"id": i, "name": name, "supercategory": "defect"} for i, name in enumerate(names, start=1)],
    }
    with files.replacing(out / ANNOTATIONS) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head, ensure_ascii=False)[:-1])
        for key, values in (("images", _images(out, rows)), ("annotations", _annotations(out, rows, names))):
            file.write(f', "{key}": [')
            for number, value in enumerate(values):
                file.write((",\n" if number else "\n") + json.dumps(value, ensure_ascii=False))
            file.write("]")
        file.write("}\n")


def _images(out: Path, rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows():
        height, width = read_mask(out / row.mask).shape
        name = row.image.removeprefix("images/")
        yield {"id": row.index + 1, "file_name": name, "width": width, "height": height}


def _annotations(out: Path, rows: Rows, names: list[str]) -> Iterator[dict[str, Any]]:
    number = 0
    for row in rows():
        mask = read_mask(out / row.mask)
        for piece in pieces(mask):
            number += 1
            box = piece.box
            polygon = [piece.outline.ravel().tolist()]
            yield {
                "id": number,
                "image_id": row.index + 1,
                "category_id": names.index(row.category) + 1,
                "iscrowd": 0,
                "bbox": [box.x, box.y, box.width, box.height],
                "area": int(piece.mask.sum()),
                "segmentation": run_lengths(piece.mask, (box.x, box.y), mask.shape) if piece.holes else polygon,
            }


def run_lengths(
    mask: NDArray[np.bool_], at: tuple[int, int] = (0, 0), size: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """COCO's compressed RLE of a mask, [h, w]: column-major run lengths, zeros first, as differences in base 32.

    Args:
        mask: a part of the whole mask, outside of which there are zeros.
        at: its place (x, y) in the whole one.
        size: that of the whole one, (H, W). None: the part is the whole.
    """
    height, width = size or mask.shape
    columns = paste_on_zeros(mask, (0, at[1]), (height, mask.shape[1]))
    edges = np.flatnonzero(np.diff(columns.ravel(order="F"), prepend=False, append=False)) + at[0] * height
    counts = np.diff(edges[edges < height * width], prepend=0, append=height * width).tolist()
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            low, value = value & 0x1F, value >> 5
            more = value != (-1 if low & 0x10 else 0)
            text += chr((low | (0x20 if more else 0)) + 48)
            if not more:
                break
    return {"size": [int(height), int(width)], "counts": text}
