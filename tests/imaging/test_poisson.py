from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from defectgen.errors import BadInputError
from defectgen.imaging.images import read_mask
from defectgen.imaging.poisson import BORDER, Blender, Mode, blend, boundary_weights

DATA = Path(__file__).parents[3] / "shared/data"
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def noise(rng: np.random.Generator, shape: tuple[int, ...], mean: float, spread: float = 25.0) -> NDArray[np.uint8]:
    """Grain on slowly varying brightness."""
    coarse = cv2.resize(rng.normal(0, 40, (5, 5)), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    coarse = coarse if len(shape) == 2 else coarse[..., None]
    return np.clip(mean + coarse + rng.normal(0, spread, shape), 0, 255).astype(np.uint8)


def blobs(rng: np.random.Generator, shape: tuple[int, int], sigma: float, threshold: float) -> BoolArray:
    """A random mask: many parts or one, with holes, over the edges."""
    field = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), sigma)
    return np.asarray(field > field.std() * threshold)


def disc(size: int, radius: float, x: float, y: float) -> BoolArray:
    rows, columns = np.mgrid[:size, :size]
    return np.asarray(np.hypot(columns - x, rows - y) <= radius)


def solved_directly(omega: BoolArray, known: FloatArray) -> FloatArray:
    """Laplace's equation on `omega` with `known` around it, by a sparse factorization; slope 0 at the edges."""
    number = np.full(omega.shape, -1)
    number[omega] = np.arange(omega.sum())
    rows, columns = np.nonzero(omega)
    entries: dict[tuple[int, int], float] = {}
    right = np.zeros((len(rows), known.shape[2]))
    for i, (y, x) in enumerate(zip(rows, columns, strict=True)):
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if 0 <= v < omega.shape[0] and 0 <= u < omega.shape[1]:
                entries[i, i] = entries.get((i, i), 0.0) + 1
                if omega[v, u]:
                    entries[i, int(number[v, u])] = -1.0
                else:
                    right[i] += known[v, u]
    keys = np.array(list(entries))
    matrix = csc_matrix((list(entries.values()), (keys[:, 0], keys[:, 1])), shape=(len(rows), len(rows)))
    result = known.copy()
    result[omega] = splu(matrix).solve(right)
    return result


def reference(content: FloatArray, mask: BoolArray, background: FloatArray, mode: Mode) -> FloatArray:
    """Equations 8 to 10, implemented literally."""
    if mode == "poisson":
        composite, omega = background, mask
    else:
        weight = boundary_weights(mask)[..., None]
        composite = weight * content + (1 - weight) * background
        omega = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) > BORDER
    if not omega.any() or omega.all():
        return np.where(omega[..., None], content, composite)
    correction = solved_directly(omega, composite - content)
    return np.where(omega[..., None], content + correction, composite)


@pytest.mark.parametrize("mode", ["improved", "poisson"])
@pytest.mark.parametrize("seed", range(12))
def test_within_a_gray_level_of_a_direct_solution_on_random_masks(seed: int, mode: Mode) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 130)), int(rng.integers(20, 130)))
    mask = blobs(rng, shape, rng.uniform(1.0, 9.0), rng.uniform(-0.7, 1.2))
    content, background = noise(rng, (*shape, 3), 90), noise(rng, (*shape, 3), 150)
    result = blend(content, mask, background, mode=mode).astype(float)
    expected = np.rint(np.clip(reference(content.astype(float), mask, background.astype(float), mode), 0, 255))
    assert np.abs(result - expected).max() <= 1
    np.testing.assert_array_equal(result[~mask], background[~mask])


def test_parts_far_apart_are_solved_as_if_together() -> None:
    rng = np.random.default_rng(0)
    size = 700
    mask = disc(size, 20, 40, 50) | disc(size, 15, 650, 640) | disc(size, 9, 60, 680)
    content, background = noise(rng, (size, size, 3), 90), noise(rng, (size, size, 3), 150)
    result = blend(content, mask, background, mode="poisson").astype(float)
    expected = np.rint(np.clip(reference(content.astype(float), mask, background.astype(float), "poisson"), 0, 255))
    assert np.abs(result - expected).max() <= 1


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not available")
@pytest.mark.parametrize("mode", ["improved", "poisson"])
@pytest.mark.parametrize("folder", ["magnetic-tile/masks/break", "magnetic-tile/masks/crack", "road-crack/masks/crack"])
def test_within_a_gray_level_of_a_direct_solution_on_real_masks(folder: str, mode: Mode) -> None:
    rng = np.random.default_rng(5)
    for path in sorted((DATA / folder).iterdir())[:3]:
        mask = read_mask(path)
        patch = noise(rng, (*mask.shape, 3), 90)
        background = noise(rng, (*mask.shape, 3), 150)
        result = blend(patch, mask, background, mode=mode).astype(float)
        exact = reference(patch.astype(float), mask, background.astype(float), mode)
        assert np.abs(result - np.rint(np.clip(exact, 0, 255))).max() <= 1


def test_the_weights_rise_over_the_border_and_are_one_inside() -> None:
    mask = np.zeros((60, 80), np.bool_)
    mask[10:50, 10:70] = True
    weight = boundary_weights(mask)
    np.testing.assert_allclose(weight[30, 9:17], [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1], atol=1e-3)
    assert BORDER == 5
    assert (weight[~mask] == 0).all()
    np.testing.assert_allclose(boundary_weights(mask, 2)[30, 9:14], [0, 1 / 3, 2 / 3, 1, 1], atol=1e-3)


