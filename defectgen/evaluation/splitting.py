"""Splits the real images into training and test images, and keeps what is tested out of what is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation.data import LabeledImage, Synthetic, load_image
from defectgen.evaluation.rephotographed import rephotographed
from defectgen.folders import NORMAL

_GRID = 8  # descriptors have 2 and 4 times as many pixels per side
_MIN_TO_CENTER = 8  # images; fewer do not give a useful mean descriptor
_DUPLICATE = 0.97  # correlation above which two images are near-duplicates


@dataclass(frozen=True)
class Real:
    """The real images, in two parts without near-duplicates across them."""

    train: tuple[LabeledImage, ...]
    test: tuple[LabeledImage, ...]


def split(real: Sequence[LabeledImage], synthetic: Synthetic, seed: int, part: float = 0.4) -> Real:
    """Split the real images into training and test images.

    Images that were used to make a synthetic one are training images; near-duplicates, and photographs of one defect,
    stay on one side. From the others test images are drawn at random, until each category has `part` of its images in
    the test.

    Raises:
        UsageError: no images are left to test on.
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
            if group not in test and len(set(mine) - test) > 1:  # at least one is left to train on
                test.add(group)
                count += mine.count(group)
    sides = [
        tuple(image for image, group in zip(real, groups, strict=True) if (group in test) == tested)
        for tested in (False, True)
    ]
    check_sides(Real(*sides))
    return Real(*sides)


def separate(train: Sequence[LabeledImage], test: Sequence[LabeledImage], used: frozenset[str]) -> Real:
    """Training images and a held-out test without near-duplicates, and without a defect that both show.

    A test image goes if it shows a defect of an image in `used`, from which datasets were made; otherwise the training
    image goes.
    """
    again = rephotographed(test, train)
    known = np.array([image.sha256 in used for image in train], np.bool_)
    stays = ~np.asarray(again[:, known].any(axis=1))
    tested = [image for image, kept in zip(test, stays, strict=True) if kept]
    shown = np.asarray(again[stays].any(axis=0))
    duplicates = near_duplicates(train, tested)
    return Real(tuple(each for each, *out in zip(train, shown, duplicates, strict=True) if not any(out)), tuple(tested))


def check_sides(real: Real) -> None:
    """Check that both sides have normals and defects.

    Raises:
        UsageError: one of them has none.
    """
    for name, images in (("train on", real.train), ("test on", real.test)):
        for what, there in (
            ("normals", any(image.category == NORMAL for image in images)),
            ("defects", any(image.category != NORMAL for image in images)),
        ):
            if not there:
                raise UsageError(
                    f"no real {what} are left to {name}: images that were used to make the dataset are training "
                    "images, and near-duplicates and photographs of one defect stay on one side; give held-out images "
                    "of other parts with --test"
                )


def remove_test_leakage(synthetic: Synthetic, test: Sequence[LabeledImage]) -> Synthetic:
    """A dataset without the samples that are near-duplicates of a test image.

    Raises:
        BadInputError: a sample was made from a test image or is one, or most samples are near-duplicates of one.
    """
    used = synthetic.used | {image.sha256 for image in synthetic.images}
    seen = [image.path for image in test if image.sha256 in used]
    if seen:
        raise BadInputError(
            f"test-set leakage: {len(seen)} of {len(test)} test images were used to make the dataset (first: "
            f"{seen[0]}); keep test images out of what defectgen train, synthesize, transfer and compose use"
        )
    duplicates = near_duplicates(synthetic.images, test)
    if sum(duplicates) > len(duplicates) / 2:
        first = next(image.path for image, duplicate in zip(synthetic.images, duplicates, strict=True) if duplicate)
        raise BadInputError(
            f"test-set leakage: {sum(duplicates)} of {len(duplicates)} synthetic images look like a test image (first: "
            f"{first}); keep test images out of what the dataset is made from"
        )
    images = tuple(image for image, duplicate in zip(synthetic.images, duplicates, strict=True) if not duplicate)
    return replace(synthetic, images=images)


def near_duplicates(images: Sequence[LabeledImage], others: Sequence[LabeledImage]) -> list[bool]:
    """Whether each image has a near-duplicate among the others."""
    found = _descriptors([*images, *others])
    ours, theirs = found[: len(images)], found[len(images) :]
    return [bool((theirs @ row).max(initial=-1) > _DUPLICATE) for row in ours]


def _groups(images: Sequence[LabeledImage]) -> list[int]:
    """The group of each image: near-duplicates, and photographs of one defect."""
    descriptors = _descriptors(images)
    group = np.arange(len(images))
    for i in range(1, len(images)):
        (again,) = rephotographed(images[i : i + 1], images[:i])
        for j in np.flatnonzero((descriptors[:i] @ descriptors[i] > _DUPLICATE) | again):
            group[group == group[i]] = group[j]
    return [int(each) for each in group]


def _descriptors(images: Sequence[LabeledImage]) -> NDArray[np.float32]:
    """Coarse descriptors of the images, as vectors of length 1, [N, D].

    Their mean is subtracted, so that images of different parts in the same position are no near-duplicates.
    """
    if not images:
        return np.zeros((0, 1), np.float32)
    found = np.stack([_descriptor(image.path) for image in images])
    if len(found) >= _MIN_TO_CENTER:
        found = found - found.mean(axis=0)
    return np.asarray(found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-6), np.float32)


def _descriptor(path: Path) -> NDArray[np.float32]:
    """Coarse descriptor of an image, [D], independent of brightness and contrast."""
    gray = load_image(path).mean(axis=0)
    small = cv2.resize(gray, (2 * _GRID, 2 * _GRID), interpolation=cv2.INTER_AREA)
    fine = cv2.resize(gray - cv2.GaussianBlur(gray, (0, 0), 8), (4 * _GRID, 4 * _GRID), interpolation=cv2.INTER_AREA)
    parts = [(each - each.mean()).ravel() for each in (small, fine)]
    return np.concatenate([part / (np.linalg.norm(part) + 1e-6) for part in parts]).astype(np.float32)
