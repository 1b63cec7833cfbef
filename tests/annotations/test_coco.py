from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.errors import BadInputError
from defectgen.imaging import shapes

Fixture = Callable[..., Any]


def document(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "info": {}, "licenses": [],
        "images": [{"id": 7, "file_name": "a.png", "height": 30, "width": 40}],
        "categories": [{"id": 3, "name": " crack "}, {"id": 5, "name": "dent"}],
        "annotations": [{"id": i, "image_id": 7, "category_id": 3, **each} for i, each in enumerate(annotations)],
        **more,
    }  # fmt: skip


RUNS = [35, 5, 25, 5, 1130]
"""Rows 5 to 9 of columns 1 and 2, which pycocotools compresses to S15i00aR1."""


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"segmentation": [[1, 5, 3, 5, 3, 10, 1, 10]]}, np.s_[5:10, 1:3]),
        ({"segmentation": [1, 5, 3, 5, 3, 10, 1, 10]}, np.s_[5:10, 1:3]),
        ({"segmentation": [[1, 5, 3, 5, 3, 8, 1, 8], [1, 8, 3, 8, 3, 10, 1, 10]]}, np.s_[5:10, 1:3]),
        ({"segmentation": {"size": [30, 40], "counts": RUNS}, "iscrowd": 1}, np.s_[5:10, 1:3]),
        ({"segmentation": {"size": [30, 40], "counts": "S15i00aR1"}}, np.s_[5:10, 1:3]),
        ({"segmentation": [], "bbox": [1, 5, 2, 5]}, np.s_[5:10, 1:3]),
    ],
)
def test_each_way_to_mark(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture, annotation: dict[str, Any], expected: Any
) -> None:
    photo(tmp_path / "images/a.png")
    masks, lines = masks_of(tmp_path / "images", save(tmp_path / "some.json", document(annotation)))
    wanted = np.zeros((30, 40), np.bool_)
    wanted[expected] = True
    np.testing.assert_array_equal(masks["a.png", "crack"], wanted)
    assert [line for line in lines if "1 box is used" not in line] == []
    assert len(lines) == ("bbox" in annotation)


def test_several_categories_on_an_image_and_objects_that_cannot_be_read(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    photo(tmp_path / "a.png")
    square = {"segmentation": [[1, 5, 3, 5, 3, 10, 1, 10]]}
    content = document(square, {**square, "category_id": 5}, {**square, "category_id": 9}, {"segmentation": [[1, 2]]})
    masks, lines = masks_of(tmp_path, save(tmp_path / "x.json", content))
    assert set(masks) == {("a.png", "crack"), ("a.png", "dent")}
    assert lines == [f"{tmp_path}/x.json: not read: object of the unknown category 9, object without a shape"]
    masks, _ = masks_of(tmp_path, tmp_path / "x.json", categories=["dent"])
    assert set(masks) == {("a.png", "dent")}


def test_run_lengths_of_another_size_skip_the_image(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    photo(tmp_path / "a.png")
    content = document({"segmentation": {"size": [40, 30], "counts": RUNS}})
    with pytest.raises(BadInputError, match=r"run lengths are of 30x40 pixels, but the image has 40x30"):
        masks_of(tmp_path, save(tmp_path / "x.json", content))


@pytest.mark.parametrize(
    "more",
    [{"annotations": [{"image_id": 99, "category_id": 3}]}, {"images": [{}]}, {"annotations": [{"image_id": []}]}],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture, more: dict[str, Any]
) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(BadInputError, match=r"x\.json: damaged, or not COCO JSON"):
        masks_of(tmp_path, save(tmp_path / "x.json", document(**more)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with NumPy 2
def test_polygons_are_those_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 15))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(45, 60, (15, 1)) + 75
        theirs = coco.decode(coco.frPyObjects([corners.ravel().tolist()], 150, 150))[..., 0].astype(np.bool_)
        ours = shapes.polygon(corners, 150, 150)  # theirs rounds to fifths of pixels
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.99
