"""What is known about the images of a labeled folder: whether they are defective, their categories and true masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from defectgen.errors import BadInputError
from defectgen.finding import (
    NORMAL,
    NORMAL_FOLDERS,
    Found,
    Part,
    ProductFolders,
    find_defects,
    find_labeled,
    find_normals,
)
from defectgen.imaging.images import DecodedImage, ImageError
from defectgen.imaging.mask_files import Mask, fitted, mask_files, read_masks
from defectgen.imaging.windows import BoolArray
from defectgen.marking import MASKS, Marking
from defectgen.mask_matching import about
from defectgen.text import recorded

_PRODUCT = "product"


@dataclass(frozen=True)
class Label:
    """The label of an image. `categories` are those of its defects, and `masks` their masks, if all have one."""

    categories: tuple[str, ...]
    masks: tuple[Mask, ...] | None

    @property
    def category(self) -> str:
        """All in one text, as in a record."""
        return ";".join(self.categories) or NORMAL


class Labels:
    """The labels of images, in the order in which to inspect, and `warnings` about their folders."""

    def __init__(self, parts: Sequence[Part]) -> None:
        found: dict[Path, list[Found]] = {}
        for part in parts:
            for each in part.found:
                found.setdefault(each.path, []).append(each)
        self._labels = {path: _label(of_path) for path, of_path in found.items()}
        unused = [path for part in parts for path in part.unused]
        unmasked = [path for path, label in self._labels.items() if label.masks is None]
        self.masked = any(label.masks for label in self._labels.values())
        self.warnings = [line for part in parts for line in part.warnings]
        if unused:
            self.warnings.append(about(unused, "mask belongs to no image", "masks belong to no image"))
        if unmasked and self.masked:
            one, many = "defect image has no mask", "defect images have no mask"
            self.warnings.append(about(unmasked, one, many, "the figures of pixels leave it out"))

    @classmethod
    def of(cls, folder: Path, marking: Marking = MASKS) -> "Labels":
        """Those of a labeled folder. Raises BadInputError as `finding.find_labeled`."""
        return cls(find_labeled(folder, marking))

    @classmethod
    def known(cls, normals: Path, defects: Path | None, marking: Marking = MASKS) -> "Labels":
        """Those of a folder of flawless images, and of one of defects, if there is one.

        Raises:
            BadInputError: as `finding.find_normals` and `finding.find_defects`.
        """
        if not normals.is_dir():
            raise BadInputError(f"{normals}: no such folder")
        parts = [find_normals(normals, _PRODUCT)]
        if defects is not None:
            source = ProductFolders(product=_PRODUCT, normals=normals, defects=defects, marking=marking)
            parts.append(find_defects(source, defects, (), flawless=NORMAL_FOLDERS))
        return cls(parts)

    @property
    def paths(self) -> list[Path]:
        return list(self._labels)

    @property
    def categories(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted({name for label in self._labels.values() for name in label.categories}))

    def __getitem__(self, path: Path) -> Label:
        return self._labels[path]

    def truth(self, path: Path, photograph: DecodedImage) -> BoolArray | None:
        """The true mask of an image, [H, W]; None if it is not known, or not needed since there are no masks at all.

        Raises:
            ImageError: the mask is unreadable, empty, or of another size.
        """
        masks = self._labels[path].masks
        if masks is None or not self.masked:
            return None
        truth = np.zeros((photograph.height, photograph.width), np.bool_)
        for each in masks:
            mask, file = read_masks(fitted(each, photograph)), mask_files(each)[0]
            if mask.shape != truth.shape:
                sizes = f"{mask.shape[1]}x{mask.shape[0]}, but its image is {photograph.width}x{photograph.height}"
                raise ImageError(file, f"the mask is {sizes}")
            if not mask.any():
                raise ImageError(file, "the mask of a defect is empty")
            truth |= mask
        return truth


def _label(found: list[Found]) -> Label:
    """The label of an image from what was found of it: once for each category."""
    defects = [each for each in found if each.category != NORMAL]
    masks = tuple(each.mask for each in defects if each.mask is not None)
    categories = tuple(sorted({recorded(each.category) for each in defects}))
    return Label(categories, masks if len(masks) == len(defects) else None)
