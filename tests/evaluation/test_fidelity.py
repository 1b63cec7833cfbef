from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defectgen.errors import WeightsError
from defectgen.evaluation.data import Example
from defectgen.evaluation.fidelity import (
    Figures,
    clustered_lpips,
    fid,
    kid,
    kid_with_spread,
    perceptual,
    precision_and_recall,
    sliced_wasserstein,
    window_around,
)
from defectgen.nn.features import extractor, lite0


@pytest.fixture(scope="module")
def windows(draw: Callable[[int, str], Any]) -> NDArray[np.float32]:
    """48 windows around discs."""
    found = []
    for seed in range(48):
        pixels, mask = draw(seed, "disc")
        found.append(window_around(pixels[None].astype(np.float32) / 127.5 - 1, mask > 0))
    return np.stack(found)


def test_a_window_has_the_defect_in_its_middle_and_shrinks_large_ones() -> None:
    x, mask = np.zeros((2, 90, 120), np.float32), np.zeros((90, 120), np.bool_)
    mask[2:8, 100:112] = True
    x[:, mask] = 1
    window = window_around(x, mask)
    assert window.shape == (2, 64, 64)
    assert window[:, 30:34, 28:36].min() == 1
    mask[60:62, 5:7] = True  # a smaller one elsewhere
    assert np.array_equal(window_around(x, mask), window)
    mask[:, 20] = True
    assert window_around(x, mask).shape == (2, 64, 64)


def test_halves_of_one_set_are_near_and_noise_is_far(windows: NDArray[np.float32]) -> None:
    near = sliced_wasserstein(windows[::2], windows[1::2])
    noise = np.random.default_rng(0).normal(0, 0.1, windows[1::2].shape).astype(np.float32)
    blurred = (windows[1::2] + np.roll(windows[1::2], 1, axis=3) + np.roll(windows[1::2], 1, axis=2)) / 3
    assert sliced_wasserstein(windows, windows) < near
    assert near < 0.5 * sliced_wasserstein(windows[::2], windows[1::2] + noise)
    assert near < sliced_wasserstein(windows[::2], blurred.astype(np.float32))
    assert near == sliced_wasserstein(windows[::2], windows[1::2])


def test_fid_of_gaussians_by_hand() -> None:
    """Means apart by 2 in one of three directions, the spread of another doubled: 4 + (2 - 1)^2."""
    a = np.random.default_rng(0).normal(size=(20_000, 3))
    b = np.random.default_rng(1).normal(size=(20_000, 3)) * (1, 2, 1) + (2, 0, 0)
    assert fid(a, a) == pytest.approx(0, abs=1e-6)
    assert fid(a, b) == pytest.approx(5, abs=0.15)


def test_kid_is_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(6, 4)) + 1

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within = [
        np.mean([kernel(each[i], each[j]) for i in range(len(each)) for j in range(len(each)) if i != j])
        for each in (a, b)
    ]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kid(a, b) == pytest.approx(sum(within) - 2 * across)
    same = rng.normal(size=(400, 4))
    assert abs(kid(same[::2], same[1::2])) < 0.05 < kid(same, same + 1)


def test_precision_and_recall_of_known_sets() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 30])
    assert precision_and_recall(real, real) == (1, 1)
    one_mode = rng.normal(size=(200, 3)) * 0.5
    precision, recall = precision_and_recall(real, one_mode)
    assert precision > 0.95
    assert recall <= 0.5
    assert precision_and_recall(real, real + 300) == (0, 0)


def test_copies_have_no_diversity_within_their_clusters() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(5, 8)) * 10
    copies = np.repeat(real, 6, axis=0)
    assert clustered_lpips(real, copies) == pytest.approx(0, abs=1e-6)
    spread = copies + rng.normal(size=copies.shape)
    groups = spread.reshape(5, 6, 8)
    pairs = [((g[i] - g[j]) ** 2).sum() for g in groups for i in range(6) for j in range(6) if i != j]
    assert clustered_lpips(real, spread) == pytest.approx(float(np.mean(pairs)))


