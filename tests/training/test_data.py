"""Training data."""

from pathlib import Path

from defectgen.folders import Catalog, SourceImage
from defectgen.training.data import hold_out


def test_every_tenth_normal_of_each_product_is_held_out() -> None:
    samples = tuple(
        SourceImage(path=Path(f"{product}/{category}{i}"), mask=None, category=category, product=product,
               height=9, width=9, channels=1, depth=8)
        for product in ("a", "b") for category in ("normal", "d") for i in range(27)
    )  # fmt: skip
    rest, held = hold_out(Catalog(images=samples, skipped=()))
    assert held == [Path(f"{product}/normal{i}") for product in ("a", "b") for i in (4, 14, 24)]
    assert len(rest.images) == len(samples) - 6
    assert not set(held) & {sample.path for sample in rest.images}
