import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.evaluation import copies
from defectgen.evaluation.copies import Gallery
from defectgen.nn.features import Lite0, lite0


def blot(seed: int, size: int = 160) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A dark blot of irregular form and shading on noise."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(5):
        middle = tuple(int(v) for v in rng.integers(60, 100, 2))
        cv2.ellipse(
            mask, middle, tuple(int(v) for v in rng.integers(4, 16, 2)), float(rng.uniform(0, 180)), 0, 360, 1, -1
        )
    shading = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 4) * 2.5
    x = rng.normal(0.2, 0.02, (size, size)) - mask * (0.6 + shading)
    return x[None].astype(np.float32), mask > 0


def moved(seed: int, degrees: float, scale: float, *, mirrored: bool) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The same blot turned, scaled and mirrored, with another contrast, on other noise."""
    x, mask = blot(seed)
    matrix = cv2.getRotationMatrix2D((80, 80), degrees, scale)
    change = cv2.warpAffine(np.where(mask, x[0] - 0.2, 0).astype(np.float32), matrix, (160, 160))
    there = cv2.warpAffine(mask.astype(np.float32), matrix, (160, 160)) > 0.5
    ground = np.random.default_rng(seed + 1000).normal(-0.1, 0.03, (160, 160))
    image = (ground + 0.7 * change)[None].astype(np.float32)
    return (image[:, :, ::-1], there[:, ::-1]) if mirrored else (image, there)


@pytest.fixture(scope="module")
def network() -> Lite0:
    return lite0()


@pytest.fixture(scope="module")
def real(network: Lite0) -> Gallery:
    return Gallery(network, [blot(seed) for seed in range(12)])


def test_copies_are_found_wherever_they_lie(real: Gallery) -> None:
    turned = [(0.0, 1.0), (37.0, 0.8), (90.0, 1.0), (205.0, 1.25)]
    made = [
        moved(seed, degrees, scale, mirrored=seed % 2 == 1)
        for seed in range(12)
        for degrees, scale in turned[seed % 2 :: 2]
    ]
    found = real.nearest(made)
    assert found.index.tolist() == [seed for seed in range(12) for _ in range(2)]
    assert found.copies.mean() > 0.9


def test_others_are_not_copies(real: Gallery, network: Lite0) -> None:
    assert not real.nearest([blot(seed) for seed in range(100, 124)]).copies.any()
    assert real.share_of_copies == 0
    assert Gallery(network, [blot(0), blot(1), blot(0)]).share_of_copies == pytest.approx(2 / 3)
    assert Gallery(network, [blot(0)]).share_of_copies == 0


def test_the_same_form_with_another_face_is_no_copy(real: Gallery) -> None:
    """The features count, not the mask alone: a blot's mask on plain ground, and on the shading of another blot."""
    x, mask = blot(5)
    plain = np.random.default_rng(9).normal(0.2, 0.02, x.shape).astype(np.float32)
    assert not real.nearest([(plain, mask), (-x, mask)]).copies.any()
    (it,) = real.nearest([(x, mask)]).similarity
    assert it == pytest.approx(1, abs=1e-4)


def test_a_defect_of_a_pixel_harms_nothing(real: Gallery, network: Lite0) -> None:
    x, mask = np.zeros((1, 40, 40), np.float32), np.zeros((40, 40), np.bool_)
    mask[20, 20] = True
    assert Gallery(network, [(x, mask), blot(3)]).nearest([blot(3)]).index[0] == 1
    assert np.isfinite(real.nearest([(x, mask)]).similarity).all()


def test_one_of_several_defects_is_enough(real: Gallery, network: Lite0) -> None:
    """A cut-out is one piece of a photograph's defects."""
    x, mask = blot(3)
    other, there = blot(200)
    beside = np.concatenate([x, other], axis=2), np.concatenate([mask, there], axis=1)
    assert real.nearest([beside]).copies[0]
    assert Gallery(network, [blot(0), blot(1), beside]).nearest([blot(3)]).index[0] == 2


def test_round_defects_have_no_direction(network: Lite0) -> None:
    yy, xx = np.indices((80, 80)) - 40
    mask = np.hypot(yy, xx) < 14
    x = np.where(mask, -0.5 + xx / 60, 0.3)[None].astype(np.float32)
    assert len(copies.poses(x, mask)) == 8
    assert len(copies.poses(x, mask & (abs(yy) < 5))) == 4
    turned = np.ascontiguousarray(np.rot90(x, axes=(1, 2)))
    (similarity,) = Gallery(network, [(x, mask)]).nearest([(turned, mask)]).similarity
    assert similarity > 0.9  # a quarter turn makes them one


def test_agreement_by_hand() -> None:
    source, mask = np.zeros((1, 40, 40), np.float32), np.zeros((40, 40), np.bool_)
    image = source.copy()
    image[0, 10:20, 10:20] = 0.5
    assert copies.agreement(image, source, mask) == 0
    mask[10:20, 10:20] = True
    assert copies.agreement(image, source, mask) == 1
    mask[20:30, 10:20] = True
    assert copies.agreement(image, source, mask) == 0.5
    image[0, 8:34, 10:20] = 0.5  # a blend that fades out around it
    assert copies.agreement(image, source, mask) == 1
    image[0, 0:2, 0:10] = 0.5  # far from it
    assert copies.agreement(image, source, mask) == pytest.approx(200 / 220)
    assert copies.agreement(source, source, np.zeros_like(mask)) == 1
