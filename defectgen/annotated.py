"""What annotations say about the images of a folder: their defects by category, and which ones are free of any."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from defectgen.annotations import LINE_WIDTH, Annotation, Shape, homes, match
from defectgen.errors import BadInputError
from defectgen.imaging.mask_files import DrawnMask
from defectgen.marking import Marking
from defectgen.mask_matching import MASK_FOLDERS, about, image_files, listed, normalized, some

MANIFEST: Final = "manifest.jsonl"
"""The file of a dataset of our own that tells the image, the mask and the category of each sample."""

_OF_MASKS = (*MASK_FOLDERS, "SegmentationClass", "SegmentationObject")


@dataclass(frozen=True)
class AnnotatedFolder:
    """What annotations say about the images in a folder and below."""

    paths: list[Path]
    listed: dict[Path, list[Annotation]]
    """The annotations of each image that has any, which may be without shapes: it is free of defects."""
    missing: list[Annotation]
    """Those with shapes whose image is nowhere."""

    def shapes(self, path: Path) -> dict[str, list[Shape]]:
        """The shapes on an image by category."""
        found: dict[str, list[Shape]] = {}
        for annotation in self.listed.get(path, ()):
            for shape in annotation.shapes:
                found.setdefault(normalized(shape.label), []).append(shape)
        return found

    @property
    def free(self) -> list[Path]:
        """The images that are listed as free of defects."""
        return [path for path, of in self.listed.items() if not any(each.shapes or each.unread for each in of)]

    @property
    def unlisted(self) -> list[Path]:
        """The images that have no annotation."""
        return [path for path in self.paths if path not in self.listed]


def read_folder(folder: Path, marking: Marking, but: Path | None = None) -> AnnotatedFolder:
    """What the annotations say about a folder, without the folder `but` in it."""
    paths = list(_all_images(folder, but and but.resolve()))
    found, unused = match(marking.read.images, paths)
    return AnnotatedFolder(paths, found, [each for each in unused if each.shapes and not homes(each)])


def _all_images(folder: Path, but: Path | None) -> Iterator[Path]:
    """The images in a folder and below, without those in folders of masks."""
    if not (folder / MANIFEST).is_file():  # beside it lies the sheet of a dataset
        yield from image_files(folder)
    for inner in listed(folder, lambda path: path.is_dir() and path.name not in _OF_MASKS and not path.is_symlink()):
        if inner.resolve() != but:
            yield from _all_images(inner, but)


def free_of_defects(folder: Path, marking: Marking) -> list[Path]:
    """The images in a folder and below that are listed as free of defects. Raises BadInputError if there are none."""
    free = read_folder(folder, marking).free
    if not free:
        raise BadInputError(
            f"{folder}: {marking.annotations} lists no image in it as free of defects; give a folder of normals"
        )
    return free


def without_marked(paths: Sequence[Path], marking: Marking, defects: Path | None) -> tuple[list[Path], list[str]]:
    """The normal images without annotated defects, and a line about the others.

    An annotation of an image in the folder `defects` is not of a normal, which may have the same name.

    Raises:
        BadInputError: none is left.
    """
    of_others = match(marking.read.images, list(_all_images(defects, None)))[1] if defects else marking.read.images
    found, _ = match(of_others, paths)
    marked = [path for path in paths if any(each.shapes for each in found.get(path, ()))]
    if len(marked) == len(paths):
        raise BadInputError(f"{paths[0].parent}: all its images have annotated defects; give a folder of normals")
    one, many = "image has annotated defects", "images have annotated defects"
    lines = [about(marked, one, many, "left out of the normals")] if marked else []
    return [path for path in paths if path not in marked], lines


def drawn_mask(of: Sequence[Annotation], name: str, shapes: Sequence[Shape], marking: Marking) -> DrawnMask:
    """The mask of an image for a category."""
    first = next(each for each in of if each.shapes)
    size = next((each.size for each in of if each.size is not None), None)
    return DrawnMask(
        first.file, next(filter(None, first.names)), name, size, marking.read.displayed, tuple(s.draw for s in shapes)
    )


def about_images(found: AnnotatedFolder, folder: Path, marking: Marking, *, shared: bool) -> list[str]:
    """Lines about images without annotations, and annotations without an image."""
    lines = []
    if found.unlisted:
        one, many = "image has no annotation", "images have no annotation"
        lines.append(about(found.unlisted, one, many, "left out"))
    if found.free and not shared:
        one, many = "image is annotated as free of defects", "images are annotated as free of defects"
        lines.append(about(found.free, one, many, "left out; give them as normals to use them"))
    if found.missing:
        names = some(next(filter(None, each.names)) for each in found.missing)
        are = "annotated image is" if len(found.missing) == 1 else "annotated images are"
        lines.append(f"{marking.annotations}: {len(found.missing)} {are} not in {folder} ({names})")
    return lines


def about_shapes(shapes: Sequence[Shape], marking: Marking) -> list[str]:
    """Lines about shapes that do not follow the outline of a defect."""
    boxes, lines = (sum(shape.kind == kind for shape in shapes) for kind in ("box", "line"))
    found = []
    if boxes:
        are = "1 box is used as a mask" if boxes == 1 else f"{boxes} boxes are used as masks"
        found.append(f"{marking.annotations}: {are}, with all the ground in it; outline defects for better masks")
    if lines:
        are = "1 line or point is" if lines == 1 else f"{lines} lines and points are"
        found.append(f"{marking.annotations}: {are} drawn {LINE_WIDTH}; outline defects for better masks")
    return found


def none_annotated(folder: Path, marking: Marking, found: AnnotatedFolder) -> BadInputError:
    """The error for a folder in which no image has an annotated defect."""
    if not found.paths:
        return BadInputError(f"{folder}: no images in it or below")
    named = next((name for each in marking.read.images for name in each.names if name), "none")
    if found.listed:
        return BadInputError(f"{folder}: {marking.annotations} marks no defect on its images")
    return BadInputError(
        f"{folder}: {marking.annotations} annotates none of its images; it names {named}, the folder has "
        f"{found.paths[0].name}"
    )
