"""The quality gate rejects samples that do not resemble real defects, nearly copy one, or have a wrong mask.

Rejected samples are regenerated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from defectgen import files
from defectgen.dataset import Sample
from defectgen.dataset.manifest import Reference
from defectgen.evaluation import copies
from defectgen.evaluation.data import Example, LabeledImage, load_examples, resize_mask, to_model_range
from defectgen.evaluation.fidelity import upsampled, window_around
from defectgen.folders import Catalog
from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.mask_files import read_masks
from defectgen.imaging.windows import BoolArray, FloatArray, value_range
from defectgen.nn.features import Features, Lite0, lite0
from defectgen.synthesis.stream import Judgement

_FALSE_REFUSALS = 0.05  # of real defects, at most
_FEWEST = 4  # real defects, below which nothing can be said of what is plausible
_SHAPE_WEIGHT = 0.15  # of the logarithms of size and density beside features of length 1
_MIN_AGREEMENT = 0.25  # least IoU of the mask with the pixels that changed


def appearance(network: Lite0, x: FloatArray, mask: BoolArray) -> Features:
    """What the feature network sees of a defect: its maps, averaged over the mask, and the size and shape of the mask.

    Args:
        x: [C, H, W] in [-1, 1].
        mask: [H, W], not empty.
    """
    window, its_mask = window_around(x, mask), window_around(mask[None].astype(np.float32), mask)[0]
    seen = torch.from_numpy(upsampled(window[None]))
    weight = torch.from_numpy(np.ascontiguousarray(its_mask))[None, None].clamp(0, 1)
    found = []
    with torch.no_grad():
        for each in network(seen)[:3]:
            part = F.interpolate(weight, size=each.shape[2:], mode="area") + 1e-6
            found.append(F.normalize((each * part).sum(dim=(2, 3)) / part.sum(), dim=1)[0].numpy())
    rows, columns = np.nonzero(mask)
    extent = float(np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1))
    shape = np.array([np.log(extent), np.log(mask.sum() / extent**2)]) * _SHAPE_WEIGHT
    return np.concatenate([*found, shape]).astype(np.float64)


def _reference(image: LabeledImage) -> Reference:
    """A real defect, and its box."""
    box = None
    if image.mask is not None:
        box = dict(
            zip(("x", "y", "width", "height"), cv2.boundingRect(read_masks(image.mask).view(np.uint8)), strict=True)
        )
    return Reference(file=str(image.path), sha256=image.sha256, window=box)


@dataclass(frozen=True)
class _Category:
    """The real defects of a category: how they appear, how far a plausible one may be, and what copies are found in."""

    points: Features
    files: Sequence[Reference]
    radius: float
    gallery: copies.Gallery

    @classmethod
    def of(cls, network: Lite0, files: Sequence[Reference], examples: Sequence[Example]) -> "_Category":
        points = np.stack([appearance(network, each.x, each.mask) for each in examples])
        distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(points), np.inf))
        # Left out of the set, each real defect but one in twenty is nearer to another one than this.
        radius = np.inf
        if len(points) >= _FEWEST:
            radius = float(np.quantile(distances.min(axis=1), 1 - _FALSE_REFUSALS, method="higher"))
        return cls(points, files, radius, copies.Gallery(network, [(each.x, each.mask) for each in examples]))

    def nearest(self, own: Features) -> tuple[float, Reference]:
        """The nearest real defect, and how far it is, in the distance that real ones have from each other."""
        distances = np.linalg.norm(self.points - own, axis=1)
        number = int(distances.argmin())
        distance = float(distances[number])
        if self.radius == 0:  # the real ones are all the same
            return (math.inf if distance else 0.0), self.files[number]
        return distance / self.radius, self.files[number]


class Gate:
    """Compares samples with real defects. `name` is the folder of these."""

    def __init__(self, folder: Path, real: Catalog, *, copies: bool = True) -> None:
        """`real` are the defects, with masks, that samples must resemble; whether near-copies are rejected."""
        self._copies = copies
        self.name = str(folder)
        self.photographs: Sequence[str] = [files.sha256(each.path) for each in real.images]
        self._network = lite0()
        self._categories = {}
        for category in real.categories:
            mine = [LabeledImage(each.path, category, each.mask) for each in real.images if each.category == category]
            found = [
                (_reference(image), example)
                for image, example in zip(mine, load_examples(mine, [category]), strict=True)
                if example.mask.any()
            ]
            if found:
                self._categories[category] = _Category.of(
                    self._network, [reference for reference, _ in found], [example for _, example in found]
                )

    def __call__(self, sample: Sample, source: Pixels | None) -> Judgement:
        """Judge a sample.

        A sample whose category has no real defects is compared with the defects of all categories.

        Args:
            source: the image that the sample was made from; None if there is none.
        """
        reference = DecodedImage(sample.image if source is None else source)
        x = to_model_range(DecodedImage(sample.image), value_range(reference))
        mask = resize_mask(sample.mask, x.shape[1:])
        before = None if source is None else to_model_range(reference)
        if not mask.any() or (before is not None and copies.agreement(x, before, mask) < _MIN_AGREEMENT):
            return Judgement("unmarked")
        own, name = appearance(self._network, x, mask), sample.category
        mine = [self._categories[name]] if name in self._categories else list(self._categories.values())
        distance, nearest = min(
            (each.nearest(own) for each in mine), key=lambda found: found[0], default=(math.inf, None)
        )
        if distance > 1:
            return Judgement("implausible")
        if self._copies and any(each.gallery.nearest([(x, mask)]).copies[0] for each in mine):
            return Judgement("copy")
        known = all(math.isfinite(each.radius) for each in mine)
        return Judgement(None, distance if known else None, nearest)
