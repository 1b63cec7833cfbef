"""The mask of an image as files: one, or a folder of several that belong to the same image (MVTec LOCO AD)."""

from pathlib import Path

import numpy as np

from defectgen.imaging.images import ImageError, is_image_file, read_image, read_mask
from defectgen.imaging.windows import BoolArray


def mask_files(mask: Path) -> list[Path]:
    """The files of a mask: itself, or the images in its folder, sorted by name."""
    if not mask.is_dir():
        return [mask]
    return sorted(path for path in mask.iterdir() if is_image_file(path) and not path.name.startswith("."))


def read_masks(mask: Path) -> BoolArray:
    """Decode a mask, [H, W], from a file, or united from all files of a folder.

    Raises:
        ImageError: as `images.read_mask`, or the masks of a folder differ in size.
    """
    if not mask.is_dir():
        return read_mask(mask)
    first, *others = mask_files(mask)
    united = _read_part(first)
    for path in others:
        part = _read_part(path)
        if part.shape != united.shape:
            raise ImageError(path, f"is {part.shape[1]}x{part.shape[0]}, but {first.name} beside it is "
                             f"{united.shape[1]}x{united.shape[0]}")  # fmt: skip
        united = united | part
    return united


def _read_part(path: Path) -> BoolArray:
    """Decode one of several masks. In MVTec LOCO AD its gray value is not 255, but the number of the kind of defect."""
    colors = read_image(path).colors
    values = np.unique(colors)
    if len(values) == 2 and values[0] == 0 and (colors == colors[..., :1]).all():
        return np.asarray(colors[..., 0] != 0)
    return read_mask(path)
