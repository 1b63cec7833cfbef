"""Reads annotations of the common tools: which shapes are on which image, and of which category.

`read` finds the files and reads them, `match` tells to which images they belong, and `beside` says what lies among
images without being read. Each format has a module with `NAME`, `DISPLAYED`, `matches` and `read`.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Final

from defectgen.annotations import coco, cvat, labelme, voc, yolo
from defectgen.annotations.record import Annotation, Shape
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import ALIASES, OTHER_FORMATS, SUFFIXES
from defectgen.mask_matching import image_files, listed, normalized, some, stem

LINE_WIDTH: Final = "1/200 of the image's longer side wide, at least 3 pixels"
"""How lines and points are drawn (`imaging.shapes.thickness`)."""

__all__ = ["LINE_WIDTH", "Annotation", "Annotations", "Shape", "beside", "homes", "match", "read"]

_FORMATS: Final[tuple[ModuleType, ...]] = (labelme, coco, yolo, cvat, voc)
_SUFFIXES: Final = (".json", ".txt", ".xml")
_HEAD = 4096  # bytes by which a format is recognized
_NAMED = SUFFIXES | ALIASES | OTHER_FORMATS | {*_SUFFIXES}
_FOLDERS = ("labels", "annotations", "Annotations")
"""Of annotations, in or beside one of images."""
_OF_IMAGES = ("images", "jpegimages")
"""Folders of images beside which a file of annotations may lie."""


@dataclass(frozen=True)
class Annotations:
    """All annotations of one format in a file or folder, and warnings about them."""

    path: Path
    images: tuple[Annotation, ...]
    displayed: bool
    """Whether the coordinates refer to the image as EXIF turns it."""
    warnings: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted({shape.label for image in self.images for shape in image.shapes})


def read(path: Path) -> Annotations:
    """Read an annotation file, or all in a folder and below, which must have one format.

    Raises:
        UsageError: the folder has annotations of several formats.
        BadInputError: there are no annotations, or a file is damaged.
    """
    if not path.exists():
        raise BadInputError(f"--annotations {path}: no such file or folder")
    named = yolo.read_names(path) if path.is_file() and path.suffix.lower() in yolo.YAML else None
    found: dict[ModuleType, list[Annotation]] = {}
    names: dict[Path, Mapping[int, str]] = {}
    for file, reader in _files(path if named is None else path.parent):
        if reader is yolo:
            if file.parent not in names:
                names[file.parent] = named or yolo.class_names(file.parent)
            found.setdefault(reader, []).extend(yolo.read(file, names[file.parent]))
        elif annotations := reader.read(file):
            found.setdefault(reader, []).extend(annotations)
    if len(found) > 1 and not any(each.shapes or each.unread for each in found.get(yolo, ())):
        found.pop(yolo, None)  # empty text files, of whatever
    if not found:
        known = ", ".join(each.NAME for each in _FORMATS)
        unpack = " (unpack it first)" if path.suffix.lower() == ".zip" else ""
        raise BadInputError(f"--annotations {path}: no annotations{unpack}; formats that are read: {known}")
    if len(found) > 1:
        kinds = " and ".join(each.NAME for each in found)
        raise UsageError(f"--annotations {path}: holds {kinds}; give the file, or a folder of one format")
    ((reader, images),) = found.items()
    lines = []
    if reader is yolo and not all(names.values()):
        lines.append(f"{path}: no data.yaml or classes.txt names the classes; they are called class-0, class-1, ...")
    if unread := Counter(each for image in images for each in image.unread):
        lines.append(f"{path}: not read: " + some(_counted(count, what) for what, count in sorted(unread.items())))
    return Annotations(path, tuple(images), reader.DISPLAYED, tuple(lines))


def match(
    annotations: Iterable[Annotation], images: Sequence[Path]
) -> tuple[dict[Path, list[Annotation]], list[Annotation]]:
    """The annotations of each image that has any, and those that belong to none.

    An image has the name that its annotation says, or the stem, since tools convert images, and label files have it
    alone. Of several such images it is the one that lies where the annotation says, or in the folder of that name.

    Raises:
        BadInputError: it is not clear which image an annotation is of.
    """
    by_place = {path.resolve(): path for path in images}
    by_name: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_name.setdefault(normalized(path.name), []).append(path)
        by_stem.setdefault(stem(path), []).append(path)
    found: dict[Path, list[Annotation]] = {}
    unused = []
    for each in annotations:
        names = [normalized(name) for name in each.names if name]
        named = (by_name.get(PurePosixPath(name).name) or by_stem.get(_stem(name), []) for name in names)
        candidates = next(filter(None, named), [])
        if len(candidates) > 1:
            here = [by_place[path] for path in map(Path.resolve, homes(each)) if path in by_place]
            candidates = here or _nearest(candidates, each.file, names)
        if len(candidates) > 1:
            raise BadInputError(
                f"{each.file}: is {names[0]} {candidates[0]} or {candidates[1]}? Give folders without equal names"
            )
        if candidates:
            found.setdefault(candidates[0], []).append(each)
        else:
            unused.append(each)
    return found, unused


def homes(annotation: Annotation) -> list[Path]:
    """The images of an annotation where its file says, or where the owner of the format looks for them.

    They may be images that nobody gave, so only their paths may be used.
    """
    folder = annotation.file.parent
    swapped = Path(*("images" if part == "labels" else part for part in folder.parts))
    for name in filter(None, annotation.names):
        suffixes = ("",) if PurePosixPath(name).suffix.lower() in SUFFIXES else sorted(SUFFIXES)
        for place in (folder, swapped, folder / "images", folder.parent / "images"):
            if found := [path for suffix in suffixes if os.path.isfile(path := place / f"{name}{suffix}")]:
                return found
    return []


def beside(folders: Iterable[Path]) -> list[str]:
    """A line about annotations in or beside folders of images, which are not read; none if there are none."""
    counts: Counter[str] = Counter()
    seen: dict[Path, None] = {}
    for folder in folders:
        stems = {stem(path) for path in image_files(folder)}
        for place in _places(folder):
            for file, reader in _in(place) if place not in seen else ():
                if reader in (coco, cvat) or _stem(file.name) in stems:
                    counts[reader.NAME] += 1
                    seen[place] = None
    if not counts:
        return []
    what = " and ".join(f"{count} {name} {'file' if count == 1 else 'files'}" for name, count in counts.items())
    place = Path(os.path.commonpath(seen))
    lie, them = ("lies", "it") if counts.total() == 1 else ("lie", "them")
    return [
        f"{place}: {what} {lie} beside the images, not read; to use {them}, give --annotations {place} "
        "to train, compose, transfer, inspect --labels or evaluate"
    ]


def _places(folder: Path) -> list[Path]:
    """Where annotations of the images of a folder may lie: among them, and where YOLO, VOC, COCO and CVAT have them."""
    whole = folder.absolute()
    above = [parent / name for parent in (folder, folder.parent) for name in _FOLDERS]
    twins = [folder.parent.parent / name / whole.name for name in _FOLDERS]
    parent = [folder.parent] if whole.name.lower() in _OF_IMAGES else []
    return [place for place in dict.fromkeys((folder, *above, *twins, *parent)) if place.is_dir()]


def _files(path: Path) -> Iterator[tuple[Path, ModuleType]]:
    """The annotation files in a folder and below, with their readers; or a single one."""
    if path.is_file():
        yield from _recognized([path])
        return
    yield from _in(path)
    for folder in listed(path, lambda each: each.is_dir() and not each.is_symlink()):
        yield from _files(folder)


def _in(folder: Path) -> Iterator[tuple[Path, ModuleType]]:
    """The annotation files directly in a folder, with their readers."""
    yield from _recognized(listed(folder, lambda path: path.suffix.lower() in _SUFFIXES and path.is_file()))


def _recognized(paths: Iterable[Path]) -> Iterator[tuple[Path, ModuleType]]:
    for path in paths:
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD).decode("utf-8", "replace")
        except OSError as error:
            raise BadInputError(f"{path}: {error.strerror}") from error
        reader = next((each for each in _FORMATS if each.matches(path, head)), None)
        if reader is not None:
            yield path, reader


def _nearest(images: Sequence[Path], file: Path, names: Sequence[str]) -> list[Path]:
    """Those of several images whose folders agree most, from the last one up, with what an annotation says."""
    places = [Path(os.path.normpath(file.absolute().parent / name)).parent.parts for name in names]
    agreeing = [max(_agreeing(image.absolute().parent.parts, place) for place in places) for image in images]
    return [image for image, number in zip(images, agreeing, strict=True) if number == max(agreeing)]


def _agreeing(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share at their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _stem(name: str) -> str:
    """A file name without its folders and the suffix of an image or an annotation, if it has one."""
    last = PurePosixPath(normalized(name))
    return last.stem if last.suffix.lower() in _NAMED else last.name


def _counted(count: int, what: str) -> str:
    return f"{count} times {what}" if count > 1 else what
