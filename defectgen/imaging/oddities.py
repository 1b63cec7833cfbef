"""What is odd about an image or a mask that can be read: it may be a mistake, which its user should hear of."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from defectgen.imaging.images import DecodedImage
from defectgen.imaging.mask_files import DrawnMask, Mask, mask_files
from defectgen.imaging.windows import BoolArray

_COVERED, _BORDERED = 0.5, 0.75  # fractions of an image, or of each of its borders, above which it may be inverted
_SKIM = 8  # pixels between those that are looked at first


def covered(mask: BoolArray) -> float:
    """The fraction of the image that a mask marks, if that is most of it, or most of each border; else 0."""
    share = float(mask.mean())
    borders = min(float(border.mean()) for border in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    return share if share > _COVERED or borders > _BORDERED else 0.0


def is_turned_alone(path: Path, mask: Mask, image: DecodedImage) -> bool:
    """Whether an image is turned by EXIF, but its mask is not, and they have one size either way.

    Coordinates of annotations that say no size fit either way, too; `mask` is as it was before `fitted`.
    """
    turn = orientation(path)
    hidden = turn in (2, 3, 4) or (turn >= 5 and image.height == image.width)
    if isinstance(mask, DrawnMask):
        return not mask.displayed and (hidden or (turn >= 5 and mask.size is None))
    return hidden and all(orientation(each) == 1 for each in mask_files(mask))


def orientation(path: Path) -> int:
    """The EXIF orientation of an image: 1 is upright, 5 to 8 swap height and width."""
    if path.suffix.lower() == ".png" and b"eXIf" not in path.read_bytes():
        return 1  # else Pillow decodes it to find out
    with Image.open(path) as image:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turn if turn in range(1, 9) else 1


def is_transparent(image: DecodedImage) -> bool:
    """Whether an image has an alpha channel that is not opaque everywhere."""
    if image.pixels.ndim == 2 or image.pixels.shape[2] not in (2, 4):
        return False
    return bool(image.pixels[..., -1].min() < np.iinfo(image.pixels.dtype).max)


def is_bilevel(image: DecodedImage) -> bool:
    """Whether an image is black and white alone, as a mask is."""
    colors = image.colors
    for part in (colors[::_SKIM, ::_SKIM], colors):  # most images are told by a few pixels
        if not (part == part[..., :1]).all() or not np.isin(part, (0, 1, 255)).all():
            return False
    return len(values := np.unique(colors)) == 2 and values[0] == 0
