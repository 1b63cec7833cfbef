"""Which method suits which images: one test for each answer."""

from pathlib import Path

import numpy as np
import pytest

from defectgen.folders import NORMAL, Catalog, SourceImage
from defectgen.imaging.images import encode_png
from defectgen.training.choice import suited


def image(path: Path, category: str = NORMAL, *, mask: bool = True, also: tuple[str, ...] = ()) -> SourceImage:
    return SourceImage(
        path=path, mask=path if mask and category != NORMAL else None, category=category, product="part", height=80,
        width=80, channels=1, depth=8, also=tuple((each, None) for each in also),
    )  # fmt: skip


@pytest.fixture
def surface(tmp_path: Path) -> SourceImage:
    """A normal that shows a texture from edge to edge."""
    pixels = np.random.default_rng(0).integers(90, 150, (80, 80), np.uint8)
    (tmp_path / "surface.png").write_bytes(encode_png(pixels))
    return image(tmp_path / "surface.png")


@pytest.fixture
def part(tmp_path: Path) -> SourceImage:
    """A normal that shows an object before a plain background."""
    pixels = np.full((80, 80), 20, np.uint8)
    pixels[20:60, 15:65] = np.random.default_rng(0).integers(140, 200, (40, 50), np.uint8)
    (tmp_path / "part.png").write_bytes(encode_png(pixels))
    return image(tmp_path / "part.png")


def chosen(*images: SourceImage) -> tuple[str, str]:
    return suited(Catalog(images=images, skipped=()))


def defects(count: int, category: str = "crack", *, mask: bool = True) -> list[SourceImage]:
    return [image(Path(f"{category}{i}.png"), category, mask=mask) for i in range(count)]


def test_masked_defects_on_a_surface_are_for_defect_gan(surface: SourceImage) -> None:
    method, reason = chosen(surface, *defects(5), *defects(9, "spot"))
    assert method == "defect-gan"
    assert "better than" not in reason


@pytest.mark.parametrize("missing", [1, 5])
def test_defects_without_masks_are_for_dt_gan(surface: SourceImage, part: SourceImage, missing: int) -> None:
    for normal in (surface, part):
        method, reason = chosen(normal, *defects(5 - missing), *defects(missing, mask=False))
        assert method == "dt-gan"
        assert reason.startswith(f"{missing} of 5 defects have no mask")


def test_few_are_for_defect_gan_and_the_reason_asks_for_more(surface: SourceImage, part: SourceImage) -> None:
    for normal in (surface, part):
        method, reason = chosen(normal, *defects(30), *defects(2, "spot"))
        assert method == "defect-gan"
        assert reason.endswith("5 or more are better than 2")


def test_objects_with_enough_masked_defects_are_for_dcdganc(surface: SourceImage, part: SourceImage) -> None:
    assert chosen(part, part, surface, *defects(5))[0] == "dcdganc"
    assert chosen(part, surface, surface, *defects(5))[0] == "defect-gan"


def test_images_with_several_categories_are_for_defect_gan(part: SourceImage) -> None:
    (one,) = defects(1, "both")
    both = image(one.path, "crack", also=("spot",))
    assert chosen(part, *defects(9), *defects(9, "spot"), both)[0] == "defect-gan"
