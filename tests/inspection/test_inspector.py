from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.imaging import components
from defectgen.imaging.images import DecodedImage, encode_png
from defectgen.imaging.ssim import limits_of, otsu
from defectgen.inspection import inspector
from defectgen.inspection.inspector import Criteria, Finding, Unreadable, find, golden, inspect, score_of
from defectgen.inspection.scores import SSIM
from defectgen.inspection.scoring import pixel_figures


def surface(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.normal(0, 40, (6, 6)), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    coarse = coarse if len(shape) == 2 else coarse[..., None]
    return np.clip(130 + coarse + rng.normal(0, 6, shape), 0, 255).astype(np.uint8)


def scratched(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    result = image.copy()
    result[40:46, 30:90] = np.clip(result[40:46, 30:90].astype(int) - 70, 0, 255)
    return result


def test_a_score_is_exceeded_by_as_many_pixels_as_the_window_has() -> None:
    for shape in ((50, 60), (400, 500)):  # sorted, and with a histogram
        scores = np.random.default_rng(0).uniform(0, 0.2, shape).astype(np.float32)
        scores[3:11, 5:15] = 0.9  # eighty
        assert score_of([scores], 81) < 0.21
        scores[11, 5] = 0.8
        assert score_of([scores], 81) == pytest.approx(0.8)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_defect_is_found_where_it_is(depth: int, channels: int) -> None:
    whole = surface((100, 120) if channels == 1 else (100, 120, 3))
    broken = scratched(whole)
    scale = 1 if depth == 8 else 90
    deep = whole.astype(np.uint16) * scale
    photograph = DecodedImage(broken if depth == 8 else broken.astype(np.uint16) * np.uint16(scale))
    finding = find(Path("a.png"), photograph, whole if depth == 8 else deep, Criteria(0.4))
    assert finding.defective
    rows, columns = np.nonzero(finding.mask)
    found = rows.min(), rows.max(), columns.min(), columns.max()
    assert found == pytest.approx((40, 45, 30, 89), abs=1)  # SSIM's window reaches 4 further on each side
    assert finding.mask[41:45, 32:88].mean() > 0.9


def test_a_border_is_ignored() -> None:
    whole = surface((100, 120))
    broken = whole.copy()
    broken[:6, 20:60] //= 3
    broken[50:60, 114:] //= 3
    assert find(Path("a.png"), DecodedImage(broken), whole, Criteria(0.4)).defective
    finding = find(Path("a.png"), DecodedImage(broken), whole, Criteria(0.4, border=10))
    assert not finding.defective
    assert finding.score == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shape", [(700, 90), (330, 50, 3)])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("border", [0, 3, 70])
def test_a_large_image_is_judged_in_strips_as_in_one_piece(
    shape: tuple[int, ...], depth: int, border: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    whole: Any = surface(shape).astype(np.uint8 if depth == 8 else np.uint16) * (1 if depth == 8 else 90)
    broken = whole.copy()
    broken[100:330, 20:30] //= 3  # across several strips
    broken[rng.integers(0, shape[0], 40), rng.integers(0, shape[1], 40)] //= 2
    truth = np.zeros(shape[:2], np.bool_)
    truth[90:340, 18:33] = truth[600:, 40:] = truth[0, 0] = True
    expected = find(Path("a.png"), DecodedImage(broken), whole, Criteria(0.4, border=border), truth=truth)
    monkeypatch.setattr(inspector, "_WHOLE", 1)
    monkeypatch.setattr(components, "_STRIP", 10 * shape[1])
    found = find(Path("a.png"), DecodedImage(broken), whole, Criteria(0.4, border=border), truth=truth)
    assert found.pixels is not None
    assert expected.pixels is not None
    assert pixel_figures(found.pixels) == pytest.approx(pixel_figures(expected.pixels), abs=1e-4)
    assert found.score == pytest.approx(expected.score, abs=1e-6)
    assert found.mask.any() == (border < 25)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_a_flawless_image_is_not_split() -> None:
    whole = surface((100, 120))
    noisy = np.clip(whole + np.random.default_rng(5).normal(0, 2, whole.shape), 0, 255).astype(np.uint8)
    scores = SSIM(DecodedImage(noisy), whole)(0, len(noisy))
    assert (scores > otsu([scores], limits_of(scores))).any()  # Otsu would
    finding = find(Path("a.png"), DecodedImage(noisy), whole, Criteria(0.4))
    assert not finding.defective
    assert not finding.mask.any()


def put(folder: Path, name: str, image: NDArray[np.uint8]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(encode_png(image))
    return folder / name


def test_images_come_in_order_and_errors_are_reported(tmp_path: Path) -> None:
    whole = surface((100, 120))
    paths = []
    for i in range(7):
        put(tmp_path / "golden", f"{i}.png", whole)
        paths.append(put(tmp_path / "line", f"{i}.png", scratched(whole) if i % 2 else whole))
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    put(tmp_path / "golden", "4.png", whole[:50])
    (tmp_path / "golden/5.png").unlink()
    findings = list(inspect(paths, golden(tmp_path / "golden"), Criteria(0.4), workers=3))
    assert [finding.path for finding in findings] == paths
    reasons = {i: finding.reason for i, finding in enumerate(findings) if isinstance(finding, Unreadable)}
    assert set(reasons) == {2, 4, 5}
    assert "truncated" in reasons[2]
    assert "is 120x100 gray, 8 bit, but its reference" in reasons[4]
    assert "golden/5.png: No such file" in reasons[5]
    verdicts = [finding.defective for finding in findings if isinstance(finding, Finding)]
    assert verdicts == [False, True, True, False]


def test_a_hot_spot_of_16_bits_scores_high() -> None:
    """It lies on the brightest part, and is smaller than the thousandth that a value range leaves out."""
    rng = np.random.default_rng(0)
    golden = (np.linspace(1000, 3000, 512)[None] + rng.normal(0, 5, (512, 512))).astype(np.uint16)
    noisy = (golden + rng.normal(0, 2, golden.shape)).astype(np.uint16)
    hot = noisy.copy()
    hot[100:110, 500:510] += 3000
    path = Path("a.png")
    assert find(path, DecodedImage(noisy), golden, Criteria(0.3)).score < 0.1
    finding = find(path, DecodedImage(hot), golden, Criteria(0.3))
    assert finding.score > 0.5
    assert finding.mask[105, 505]
    assert find(path, DecodedImage(noisy), hot, Criteria(0.3)).score > 0.5  # the golden image has it


def test_the_border_does_not_move_otsus_threshold() -> None:
    """The repair is noisy everywhere: with the border as zeros, Otsu's method would separate it from the noise."""
    rng = np.random.default_rng(0)
    golden = rng.normal(120, 25, (160, 160)).clip(0, 255)
    noisy = golden + rng.normal(0, 18, golden.shape)
    noisy[74:86, 70:90] = rng.normal(120, 25, (12, 20))
    before, after = (each.clip(0, 255).astype(np.uint8) for each in (noisy, golden))
    finding = find(Path("a.png"), DecodedImage(before), after, Criteria(0.6, border=40))
    assert finding.defective
    near = np.zeros((160, 160), np.bool_)
    near[70:90, 66:94] = True
    assert finding.mask[near].mean() > 0.1
    assert finding.mask[~near].mean() < 0.01