def of(draw: Callable[[int, str], Any], seeds: range, noise: float = 0.0) -> list[Example]:
    rng, found = np.random.default_rng(0), []
    for seed in seeds:
        pixels, mask = draw(seed, "disc")
        x = pixels[None].astype(np.float32) / 127.5 - 1
        x = np.clip(x + rng.normal(0, noise, x.shape), -1, 1).astype(np.float32)
        found.append(Example.of(x, mask > 0, 1))
    return found


def test_noise_is_worse_than_clean_in_every_figure(draw: Callable[[int, str], Any]) -> None:
    figures = Figures(torch.device("cpu"), {}, 0)
    real, cut_outs = of(draw, range(20)), np.stack([window_around(each.x, each.mask) for each in of(draw, range(20))])
    measure = figures.of_category(real, cut_outs)
    clean, noisy = (measure(of(draw, range(100, 120), noise)) for noise in (0.0, 0.3))
    for name in ("swd", "lite0_kid"):
        assert clean[name] < noisy[name]
        assert clean[f"{name}_cutouts"] <= clean[name]  # here the cut-outs are the real ones
        assert clean[f"{name}_floor"] == noisy[f"{name}_floor"]
    for name in ("lite0_precision", "lite0_recall"):
        assert clean[name] > noisy[name]
    assert clean["lite0_kid"] < 5 * clean["lite0_kid_spread"] + abs(clean["lite0_kid_floor"])
    assert (clean["real"], clean["synthetic"]) == (20, 20)


def test_the_spread_of_kid_is_that_of_subsets() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 6)), rng.normal(size=(40, 6))
    value, spread = kid_with_spread(a, b, 0)
    assert value == pytest.approx(kid(a, b))
    assert 0 < spread < 1
    assert kid_with_spread(a, b, 0) == (value, spread)
    _, far = kid_with_spread(a[:8], b[:8], 0)
    assert far > spread  # fewer tell less


def test_perceptual_distance_ignores_what_eyes_ignore(windows: NDArray[np.float32]) -> None:
    network = lite0()
    base, other = windows[:1], windows[1:2]
    brighter = np.clip(base + 0.02, -1, 1).astype(np.float32)
    a, b, c = (perceptual(network, each)[0] for each in (base, brighter, other))
    assert np.linalg.norm(a - b) < 0.3 * np.linalg.norm(a - c)
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)


class _Inception(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8
        assert return_features
        return x.float().mean(dim=(2, 3))


class _Lpips(torch.nn.Module):
    def forward(self, x: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        assert not resize_images
        assert return_lpips
        return x.flatten(1)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_feature_networks_come_from_the_users_files(tmp_path: Path) -> None:
    windows = np.zeros((2, 1, 64, 64), np.float32)
    windows[1] = 1
    for kind, network, expected in (("inception", _Inception(), (127.5, 255)), ("lpips", _Lpips(), (127.5, 255))):
        torch.jit.script(network).save(str(tmp_path / f"{kind}.pt"))
        found = extractor(kind, tmp_path / f"{kind}.pt", torch.device("cpu"))(windows)
        assert found.shape[0] == 2
        assert found[1].mean() == expected[1]
        assert found[0].mean() == pytest.approx(expected[0], abs=0.6)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_file_that_is_no_such_network_is_told(tmp_path: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(WeightsError, match="no such file"):
        extractor("inception", tmp_path / "none.pt", device)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(WeightsError, match="not a TorchScript network"):
        extractor("inception", tmp_path / "text.pt", device)
    torch.jit.script(_Lpips()).save(str(tmp_path / "lpips.pt"))
    with pytest.raises(WeightsError, match="cannot be called as inception"):
        extractor("inception", tmp_path / "lpips.pt", device)(np.zeros((1, 3, 64, 64), np.float32))
