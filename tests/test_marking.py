"""Masks of several values, and of any values with a threshold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from defectgen.errors import BadInputError, UsageError
from defectgen.folders import Catalog, read_defects
from defectgen.imaging.mask_files import Value, digests, read_masks
from defectgen.marking import Marking, parse_values

BLOBS = np.zeros((40, 60), np.uint8)
BLOBS[5:15, 5:15] = 2
BLOBS[20:30, 30:50] = 3
VALUES: tuple[tuple[Value, str], ...] = ((2, "crack"), (3, "dent"))
PALETTE = [0, 0, 0, 9, 9, 9, 255, 0, 0, 0, 255, 0]


def saved(path: Path, pixels: NDArray[np.uint8], palette: Sequence[int] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    image.save(path)
    return path


def photo(path: Path) -> Path:
    return saved(path, np.random.default_rng(len(path.name)).integers(80, 180, BLOBS.shape, np.uint8))


def marked(catalog: Catalog) -> dict[tuple[str, str], int]:
    """The number of marked pixels by image and category."""
    return {
        (image.path.name, image.category): int(read_masks(image.mask).sum()) for image in catalog.images if image.mask
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2=crack,3=dent", VALUES),
        (" 2 = crack , 3=dent", VALUES),
        ("1=crack,2=crack", ((1, "crack"), (2, "crack"))),
        ("#FF8000=crack", (((255, 128, 0), "crack"),)),
    ],
)
def test_values_of_categories(text: str, expected: object) -> None:
    assert parse_values(text) == expected


@pytest.mark.parametrize(
    "text", ["", "crack", "2=", "=crack", "2=crack,", "-1=crack", "#ff=crack", "2=a,2=b", "\u00b2=a"]
)
def test_values_without_a_category(text: str) -> None:
    with pytest.raises(UsageError, match="--mask-values"):
        parse_values(text)


def test_two_ways_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--annotations and --mask-threshold both say"):
        Marking(tmp_path, threshold=3)


@pytest.mark.parametrize("palette", [(), PALETTE])
def test_a_mask_of_several_values_is_one_of_several_categories(tmp_path: Path, palette: Sequence[int]) -> None:
    photo(tmp_path / "photos/a.png")
    saved(tmp_path / "masks/a.png", BLOBS, palette)
    photo(tmp_path / "photos/b.png")
    saved(tmp_path / "masks/b.png", np.where(BLOBS == 3, np.uint8(3), np.uint8(0)), palette)
    catalog = read_defects(tmp_path / "photos", marking=Marking(values=VALUES))
    assert marked(catalog) == {("a.png", "crack"): 100, ("a.png", "dent"): 200, ("b.png", "dent"): 200}
    assert catalog.warnings == ()
    only = read_defects(tmp_path / "photos", marking=Marking(values=VALUES), categories=["crack"])
    assert marked(only) == {("a.png", "crack"): 100}


def test_colors_are_values_too(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png")
    values = parse_values("#ff0000=crack,3=dent")
    saved(tmp_path / "masks/a.png", BLOBS, PALETTE)
    assert marked(read_defects(tmp_path / "photos", marking=Marking(values=values))) == {
        ("a.png", "crack"): 100, ("a.png", "dent"): 200,
    }  # fmt: skip
    rgb = np.asarray(PALETTE, np.uint8).reshape(-1, 3)[BLOBS]
    saved(tmp_path / "masks/a.png", rgb)
    catalog = read_defects(tmp_path / "photos", marking=Marking(values=values))
    assert marked(catalog) == {("a.png", "crack"): 100}
    assert "--mask-values does not name #00ff00" in catalog.warnings[0]


def test_values_and_images_that_are_left_out_are_named(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / f"photos/{name}.png")
    saved(tmp_path / "masks/a.png", BLOBS)
    saved(tmp_path / "masks/b.png", np.where(BLOBS > 0, np.uint8(7), np.uint8(0)))
    catalog = read_defects(tmp_path / "photos", marking=Marking(values=VALUES))
    assert set(marked(catalog)) == {("a.png", "crack"), ("a.png", "dent")}
    masks, images = (line.split(": ", 1)[1] for line in catalog.warnings)
    assert masks == "1 mask has values without a category (b.png); --mask-values does not name 7"
    assert images == "2 images have no mask with a named value (b.png, c.png); left out"
    with pytest.raises(UsageError, match="--category hole: --mask-values names crack, dent"):
        read_defects(tmp_path / "photos", marking=Marking(values=VALUES), categories=["hole"])
    with pytest.raises(UsageError, match="the name 'normal' is reserved"):
        read_defects(tmp_path / "photos", marking=Marking(values=((2, "normal"),)))


def test_a_mask_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / f"photos/{name}.png")
        saved(tmp_path / f"masks/{name}.png", BLOBS)
    (tmp_path / "masks/b.png").write_bytes((tmp_path / "masks/b.png").read_bytes()[:60])
    catalog = read_defects(tmp_path / "photos", marking=Marking(values=VALUES))
    assert {name for name, _ in marked(catalog)} == {"a.png"}
    assert {each.path.name for each in catalog.skipped} == {"b.png"}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_threshold_reads_masks_of_any_values(tmp_path: Path, suffix: str) -> None:
    photo(tmp_path / "defects/crack/a.png")
    clean = (BLOBS > 0).astype(np.uint8) * 255
    soft = np.asarray(Image.fromarray(clean).filter(ImageFilter.GaussianBlur(1)))  # as anti-aliasing leaves it
    mask = saved(tmp_path / f"masks/crack/a.{suffix}", soft)
    with pytest.raises(BadInputError, match="use --mask-threshold 128"):
        read_defects(tmp_path / "defects")
    (image,) = read_defects(tmp_path / "defects", marking=Marking(threshold=128)).images
    assert image.mask is not None
    read = read_masks(image.mask)
    assert (read & (clean > 0)).sum() / (read | (clean > 0)).sum() > 0.95
    lower = Marking(threshold=20).of(mask, "crack")
    assert read_masks(lower).sum() > read.sum()
    assert digests(lower) != digests(image.mask) != digests(mask)


def test_the_brightest_channel_counts(tmp_path: Path) -> None:
    red = np.zeros((*BLOBS.shape, 3), np.uint8)
    red[BLOBS > 0] = 254, 0, 3
    mask = Marking(threshold=128).of(saved(tmp_path / "a.png", red), "crack")
    np.testing.assert_array_equal(read_masks(mask), BLOBS > 0)


def test_such_masks_beside_their_images(tmp_path: Path) -> None:
    for marking, pixels in ((Marking(values=VALUES), BLOBS), (Marking(threshold=128), (BLOBS > 0) * np.uint8(250))):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        photo(folder / "a.jpg")
        saved(folder / "a.png", pixels)
        catalog = read_defects(folder, marking=marking)
        assert {image.path.name for image in catalog.images} == {"a.jpg"}
        assert all(image.mask for image in catalog.images)
