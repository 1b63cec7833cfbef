import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from defectgen.folders import NORMAL, Catalog, ProductFolders, read_catalog
from defectgen.imaging.images import read_image, read_mask
from defectgen.imaging.windows import defect_boxes

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    subprocess.run([sys.executable, EXAMPLES / "draw_samples.py", "--out", out], check=True)
    return out


def catalog(root: Path) -> Catalog:
    return read_catalog(
        [
            ProductFolders(product=p, normals=root / p / "normals", defects=root / p / "defects")
            for p in ("ceramic", "steel")
        ]
    )


def test_the_script_draws_what_ships(drawn: Path) -> None:
    ours = {path.relative_to(drawn): path for path in drawn.rglob("*.*")}
    shipped = {path.relative_to(EXAMPLES / "samples"): path for path in (EXAMPLES / "samples").rglob("*.*")}
    assert ours.keys() == shipped.keys()
    for name, path in ours.items():
        one, other = read_image(path).pixels.astype(int), read_image(shipped[name]).pixels
        assert np.abs(one - other).max() <= (0 if path.suffix == ".png" else 8)  # another JPEG encoder


def test_two_products_with_three_categories_each(drawn: Path) -> None:
    found = catalog(drawn)
    assert found.skipped == ()
    assert found.categories == ("crack", "scratch", "spot")
    assert {sample.channels for sample in found.images if sample.product == "steel"} == {1}
    assert {sample.channels for sample in found.images if sample.product == "ceramic"} == {3}
    assert len({(sample.width, sample.height) for sample in found.images}) > 1


def test_masks_mark_what_differs_and_fit_into_a_window(drawn: Path) -> None:
    for sample in catalog(drawn).images:
        if sample.category == NORMAL:
            continue
        assert isinstance(sample.mask, Path)
        mask = read_mask(sample.mask)
        assert all(max(box.width, box.height) < 64 for box in defect_boxes(mask))
        gray = read_image(sample.path).pixels.astype(float)
        gray = gray if gray.ndim == 2 else gray.mean(axis=2)
        ys, xs = np.nonzero(mask)
        around = np.zeros_like(mask)
        around[max(ys.min() - 15, 0) : ys.max() + 15, max(xs.min() - 15, 0) : xs.max() + 15] = True
        assert abs(gray[mask].mean() - gray[around & ~mask].mean()) > 8
