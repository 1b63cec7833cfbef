"""The mask of an image: a file, a folder of several that belong together (MVTec LOCO AD), or shapes of an annotation.

Whoever needs the pixels calls `read_masks`; everybody else only hands the mask on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectgen import files
from defectgen.imaging.images import DecodedImage, ImageError, is_image_file, read_image, read_mask
from defectgen.imaging.shapes import Draw
from defectgen.imaging.windows import BoolArray

Value = int | tuple[int, int, int]
"""A gray value or palette index, or an RGB color, of a mask of several categories."""


@dataclass(frozen=True)
class PickedMask:
    """What counts of a mask file, or of a folder of them: the pixels of some `values`, or those of a `threshold` up."""

    path: Path
    values: tuple[Value, ...] = ()
    threshold: int = 1
    """Used without `values`."""

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class DrawnMask:
    """The mask of an image for a category, drawn from the shapes of an annotation file."""

    file: Path
    image: str
    category: str
    size: tuple[int, int] | None = None
    """Height and width of the image by the annotation file; None if it does not say, until `fitted` sets it."""
    displayed: bool = False
    """Whether the format's owner turns images by their EXIF orientation before they are annotated."""
    shapes: tuple[Draw, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file} ({self.category})"


Mask = Path | PickedMask | DrawnMask


def fitted(mask: Mask, image: DecodedImage) -> Mask:
    """A mask for an image that has been decoded.

    Raises:
        ImageError: the annotation is of an image of another size.
    """
    if not isinstance(mask, DrawnMask):
        return mask
    size = (image.height, image.width)
    if mask.size not in (None, size):
        height, width = mask.size
        advice = (
            "annotate it as it is shown, turned by its EXIF orientation"
            if mask.size == size[::-1]
            else "annotate the image that is used"
        )
        raise ImageError(
            mask.file, f"is of an image of {width}x{height} pixels, but this one has {size[1]}x{size[0]}; {advice}"
        )
    return replace(mask, size=size)


def mask_files(mask: Mask) -> list[Path]:
    """The files of a mask: itself, or the images in its folder, sorted by name; or the annotation file."""
    if isinstance(mask, DrawnMask):
        return [mask.file]
    path = mask.path if isinstance(mask, PickedMask) else mask
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.iterdir() if is_image_file(each) and not each.name.startswith("."))


def digests(mask: Mask) -> list[str]:
    """The SHA-256 of each file of a mask, and of what counts in it; or of its pixels, if it is drawn."""
    if isinstance(mask, DrawnMask):
        return [hashlib.sha256(np.packbits(read_masks(mask)).tobytes()).hexdigest()]
    counts = [] if isinstance(mask, Path) else [repr((mask.values, mask.threshold)).encode()]
    return [*map(files.sha256, mask_files(mask)), *(hashlib.sha256(each).hexdigest() for each in counts)]


def read_masks(mask: Mask) -> BoolArray:
    """Decode or draw a mask, [H, W]. That of a folder unites all its files.

    Raises:
        ImageError: as `images.read_mask`, the masks of a folder differ in size, or a shape cannot be drawn.
    """
    if isinstance(mask, DrawnMask):
        return _draw(mask)
    if isinstance(mask, Path) and not mask.is_dir():
        return read_mask(mask)
    first, *others = mask_files(mask)
    united = _read_part(first, mask)
    for path in others:
        part = _read_part(path, mask)
        if part.shape != united.shape:
            raise ImageError(path, f"is {part.shape[1]}x{part.shape[0]}, but {first.name} beside it is "
                             f"{united.shape[1]}x{united.shape[0]}")  # fmt: skip
        united = united | part
    return united


def unnamed_values(mask: Path, values: Sequence[Value]) -> list[Value]:
    """The values in the files of a mask other than some, and than 0 and black, which mark nothing.

    Raises:
        ImageError: as `images.read_image`.
    """
    found: set[Value] = set()
    for path in mask_files(mask):
        pixels = _pixels(path)
        rest = pixels[~_valued(path, pixels, values) & pixels.any(axis=2)]
        for value in np.unique(rest, axis=0).tolist():
            found.add(value[0] if len(set(value)) == 1 else tuple(value))
    return sorted(found, key=str)


def _draw(mask: DrawnMask) -> BoolArray:
    assert mask.size is not None  # `fitted` has set it
    united = np.zeros(mask.size, np.bool_)
    for draw in mask.shapes:
        try:
            united |= draw(*mask.size)
        except ValueError as error:
            raise ImageError(mask.file, f"{mask.image}: {error}") from error
    return united


def _read_part(path: Path, mask: Path | PickedMask) -> BoolArray:
    """Decode a file of a mask. In MVTec LOCO AD its gray value is not 255, but the number of the kind of defect."""
    if isinstance(mask, PickedMask):
        return _valued(path, _pixels(path), mask.values) if mask.values else read_mask(path, mask.threshold)
    colors = read_image(path).colors
    values = np.unique(colors)
    if len(values) == 2 and values[0] == 0 and (colors == colors[..., :1]).all():
        return np.asarray(colors[..., 0] != 0)
    return read_mask(path)


def _valued(path: Path, pixels: NDArray[Any], values: Sequence[Value]) -> BoolArray:
    """Where a mask has some values, [H, W]. `pixels` are those of `_pixels`."""
    marked = np.zeros(pixels.shape[:2], np.bool_)
    for value in values:
        colors = read_image(path).colors if isinstance(value, tuple) and pixels.shape[2] == 1 else pixels
        marked |= (colors == np.asarray(value)).all(axis=2)
    return marked


def _pixels(path: Path) -> NDArray[Any]:
    """The values of a mask, [H, W, 1 or 3]: gray, RGB, or the indices of a palette."""
    decoded = read_image(path)
    if decoded.depth == 8:
        with Image.open(path) as image:
            if image.mode == "P" and image.size == (decoded.width, decoded.height):
                return np.asarray(image)[..., None]
    return decoded.colors
