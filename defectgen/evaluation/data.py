"""Reads the images that are evaluated, real and synthetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import manifest, record
from defectgen.errors import BadInputError
from defectgen.folders import NORMAL, Catalog, read_defects, read_normals
from defectgen.imaging.images import DecodedImage, read_image
from defectgen.imaging.mask_files import Mask, read_masks
from defectgen.imaging.windows import BoolArray, BoundedCache, FloatArray, Limits, normalize, value_range
from defectgen.marking import MASKS, Marking

_MAX_SIDE = 512  # pixels; images with a longer side are reduced to it
_CACHE_BYTES = 1 << 28  # of images in memory, for each set


@dataclass(frozen=True)
class LabeledImage:
    """A real image or a sample, with its category and its mask, if it has one.

    `made_of` are the SHA-256 of the images that a sample was made from, as its manifest records them; `source` is the
    image that it was made on.
    """

    path: Path
    category: str
    mask: Mask | None = None
    made_of: frozenset[str] = frozenset()
    source: Path | None = None

    @property
    def sha256(self) -> str:
        return _sha256(self.path)


@dataclass(frozen=True)
class Found:
    """The images of a folder, the files that cannot be used, with the reason, and what is odd about the others."""

    images: tuple[LabeledImage, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Synthetic:
    """A dataset to evaluate. `seen` are the SHA-256 of the images that its model was trained on or its gate used."""

    images: tuple[LabeledImage, ...]
    seen: frozenset[str] = frozenset()
    trained_on_known: bool = False
    traceable: bool = False
    """Whether the manifest records the images that each sample was made from."""
    made_by_model: bool = False
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    path: Path = Path()

    @property
    def used(self) -> frozenset[str]:
        """The SHA-256 of every image that was used to make the dataset."""
        return self.seen.union(*(image.made_of for image in self.images))


@lru_cache(maxsize=4096)
def _sha256(path: Path) -> str:
    return files.sha256(path)


def read_real(folder: Path, normals: Path | None = None, *, marking: Marking = MASKS, apart: bool = False) -> Found:
    """Read defects, all with masks, and normals: an MVTec AD category, folders `defects` and `normals`, or one of each.

    With `apart` the folder is a held-out test set: its normals must be inside it, not beside it. With annotations, all
    may be in one folder.

    Raises:
        BadInputError: no normals, or no usable defects.
    """
    annotated = marking.annotations is not None
    names = ("defects",) if annotated else ("defects", "test")
    inner = next((folder / name for name in names if (folder / name).is_dir()), folder)
    parents = (folder,) if apart else (folder, folder.parent)
    candidates = (folder / "train" / "good", *(each / name for each in parents for name in ("normals", "good")))
    found = normals or next((path for path in candidates if path.is_dir()), inner if annotated else None)
    if found is None:
        if apart:
            raise BadInputError(f"{folder}: no normals in it; a test folder needs defects, masks and normals")
        raise BadInputError(f"{folder}: no normals beside the defects; give their folder with --normals")
    defects = read_defects(inner, marking=marking, normals=found)
    return _from_catalog(Catalog.of([defects, read_normals(found, marking=marking, defects=inner)]))


def _from_catalog(catalog: Catalog) -> Found:
    images = tuple(LabeledImage(each.path, each.category, each.mask) for each in catalog.images)
    return Found(images, tuple(f"{each.path}: {each.reason}" for each in catalog.skipped), catalog.warnings)


def read_synthetic(folder: Path) -> Synthetic:
    """Read a dataset made by defectgen from its manifest, or any folder of defects with masks.

    Raises:
        BadInputError: the folder is neither, or its manifest is damaged or names files that are not inside.
    """
    file = files.inside(folder, manifest.NAME)
    if not file.is_file():
        found = _from_catalog(read_defects(folder))
        return Synthetic(found.images, skipped=found.skipped, warnings=found.warnings)
    images, by_model, traceable, missing = [], False, True, 0
    incomplete: list[BadInputError] = []
    text = file.read_bytes()
    last = text.rfind(b"\n") + 1  # a killed run leaves half a line
    for row in chain(manifest.parse(file, text[:last]), manifest.parse(file, text[last:], incomplete.append)):
        by_model = by_model or row.model is not None
        traceable = traceable and row.traceable
        image, mask = files.inside(folder, row.image), files.inside(folder, row.mask)
        normal = None if row.normal is None else files.inside(folder, row.normal)
        source = normal if row.source is None else manifest.located(folder, row.source)
        if image.is_file() and mask.is_file():
            images.append(LabeledImage(image, row.category, mask, row.used_photographs, source))
        else:
            missing += 1
    if not images:
        raise BadInputError(f"{file}: no samples")
    saved = record.read(folder)
    missing += len(incomplete)
    skipped = (f"{folder}: {missing} samples of its manifest are missing",) if missing else ()
    return Synthetic(
        tuple(images), frozenset((*saved.trained_on, *saved.gated_by)), bool(saved.trained_on), traceable, by_model,
        skipped,
    )  # fmt: skip


def load_image(path: Path, limits: Limits | None = None) -> NDArray[np.float32]:
    """Read an image file and convert it with `to_model_range`; `limits` are those of 16-bit images."""
    image = read_image(path)
    return to_model_range(image, limits if image.depth == 16 else None)


def to_model_range(image: DecodedImage, limits: Limits | None = None) -> NDArray[np.float32]:
    """Convert an image to [C, H, W] in [-1, 1], reduced to at most 512 pixels on the longer side.

    Args:
        limits: the pixel values that become -1 and 1; None means the image's own value range. Two images that are
            compared need the same limits.
    """
    pixels = image.pixels.astype(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., : image.channels]
    low_high, size = limits or value_range(image), _evaluated_size(image.height, image.width)
    if size != (image.width, image.height):
        smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(smaller, np.float32).reshape(size[1], size[0], -1)
    return normalize(pixels, low_high, image.channels)


def load_mask(mask: Mask | None, size: tuple[int, int]) -> BoolArray:
    """Read a mask and resize it to `size` (height, width); None is an empty one."""
    return np.zeros(size, np.bool_) if mask is None else resize_mask(read_masks(mask), size)


def resize_mask(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """Resize a mask to `size` (height, width)."""
    if mask.shape == size:
        return mask
    small = np.asarray(cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA))
    return small > min(0.25, float(small.max()) / 2)  # keeps at least one pixel of the smallest defect


def _evaluated_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) at which an image is evaluated."""
    scale = min(1.0, _MAX_SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


class Example:
    """An image for the networks: `x` [C, H, W] in [-1, 1] and its `mask` [H, W], loaded on access.

    `label` is 0 for normals, and 1 + the category's index for defects; `synthetic` is whether the image is a sample.
    """

    def __init__(
        self, load: Callable[[], tuple[FloatArray, BoolArray]], label: int, *, synthetic: bool = False
    ) -> None:
        self._load = load
        self.label = label
        self.synthetic = synthetic

    @classmethod
    def of(cls, x: FloatArray, mask: BoolArray, label: int, *, synthetic: bool = False) -> "Example":
        """An example from arrays in memory."""
        return cls(lambda: (x, mask), label, synthetic=synthetic)

    @property
    def x(self) -> FloatArray:
        return self._load()[0]

    @property
    def mask(self) -> BoolArray:
        return self._load()[1]

    def gray(self) -> "Example":
        """The same in gray, with one channel."""

        def load() -> tuple[FloatArray, BoolArray]:
            x, mask = self._load()
            return x.mean(axis=0, keepdims=True), mask

        return Example(load, self.label, synthetic=self.synthetic)


def _load(limits: Limits | None, files_of: tuple[Path, Mask | None]) -> tuple[FloatArray, BoolArray]:
    """An image and its mask."""
    path, mask = files_of
    x = load_image(path, limits)
    return x, load_mask(mask, (x.shape[1], x.shape[2]))


def load_examples(
    images: Sequence[LabeledImage], categories: Sequence[str], *, synthetic: bool = False,
    limits: Limits | None = None,
) -> list[Example]:  # fmt: skip
    """Images as examples: label 0 for normals, then the categories in order. They share a cache of 256 MiB.

    `limits` is the range of 16-bit images: by its own, an image with a bright defect is darker than one without.
    """
    cache = BoundedCache(partial(_load, limits), lambda loaded: loaded[0].nbytes + loaded[1].nbytes, _CACHE_BYTES)
    return [
        Example(
            partial(cache.read, (image.path, image.mask)),
            0 if image.category == NORMAL else 1 + categories.index(image.category),
            synthetic=synthetic,
        )
        for image in images
    ]


def to_common_channels(*sets: Sequence[Example]) -> list[list[Example]]:
    """Convert all to gray if any is gray, so that no network can recognize the origin of an image by its color."""
    if len({example.x.shape[0] for examples in sets for example in examples}) == 1:
        return [list(examples) for examples in sets]
    return [[each.gray() for each in examples] for examples in sets]
