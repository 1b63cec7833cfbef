"""The quality gate: samples that are not like real defects, copy one, or mark what cannot be seen are made anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import Sample
from defectgen.evaluation import copies
from defectgen.evaluation.data import Example, LabeledImage, load_examples, resize_mask, to_model_range
from defectgen.folders import Catalog
from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.windows import BoolArray, FloatArray, value_range

Reason = Literal["implausible", "copy", "unmarked"]
_NEIGHBOUR = 3  # k of the distance among real ones
_FARTHEST = 1.5  # times that distance
_AGREES = 0.25  # IoU of the mask with what changed


def traits(x: FloatArray, mask: BoolArray) -> NDArray[np.float64]:
    """What a defect is like, in a dozen numbers: its form, and how it stands out from the ring around it.

    Args:
        x: [C, H, W] in [-1, 1]. mask: [H, W], not empty.
    """
    gray = np.ascontiguousarray(x.mean(axis=0), np.float32)
    ring = (cv2.dilate(mask.view(np.uint8), np.ones((15, 15), np.uint8)) > 0) & ~mask
    ring = ring if ring.any() else ~mask if not mask.all() else mask
    edges = np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    inside, around = gray[mask], gray[ring]
    grain = float(around.std()) + 0.02
    depth = cv2.distanceTransform(np.pad(mask, 1).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    rows, columns = np.nonzero(mask)
    extent = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
    count, _ = cv2.connectedComponents(mask.view(np.uint8))
    quantiles = np.quantile(inside, [0.1, 0.5, 0.9]) - float(np.median(around))
    return np.array(
        [
            np.log(mask.sum()), np.log(extent), np.log(depth.max()), np.log(mask.sum() / extent**2), np.log(count),
            *(quantiles / grain), *(quantiles * 4),
            np.log((inside.std() + 0.02) / grain), np.log((edges[mask].mean() + 0.02) / (edges[ring].mean() + 0.02)),
        ]
    )  # fmt: skip


@dataclass(frozen=True)
class _Category:
    """The real defects of a category: their traits, brought to one scale, and how far each is from its neighbours."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    points: NDArray[np.float64]
    radii: NDArray[np.float64]
    defects: list[list[list[copies.Pose]]]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "_Category":
        found = np.stack([traits(each.x, each.mask) for each in examples])
        mean, spread = found.mean(axis=0), found.std(axis=0) + 0.1
        points = (found - mean) / spread
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        # Of few, each is as far as the farthest two are; of one or two there is nothing to tell by.
        radii = np.sort(distances, axis=1)[:, _NEIGHBOUR] if len(points) > 2 * _NEIGHBOUR else distances.max(axis=1)
        radii = radii if len(points) > 2 else np.full(len(points), np.inf)
        return cls(mean, spread, points, radii, [copies.defects_of(each.x, each.mask) for each in examples])

    def plausible(self, own: NDArray[np.float64]) -> bool:
        """Whether a defect of these traits lies among the real ones (as in Kynkaanniemi et al. 2019, eq. 1)."""
        distances = np.linalg.norm((own - self.mean) / self.spread - self.points, axis=1)
        return bool((distances <= _FARTHEST * self.radii).any())


class Gate:
    """Tells of a sample why it should be made anew, if it should. `name` is what it compares with."""

    def __init__(self, folder: Path, real: Catalog) -> None:
        """`real` are the defects, with masks, that samples shall be like."""
        self.name = str(folder)
        self.photographs: Sequence[str] = [files.sha256(each.path) for each in real.images]
        self._categories = {}
        for category in real.categories:
            mine = [LabeledImage(each.path, category, each.mask) for each in real.images if each.category == category]
            examples = [each for each in load_examples(mine, [category]) if each.mask.any()]
            if examples:
                self._categories[category] = _Category.of(examples)

    def __call__(self, sample: Sample, source: Pixels | None) -> Reason | None:
        """What is wrong with a sample of a photograph, if it is of one.

        One whose category no real defect shows is compared with all there are.
        """
        ground = DecodedImage(sample.image if source is None else source)
        x = to_model_range(DecodedImage(sample.image), value_range(ground))
        mask = resize_mask(sample.mask, x.shape[1:])
        before = None if source is None else to_model_range(ground)
        if not mask.any() or (before is not None and copies.agreement(x, before, mask) < _AGREES):
            return "unmarked"
        own, name = traits(x, mask), sample.category
        mine = [self._categories[name]] if name in self._categories else list(self._categories.values())
        if not any(each.plausible(own) for each in mine):
            return "implausible"
        defects = copies.defects_of(x, mask)
        return "copy" if any(copies.nearest([defects], each.defects).copies[0] for each in mine) else None
