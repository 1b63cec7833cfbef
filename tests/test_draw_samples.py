import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.folders import NORMAL, Catalog, ProductFolders, SourceImage, read_catalog
from defectgen.imaging.images import read_image, read_mask
from defectgen.imaging.windows import defect_boxes

EXAMPLES = Path(__file__).parents[1] / "examples"
SHIPPED = EXAMPLES / "samples"
KINDS = {
    "steel": ("crack", "scratch", "spot", "stain"),
    "ceramic": ("chip", "crack", "scratch", "spot"),
    "fabric": ("spot", "stain"),
    "cast": ("chip", "crack", "spot"),
    "board": ("chip", "scratch", "stain"),
}


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import draw_samples
    finally:
        sys.path.remove(str(EXAMPLES))
    return draw_samples


@pytest.fixture(scope="module")
def shipped() -> Catalog:
    return read_catalog(
        [ProductFolders(product=p, normals=SHIPPED / p / "normals", defects=SHIPPED / p / "defects") for p in KINDS]
    )


def of(catalog: Catalog, product: str, category: str) -> list[SourceImage]:
    return [sample for sample in catalog.images if (sample.product, sample.category) == (product, category)]


@pytest.mark.parametrize("product", KINDS)
def test_the_script_draws_what_ships(script: Any, product: str, tmp_path: Path) -> None:
    """An image each of two categories: all others differ only in their seed."""
    for kind in (KINDS[product][0], KINDS[product][-1]):
        script.save(tmp_path, 7, product, kind, 1)
    drawn = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(drawn) == 4
    for path in drawn:
        ours, theirs = (
            read_image(root / path.relative_to(tmp_path)).pixels.astype(int) for root in (tmp_path, SHIPPED)
        )
        # Other builds of NumPy round otherwise, and other JPEG encoders too.
        if "masks" in path.parts:
            assert (ours != theirs).sum() <= 4
        else:
            assert np.abs(ours - theirs).max() <= {".jpg": 16, ".png": 32}[path.suffix]


def test_five_products_with_two_to_four_categories_each(script: Any, shipped: Catalog) -> None:
    assert shipped.skipped == ()
    assert shipped.categories == ("chip", "crack", "scratch", "spot", "stain")
    for product, kinds in KINDS.items():
        assert len(of(shipped, product, NORMAL)) == script.PRODUCTS[product].normals >= 10
        assert {sample.category for sample in shipped.images if sample.product == product} == {NORMAL, *kinds}
        assert all(len(of(shipped, product, kind)) == 8 for kind in kinds)


def test_their_forms_differ(shipped: Catalog) -> None:
    """Gray and colour, 8 and 16 bits, and some images are large."""
    images = {product: read_image(of(shipped, product, NORMAL)[0].path) for product in KINDS}
    forms = {product: (image.pixels.ndim, image.depth) for product, image in images.items()}
    assert forms == {"steel": (2, 8), "ceramic": (3, 8), "fabric": (3, 8), "cast": (2, 16), "board": (3, 8)}
    assert max(images["board"].pixels.shape) > 1000
    assert all(max(images[product].pixels.shape) <= 320 for product in ("steel", "ceramic"))  # tests train on these
    assert images["cast"].pixels.max() > 2**15
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.*") if path.is_file()) < 12_000_000


def test_images_are_neither_dark_nor_burnt_out_and_never_twice_the_same(shipped: Catalog) -> None:
    for product in KINDS:
        found = [read_image(sample.path) for sample in of(shipped, product, NORMAL)]
        shares = [image.pixels[::3, ::3] / (2**image.depth - 1) for image in found]
        assert all(0.1 < share.mean() < 0.8 for share in shares)
        assert all((share > 0.99).mean() < 0.01 for share in shares)
        assert min(np.abs(a - b).mean() for i, a in enumerate(shares) for b in shares[:i]) > 0.01


def test_masks_fit_into_a_window(shipped: Catalog) -> None:
    for sample in shipped.images:
        if sample.category == NORMAL:
            continue
        assert isinstance(sample.mask, Path)
        mask = read_mask(sample.mask)
        ys, xs = np.nonzero(mask)
        assert len(ys) >= 40
        assert max(np.ptp(ys), np.ptp(xs)) < 60  # of 64
        assert all(min(box.width, box.height) >= 2 for box in defect_boxes(mask))


@pytest.mark.parametrize(
    ("product", "kind"),
    [("ceramic", "crack"), ("steel", "scratch"), ("cast", "chip"), ("fabric", "stain"), ("cast", "spot")],
)
def test_a_mask_marks_all_that_differs_from_the_flawless_image(
    script: Any, monkeypatch: pytest.MonkeyPatch, product: str, kind: str
) -> None:
    """Drawn again from the same seed with a defect that changes nothing."""
    taken: list[np.ndarray[Any, Any]] = []
    monkeypatch.setattr(script, "expose", lambda rng, picture, bits, grain: taken.append(picture))
    _, mask = script.draw(3, product, kind, 0)
    monkeypatch.setitem(script.KINDS, kind, lambda rng, scene, center: None)
    _, none = script.draw(3, product, kind, 0)
    assert not none.any()
    change = np.abs(taken[0] - taken[1]).max(axis=2)
    inside = mask > 0
    assert change[inside].mean() > 0.02
    assert change[~inside].max() < 0.06
    assert (change[~inside] > 0.02).sum() < 0.1 * inside.sum()  # single pixels
    # Some of it is darker, and all that has depth is lit on one side.
    signed = (taken[0] - taken[1])[..., 0][inside]
    assert signed.min() < -0.02
    assert kind == "stain" or signed.max() > 0.01
