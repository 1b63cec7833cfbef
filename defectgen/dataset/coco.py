"""COCO: `annotations/instances_train.json` and `instances_val.json`, with an annotation for each defect.

https://cocodataset.org/#format-data. `iscrowd` is always 0, because COCO evaluation ignores crowds. Segmentations are
polygons, one for each piece of the defect, or run lengths if it has holes, which polygons cannot express. Or all are of
one kind, for loaders that take no other: then a defect is one polygon, its pieces joined, and its holes cut, by lines
of zero width. Label Studio's converter reads the first polygon of an annotation only.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset.instances import Instances, read
from defectgen.dataset.manifest import Row
from defectgen.dataset.polygons import Piece, bridged, together
from defectgen.imaging.images import read_image, read_mask
from defectgen.imaging.windows import paste_on_zeros
from defectgen.version import __version__

ANNOTATIONS: Final = {split: f"annotations/instances_{split}.json" for split in ("train", "val")}
Segmentation = Literal["auto", "polygon", "rle"]

Rows = Callable[[], Iterable[Row]]


def write(
    out: Path, rows: Rows, normals: Mapping[str, Sequence[str]], segmentation: Segmentation, instances: Instances
) -> None:
    """Write the annotations of all manifest rows, one row at a time. A file without images is removed.

    Args:
        normals: the images without defects, by split.
    """
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
    for split, name in ANNOTATIONS.items():

        def own(split: str = split) -> Iterator[Row]:
            return (row for row in rows() if row.split == split)

        path = files.inside(out, name)
        if next(own(), None) is None and not normals[split]:
            path.unlink(missing_ok=True)
            continue
        first = 2 + max(row.index for row in rows()) + (len(normals["train"]) if split == "val" else 0)
        images = chain(_images(out, own), _without_defects(out, normals[split], first))
        annotations = _annotations(out, own, names, segmentation, instances)
        with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head, ensure_ascii=False)[:-1])
            for key, values in (("images", images), ("annotations", annotations)):
                file.write(f', "{key}": [')
                for number, value in enumerate(values):
                    file.write((",\n" if number else "\n") + json.dumps(value, ensure_ascii=False))
                file.write("]")
            file.write("}\n")


def _images(out: Path, rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows():
        height, width = read_mask(out / row.mask).shape
        yield _image(row.index + 1, row.image, width, height)


def _without_defects(out: Path, names: Sequence[str], first: int) -> Iterator[dict[str, Any]]:
    for number, name in enumerate(names, start=first):
        image = read_image(out / name)
        yield _image(number, name, image.width, image.height)


def _image(number: int, name: str, width: int, height: int) -> dict[str, Any]:
    return {"id": number, "file_name": name.removeprefix("images/"), "width": width, "height": height}


def _annotations(
    out: Path, rows: Rows, names: list[str], segmentation: Segmentation, instances: Instances
) -> Iterator[dict[str, Any]]:
    number = 0
    for row in rows():
        mask = read_mask(out / row.mask)
        for defect in read(mask, row, instances):
            number += 1
            x, y = min(piece.box.x for piece in defect), min(piece.box.y for piece in defect)
            width = max(piece.box.x + piece.box.width for piece in defect) - x
            height = max(piece.box.y + piece.box.height for piece in defect) - y
            yield {
                "id": number,
                "image_id": row.index + 1,
                "category_id": names.index(row.category) + 1,
                "iscrowd": 0,
                "bbox": [x, y, width, height],
                "area": sum(int(piece.mask.sum()) for piece in defect),
                "segmentation": _segmentation(defect, (x, y, width, height), mask.shape, segmentation),
            }


def _segmentation(
    defect: Sequence[Piece], box: tuple[int, int, int, int], size: tuple[int, ...], how: Segmentation
) -> Any:
    if how == "polygon":
        return [together([bridged(piece) for piece in defect]).ravel().tolist()]
    if how == "auto" and not any(piece.holes for piece in defect):
        return [piece.outline.ravel().tolist() for piece in defect]
    x, y, width, height = box
    part = np.zeros((height, width), np.bool_)
    for piece in defect:
        part |= paste_on_zeros(piece.mask, (piece.box.x - x, piece.box.y - y), part.shape)
    return run_lengths(part, (x, y), size)


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
