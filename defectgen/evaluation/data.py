"""What is evaluated: photographs with their masks and categories, from folders and from datasets; and their split."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import manifest
from defectgen.errors import BadInputError, UsageError
from defectgen.folders import NORMAL, Catalog, read_defects, read_normals
from defectgen.imaging.images import DecodedImage, read_image, read_mask
from defectgen.imaging.windows import BoolArray, FloatArray, normalize, value_range

_SIDE = 512  # pixels that the longer side of a photograph is evaluated at, at most
_MEMORY = 1 << 28  # bytes of images, of each set, that are held at a time
_GRID = 8  # blocks a side of what two photographs are compared by
_ENOUGH = 8  # photographs, to know what all of a kind look like
_ALIKE = 0.97  # correlation from which on two photographs are near-duplicates
_RECORD = "dataset.json"


@dataclass(frozen=True)
class LabeledImage:
    """A photograph or a sample: where it lies, its mask if it is known to be one, and what made it, if anything did.

    `made_of` are the SHA-256 of the photographs that went into it, by what is written of it.
    """

    path: Path
    category: str
    mask: Path | None = None
    made_of: frozenset[str] = frozenset()
    source: Path | None = None

    @property
    def sha256(self) -> str:
        return _sha256(self.path)


@dataclass(frozen=True)
class Found:
    """What a folder holds, and which files cannot be used, with the reason."""

    images: tuple[LabeledImage, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Real:
    """The real photographs, in two parts that share no near-duplicate."""

    train: tuple[LabeledImage, ...]
    test: tuple[LabeledImage, ...]


@dataclass(frozen=True)
class Synthetic:
    """A dataset to evaluate. `seen` are the SHA-256 of what its model was trained on, and its gate compared with."""

    images: tuple[LabeledImage, ...]
    seen: frozenset[str] = frozenset()
    trained_on_known: bool = False
    traceable: bool = False
    """Whether it is written down what each sample was made of."""
    made_by_model: bool = False
    skipped: tuple[str, ...] = ()
    path: Path = Path()

    @property
    def used(self) -> frozenset[str]:
        """Every photograph that went into it, in one way or another."""
        return self.seen.union(*(image.made_of for image in self.images))


@lru_cache(maxsize=4096)
def _sha256(path: Path) -> str:
    return files.sha256(path)


def read_real(folder: Path, normals: Path | None = None, *, apart: bool = False) -> Found:
    """Defects, all with masks, and normals: an MVTec AD category, folders `defects` and `normals`, or one each.

    Those of a test, kept `apart`, lie in one folder: what lies beside it is another's.

    Raises:
        BadInputError: no normals, or no usable defects.
    """
    inner = next((folder / name for name in ("defects", "test") if (folder / name).is_dir()), folder)
    around = (folder,) if apart else (folder, folder.parent)
    beside = (folder / "train" / "good", *(each / name for each in around for name in ("normals", "good")))
    found = normals or next((path for path in beside if path.is_dir()), None)
    if found is None:
        if apart:
            raise BadInputError(f"{folder}: no normals in it; put defects, masks and normals there to test on")
        raise BadInputError(f"{folder}: no normals beside the defects; name their folder with --normals")
    return _found(Catalog.of([read_defects(inner), read_normals(found)]))


def _found(catalog: Catalog) -> Found:
    images = tuple(LabeledImage(sample.path, sample.category, sample.mask) for sample in catalog.images)
    return Found(images, tuple(f"{each.path}: {each.reason}" for each in catalog.skipped))


def read_synthetic(folder: Path) -> Synthetic:
    """A dataset of ours, by its manifest, or any folder of defects with masks.

    Raises:
        BadInputError: neither; or a manifest that is damaged.
    """
    file = folder / manifest.NAME
    if not file.is_file():
        found = _found(read_defects(folder))
        return Synthetic(found.images, skipped=found.skipped)
    images, by_model, traceable, gone = [], False, True, 0
    for row in manifest.parse(file, file.read_bytes()):
        by_model = by_model or row.model is not None
        traceable = traceable and row.traceable
        image, mask = folder / row.image, folder / row.mask
        source = Path(row.source) if row.source is not None else folder / row.normal if row.normal is not None else None
        if image.is_file() and mask.is_file():
            images.append(LabeledImage(image, row.category, mask, row.used_photographs, source))
        else:
            gone += 1
    if not images:
        raise BadInputError(f"{file}: holds no sample")
    record = folder / _RECORD
    saved = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    seen_before = frozenset((*saved.get("trained_on", ()), *saved.get("gated_by", ())))
    skipped = (f"{folder}: {gone} samples of its manifest are gone",) if gone else ()
    return Synthetic(tuple(images), seen_before, bool(saved.get("trained_on")), traceable, by_model, skipped)


def split(real: Sequence[LabeledImage], synthetic: Synthetic, seed: int, part: float = 0.4) -> Real:
    """The real photographs apart: near-duplicates on one side, what synthetic ones were made of in training.

    What was not used is drawn, each category for itself, until `part` of the category is in the test.

    Raises:
        UsageError: nothing is left to test on.
    """
    groups = _groups(real)
    used, rng = synthetic.used, np.random.default_rng(seed)
    taken = {group for image, group in zip(real, groups, strict=True) if image.sha256 in used}
    test: set[int] = set()
    for category in sorted({image.category for image in real}):
        mine = [group for image, group in zip(real, groups, strict=True) if image.category == category]
        wanted, free = part * len(mine), [group for group in dict.fromkeys(mine) if group not in taken]
        count = sum(group in test for group in mine)
        for group in rng.permutation(np.array(free, int)).tolist():
            if count >= wanted:
                break
            if group not in test and len(set(mine) - test) > 1:  # one is left to train on
                test.add(group)
                count += mine.count(group)
    sides = [
        tuple(image for image, group in zip(real, groups, strict=True) if (group in test) == tested)
        for tested in (False, True)
    ]
    check_sides(Real(*sides))
    return Real(*sides)


def check_sides(real: Real) -> None:
    """Both sides need normals and defects.

    Raises:
        UsageError: one has none.
    """
    for name, images in (("train on", real.train), ("test on", real.test)):
        for what, there in (
            ("normals", any(image.category == NORMAL for image in images)),
            ("defects", any(image.category != NORMAL for image in images)),
        ):
            if not there:
                raise UsageError(
                    f"no real {what} are left to {name}: near-duplicates stay on one side, and the synthetic images "
                    "were made of the others; name held-out images with --test"
                )


def remove_test_leakage(synthetic: Synthetic, test: Sequence[LabeledImage]) -> Synthetic:
    """A dataset without the samples that look like a test photograph; they were made of one like it.

    Raises:
        BadInputError: a sample was made of a test photograph, or is one; or most of them look like one.
    """
    used = synthetic.used | {image.sha256 for image in synthetic.images}
    seen = [image.path for image in test if image.sha256 in used]
    if seen:
        raise BadInputError(
            f"test-set leakage: {len(seen)} of {len(test)} test images were used to make the dataset (first: "
            f"{seen[0]}); hold the test out from what defectgen train, synthesize, transfer and compose use"
        )
    twins = near_duplicates(synthetic.images, test)
    if sum(twins) > len(twins) / 2:
        first = next(image.path for image, twin in zip(synthetic.images, twins, strict=True) if twin)
        raise BadInputError(
            f"test-set leakage: {sum(twins)} of {len(twins)} synthetic images look like a test image (first: {first}); "
            "hold the test out from what they are made of"
        )
    images = tuple(image for image, twin in zip(synthetic.images, twins, strict=True) if not twin)
    return replace(synthetic, images=images)


def near_duplicates(images: Sequence[LabeledImage], others: Sequence[LabeledImage]) -> list[bool]:
    """For each image whether one of the others is a near-duplicate of it."""
    found = _descriptors([*images, *others])
    ours, theirs = found[: len(images)], found[len(images) :]
    return [bool((theirs @ row).max(initial=-1) > _ALIKE) for row in ours]


def _groups(images: Sequence[LabeledImage]) -> list[int]:
    """For each the number of its group of near-duplicates: the lowest index among them."""
    descriptors = _descriptors(images)
    group = np.arange(len(images))
    for i in range(1, len(images)):
        for j in np.flatnonzero(descriptors[:i] @ descriptors[i] > _ALIKE):
            group[group == group[i]] = group[j]
    return [int(each) for each in group]


def _descriptors(images: Sequence[LabeledImage]) -> NDArray[np.float32]:
    """What each looks like from afar, apart from what all look like: photographs of one part in one place are no
    duplicates. Vectors of length 1."""
    if not images:
        return np.zeros((0, 1), np.float32)
    found = np.stack([_descriptor(image.path) for image in images])
    if len(found) >= _ENOUGH:
        found = found - found.mean(axis=0)
    return np.asarray(found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-6), np.float32)


def _descriptor(path: Path) -> NDArray[np.float32]:
    """What a photograph looks like from afar, brightness and contrast aside."""
    gray = load_image(path).mean(axis=0)
    small = cv2.resize(gray, (2 * _GRID, 2 * _GRID), interpolation=cv2.INTER_AREA)
    fine = cv2.resize(gray - cv2.GaussianBlur(gray, (0, 0), 8), (4 * _GRID, 4 * _GRID), interpolation=cv2.INTER_AREA)
    parts = [(each - each.mean()).ravel() for each in (small, fine)]
    return np.concatenate([part / (np.linalg.norm(part) + 1e-6) for part in parts]).astype(np.float32)


def load_image(path: Path) -> NDArray[np.float32]:
    """As `to_model_range`, from a file."""
    return to_model_range(read_image(path))


def to_model_range(photograph: DecodedImage, tones: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """A photograph as the evaluation sees it: [C, H, W] in [-1, 1], at its own resolution or 512 pixels long.

    `tones` become -1 and 1: its own, or those of another that it is compared with.
    """
    pixels = photograph.pixels.astype(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., : photograph.channels]
    low_high, size = tones or value_range(photograph), _size(photograph.height, photograph.width)
    if size != (photograph.width, photograph.height):
        smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(smaller, np.float32).reshape(size[1], size[0], -1)
    return normalize(pixels, low_high, photograph.channels)


def load_mask(path: Path | None, size: tuple[int, int]) -> BoolArray:
    """A mask at the size [H, W] that its photograph is seen at; none marks nothing."""
    return np.zeros(size, np.bool_) if path is None else resize_mask(read_mask(path), size)


def resize_mask(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """A mask at another size [H, W]."""
    if mask.shape == size:
        return mask
    small = np.asarray(cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA))
    return small > min(0.25, float(small.max()) / 2)  # the smallest defect leaves a trace


def _size(height: int, width: int) -> tuple[int, int]:
    """(width, height) at which a photograph is seen."""
    scale = min(1.0, _SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


class Example:
    """An image as networks see it: `x` [C, H, W] in [-1, 1] and its `mask` [H, W], read when they are asked for.

    `label` is 0 for normals, then the category's place; `synthetic` says whether it was made.
    """

    def __init__(
        self, load: Callable[[], tuple[FloatArray, BoolArray]], label: int, *, synthetic: bool = False
    ) -> None:
        self._load = load
        self.label = label
        self.synthetic = synthetic

    @classmethod
    def of(cls, x: FloatArray, mask: BoolArray, label: int, *, synthetic: bool = False) -> "Example":
        """One that is in memory."""
        return cls(lambda: (x, mask), label, synthetic=synthetic)

    @property
    def x(self) -> FloatArray:
        return self._load()[0]

    @property
    def mask(self) -> BoolArray:
        return self._load()[1]

    def gray(self) -> "Example":
        """The same without colors."""

        def load() -> tuple[FloatArray, BoolArray]:
            x, mask = self._load()
            return x.mean(axis=0, keepdims=True), mask

        return Example(load, self.label, synthetic=self.synthetic)


class _Loaded:
    """Images and masks in memory, up to a limit, the last used longest. Safe to share among threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[tuple[Path, Path | None], tuple[FloatArray, BoolArray]] = OrderedDict()
        self._lock = Lock()

    def get(self, path: Path, mask: Path | None) -> tuple[FloatArray, BoolArray]:
        key = (path, mask)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        x = load_image(path)
        found = x, load_mask(mask, (x.shape[1], x.shape[2]))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._bytes += x.nbytes + found[1].nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                _, (old, its_mask) = self._kept.popitem(last=False)
                self._bytes -= old.nbytes + its_mask.nbytes
        return found


def load_examples(
    images: Sequence[LabeledImage], categories: Sequence[str], *, synthetic: bool = False
) -> list[Example]:
    """Images with their classes: 0 the normals, then the categories in order. They share a gigabyte of memory."""
    store = _Loaded(_MEMORY)
    return [
        Example(
            partial(store.get, image.path, image.mask),
            0 if image.category == NORMAL else 1 + categories.index(image.category),
            synthetic=synthetic,
        )
        for image in images
    ]


def to_common_channels(*sets: Sequence[Example]) -> list[list[Example]]:
    """All in gray, if any of them is: so that no network can tell where an image comes from by its color."""
    if len({example.x.shape[0] for examples in sets for example in examples}) == 1:
        return [list(examples) for examples in sets]
    return [[each.gray() for each in examples] for examples in sets]