def test_parts_thinner_than_the_border_reach_full_weight() -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[20:23, 5:55] = True
    np.testing.assert_allclose(boundary_weights(mask)[19:24, 30], [0, 0.5, 1, 0.5, 0], atol=1e-3)
    content, background = np.full((40, 60), 20, np.uint8), np.full((40, 60), 200, np.uint8)
    assert (blend(content, mask, background)[21, 10:50] == 20).all()
    mask[20], mask[22] = False, False  # a line of one pixel
    assert (blend(content, mask, background)[mask] == 20).all()


def test_the_patch_is_kept_and_its_border_is_smooth() -> None:
    """Figure 3: plain Poisson lets the background into the defect, alpha leaves a step at the border."""
    rng = np.random.default_rng(1)
    mask = disc(120, 30, 60, 60)
    content = np.full((120, 120), 60.0) + rng.normal(0, 6, (120, 120))
    background = noise(rng, (120, 120), 170, 6)
    loss, step = {}, {}
    ring = mask & ~disc(120, 29, 60, 60)
    outside = disc(120, 31, 60, 60) & ~mask
    modes: list[Mode] = ["improved", "poisson", "alpha"]
    for mode in modes:
        result = blend(content, mask, background, mode=mode).astype(float)
        loss[mode] = np.abs(result - content)[mask].mean()
        step[mode] = abs(result[ring].mean() - result[outside].mean())
    assert loss["improved"] < 0.4 * loss["poisson"]
    assert step["improved"] < 0.25 * step["alpha"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 2, 3, 4])
@pytest.mark.parametrize("at", [(-20, -7), (45, 50), (0, 0), (-3, 30), (200, 5), (10, -60)])
def test_any_depth_channels_and_position(dtype: type, channels: int, at: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    scale = 1 if dtype == np.uint8 else 257
    shape = (70, 80) if channels == 0 else (70, 80, channels)
    background: NDArray[np.uint8] = (rng.integers(140, 160, shape) * scale).astype(dtype)
    content = np.full((40, 50), 30.0 * scale)
    before = background.copy()
    result = blend(content, np.ones((40, 50), np.bool_), background, at=at)
    assert (result.shape, result.dtype) == (background.shape, background.dtype)
    np.testing.assert_array_equal(background, before)
    inside = np.zeros((70, 80), np.bool_)
    x, y = at
    inside[max(y, 0) : max(y + 40, 0), max(x, 0) : max(x + 50, 0)] = True
    np.testing.assert_array_equal(result[~inside], background[~inside])
    channel_values = result if channels == 0 else result[..., : 1 if channels == 2 else 3]
    if inside.any():
        assert int(channel_values[inside].min()) == pytest.approx(30 * scale, abs=25 * scale)
    if channels in (2, 4):
        np.testing.assert_array_equal(result[..., -1], background[..., -1])


def test_the_patch_does_not_fade_at_the_edge_of_the_image() -> None:
    content = np.full((30, 30), 20, np.uint8)
    background = np.full((60, 60), 200, np.uint8)
    mask = np.ones((30, 30), np.bool_)
    result = blend(content, mask, background, at=(-10, 15)).astype(int)
    assert (np.abs(result[22:38, 0] - 20) < 40).all()  # the middle of what reaches over the left edge
    assert result[30, 19] > 150  # the patch's own border fades
    whole = blend(np.full((60, 60), 20, np.uint8), np.ones((60, 60), np.bool_), background)
    assert (whole == 20).all()  # no border anywhere


def test_a_patch_outside_the_image_changes_nothing() -> None:
    background = np.arange(400, dtype=np.uint16).reshape(20, 20)
    result = blend(np.zeros((5, 5)), np.ones((5, 5), np.bool_), background, at=(40, -90))
    np.testing.assert_array_equal(result, background)
    assert result is not background


def test_a_blender_can_be_reused() -> None:
    rng = np.random.default_rng(3)
    mask = disc(41, 15, 20, 20)
    blender = Blender(mask)
    for i in range(4):
        content, background = noise(rng, (41, 41, 3), 80), noise(rng, (90, 90, 3), 150)
        for at in ((5 * i, 40), (-10, 70 + i)):
            alone = blend(content, mask, background, at=at)
            np.testing.assert_array_equal(blender.blend(content, background, at=at), alone)


def test_only_pixels_inside_the_mask_are_used() -> None:
    rng = np.random.default_rng(4)
    mask = blobs(rng, (60, 60), 4, 0.3)
    content, background = noise(rng, (60, 60), 80), noise(rng, (60, 60), 150)
    other = np.where(mask, content, 255)
    np.testing.assert_array_equal(blend(content, mask, background), blend(other, mask, background))


@pytest.mark.parametrize(
    ("content", "mask", "background", "words"),
    [
        (np.zeros((5, 5)), np.zeros((5, 5), bool), np.zeros((9, 9), np.uint8), "mask: it is empty"),
        (np.zeros((5, 5)), np.ones((5, 6), bool), np.zeros((9, 9), np.uint8), "must be equal"),
        (np.zeros((5, 5)), np.ones((5, 5), np.uint8), np.zeros((9, 9), np.uint8), "mask: expected .* of booleans"),
        (np.zeros((5, 5)), np.ones((5, 5), bool), np.zeros((9, 9), np.float32), "not uint8 or uint16"),
        (np.zeros((5, 5, 3)), np.ones((5, 5), bool), np.zeros((9, 9), np.uint8), "has 3 color channels"),
    ],
)
def test_invalid_input_is_refused(
    content: FloatArray, mask: BoolArray, background: NDArray[np.uint8], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        blend(content, mask, background)
