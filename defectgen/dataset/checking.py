"""Says which loaders take a dataset, and why others do not, without these installed: it checks what they need.

`examples/loaders.sh` runs the loaders themselves.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defectgen import files
from defectgen.dataset import Layout, coco, imagefolder, manifest, record, yolo
from defectgen.dataset.manifest import Row
from defectgen.errors import BadInputError
from defectgen.imaging.images import ImageError, read_image

_READERS = 4
_SMALLEST = 10  # pixels; Ultralytics takes no smaller image
_SPLITS = re.compile(
    r"(^|[ ._\-0-9])(train(ing)?|test(ing)?|eval(uation)?|dev|val|valid(ation)?)([ ._\-0-9]|$)", re.IGNORECASE
)
_WHITE = "16-bit images become white when Pillow makes them RGB; use 8-bit normals"


@dataclass(frozen=True)
class Loader:
    """Whether a loader takes the dataset as it is; `remark` says why not, or what is lost."""

    name: str
    loads: bool
    remark: str = ""


@dataclass(frozen=True)
class Checked:
    """The result of `check`. `faults` are files that are missing, damaged or changed; with any, nothing loads."""

    layout: str
    samples: int
    normals: int
    loaders: tuple[Loader, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """What was found of an image: its size, (width, height), and bits; or what is wrong with it or its mask."""

    name: str
    size: tuple[int, int] = (0, 0)
    depth: int = 8
    fault: str = ""


def check(folder: Path) -> Checked:
    """Check a dataset of defectgen.

    Raises:
        BadInputError: it is none, or its manifest or record is damaged.
    """
    file = files.inside(folder, manifest.NAME)
    before = record.read(folder)
    if not file.is_file() or before.layout not in [each.value for each in Layout]:
        raise BadInputError(f"{folder}: not a defectgen dataset (it has no {record.NAME} and {manifest.NAME} of one)")
    rows = list(manifest.parse(file, file.read_bytes()))
    with ThreadPoolExecutor(_READERS) as pool:
        images = [
            *pool.map(lambda row: _read(folder, row.image, row.mask), rows),
            *pool.map(lambda name: _read(folder, name), before.normals),
        ]
    own = {
        Layout.PLAIN.value: _plain, Layout.COCO.value: _coco, Layout.YOLO.value: _yolo, Layout.MVTEC.value: _mvtec,
    }[before.layout]  # fmt: skip
    faults = [f"{folder / image.name}: {image.fault}" for image in images if image.fault]
    found: tuple[list[Loader], list[str]] = ([], [])
    if not faults:
        found = own(folder, rows, {image.name: image for image in images}, before)
    faults += found[1]
    broken = [Loader(name, False, "the dataset is damaged") for name in _NAMES[before.layout]]
    return Checked(before.layout, len(rows), len(before.normals), tuple(broken if faults else found[0]), tuple(faults))


_NAMES = {
    "plain": ("Hugging Face datasets", "defectgen"),
    "coco": ("pycocotools", "torchvision", "datumaro", "FiftyOne", "supervision", "Label Studio", "defectgen"),
    "yolo": ("Ultralytics", "FiftyOne", "supervision", "defectgen"),
    "mvtec": ("anomalib", "defectgen"),
}


def _loaders(layout: str, refused: dict[str, str], remarks: dict[str, str] | None = None) -> list[Loader]:
    remarks = remarks or {}
    return [Loader(name, name not in refused, refused.get(name, remarks.get(name, ""))) for name in _NAMES[layout]]


def _read(folder: Path, name: str, mask: str | None = None) -> _Image:
    """Read an image, and its mask, if it has one."""
    try:
        image = read_image(files.inside(folder, name))
        size = (image.width, image.height)
        if mask is None:
            return _Image(name, size, image.depth)
        pixels = read_image(files.inside(folder, mask)).pixels
    except ImageError as error:
        return _Image(name, fault=f"{error.path.name}: {error.reason}")
    if pixels.shape != size[::-1]:
        return _Image(name, fault=f"its mask {mask} has another size or is no gray image")
    values = set(np.unique(pixels).tolist())
    if not values <= {0, 255} or 255 not in values:
        return _Image(name, fault=f"its mask {mask} has other values than 0 and 255, or marks nothing")
    return _Image(name, size, image.depth)


Found = tuple[list[Loader], list[str]]


def _plain(folder: Path, rows: Sequence[Row], _images: dict[str, _Image], before: record.Record) -> Found:
    refused = {}
    if imagefolder.NAME not in (before.derived or ()):
        refused["Hugging Face datasets"] = f"an older version wrote it without {imagefolder.NAME}; make it again"
        return _loaders("plain", refused), []
    path = files.inside(folder, imagefolder.NAME)
    lines, fault = _json_lines(path)
    named = [(line.get("file_name"), line.get("mask_file_name")) for line in lines if isinstance(line, dict)]
    if not fault and named != [(row.image, row.mask) for row in rows]:
        fault = f"{path}: does not name the images of {manifest.NAME}"
    split = next((part for row in rows for part in Path(row.image).parts if _SPLITS.search(part)), None)
    if split is not None:
        refused["Hugging Face datasets"] = f"takes the folder {split!r} for a split; rename the category"
    return _loaders("plain", refused), [fault] if fault else []


def _json_lines(path: Path) -> tuple[list[Any], str]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], ""
    except (OSError, ValueError) as error:
        return [], f"{path}: cannot be read: {error}"


def _coco(folder: Path, rows: Sequence[Row], images: dict[str, _Image], before: record.Record) -> Found:
    if before.val is None:
        lost = dict.fromkeys(_NAMES["coco"][2:6], "an older version wrote it as one annotations.json; make it again")
        return _loaders("coco", lost), []
    faults, listed, lengths, parts, polygons = list[str](), list[str](), 0, 0, 0
    for name in coco.ANNOTATIONS.values():
        path = files.inside(folder, name)
        if not path.is_file():
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            sizes = {each["id"]: (each["width"], each["height"]) for each in document["images"]}
            names = {f"images/{each['file_name']}": sizes[each["id"]] for each in document["images"]}
            listed += names
            categories = {each["id"] for each in document["categories"]}
            faults += [f"{path}: {name} has another size" for name, size in names.items()
                       if name in images and images[name].size != size]  # fmt: skip
            for each in document["annotations"]:
                if each["image_id"] not in sizes or each["category_id"] not in categories:
                    faults.append(f"{path}: annotation {each['id']} names no image or category")
                segmentation = each["segmentation"]
                if isinstance(segmentation, dict):
                    lengths += 1
                    if segmentation["size"] != list(sizes[each["image_id"]][::-1]):
                        faults.append(f"{path}: annotation {each['id']} is of another size")
                else:
                    polygons += 1
                    parts += len(segmentation) > 1
                    if not all(len(line) >= 6 and len(line) % 2 == 0 for line in segmentation):
                        faults.append(f"{path}: annotation {each['id']} has no polygon")
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            faults.append(f"{path}: damaged ({error!r:.80})")
    if not faults and sorted(listed) != sorted(images):
        faults.append(f"{folder}: the annotations do not name the images of {manifest.NAME}")
    refused = {}
    if lengths:
        refused["Label Studio"] = f"reads no run lengths ({lengths} annotations); use --segmentation polygon"
    elif parts:
        refused["Label Studio"] = f"reads one polygon of {parts} annotations that have more; use --segmentation polygon"
    if any(image.depth == 16 for image in images.values()):
        refused["torchvision"] = _WHITE
    remarks = {"supervision": "rounds polygons to pixels; --segmentation rle is exact"} if polygons else {}
    return _loaders("coco", refused, remarks), faults


def _yolo(folder: Path, rows: Sequence[Row], images: dict[str, _Image], _before: record.Record) -> Found:
    path = files.inside(folder, yolo.DATA)
    if not path.is_file():
        return [], [f"{path}: missing"]
    text = path.read_text(encoding="utf-8", errors="replace")
    classes = len(re.findall(r"^  \d+: ", text, re.MULTILINE))
    faults = []
    for row in rows:
        fault = _labels_fault(files.inside(folder, yolo.label(row.image)), classes)
        faults += [fault] if fault else []
    present = {str(each.relative_to(folder).as_posix()) for each in _pictures(folder / "images")}
    if strange := sorted(present - set(images)):
        faults.append(f"{folder / strange[0]}: not of the dataset, but would be taken for an image without defects")
    refused = {}
    if re.search(r"^path:", text, re.MULTILINE):
        refused["Ultralytics"] = f"{yolo.DATA} has a path, which is taken from the working folder; remove that line"
    elif small := next((each for each in images.values() if min(each.size) < _SMALLEST), None):
        refused["Ultralytics"] = f"takes no image below {_SMALLEST} pixels ({small.name})"
    remarks = {
        "Ultralytics": "a line one pixel wide joins the pieces of a defect; --instances pieces has none",
        "FiftyOne": "as polylines; a line one pixel wide joins the pieces of a defect",
        "supervision": "rounds polygons to pixels; --format coco --segmentation rle is exact",
    }
    return _loaders("yolo", refused, remarks), faults


def _labels_fault(path: Path, classes: int) -> str:
    if not path.is_file():
        return f"{path}: missing"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            category, *values = line.split()
            points = np.array(values, np.float64)
            fits = 0 <= int(category) < classes and len(points) >= 6 and len(points) % 2 == 0
            if not fits or points.min() < 0 or points.max() > 1:
                return f"{path}: line {number} is no polygon of a known class"
        except ValueError:
            return f"{path}: line {number} cannot be read"
    return "" if lines else f"{path}: empty, so its image counts as one without defects"


def _mvtec(folder: Path, rows: Sequence[Row], images: dict[str, _Image], before: record.Record) -> Found:
    refused = ""
    where = str(folder.resolve())
    if not (where.isascii() and where.isprintable()):
        refused = f"the path {where} has other characters than printable ASCII; move the dataset"
    if any(image.depth == 16 for image in images.values()):
        refused = _WHITE
    products = sorted({Path(row.image).parts[0] for row in rows})
    for product in products:
        if not any(name.startswith(f"{product}/train/good/") for name in before.normals):
            refused = f"no normals in {product}/train/good; it cannot train without"
    faults = []
    known = {*images, *(row.mask for row in rows)}
    for product in products:
        for path in sorted(_pictures(folder / product)):
            if path.relative_to(folder).as_posix() not in known:
                faults.append(f"{path}: not of the dataset, but would be read with it")
    return _loaders("mvtec", {"anomalib": refused} if refused else {}), faults


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif"))
