from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.annotations.yolo import read_names
from defectgen.errors import BadInputError
from defectgen.folders import read_defects
from defectgen.imaging import shapes
from defectgen.marking import Marking

Fixture = Callable[..., Any]


def as_ultralytics(mask: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The outlines of a mask, as fractions, as `convert_segment_masks_to_yolo_seg` writes them."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [np.round(each[:, 0] / mask.shape[::-1], 6) for each in contours if len(each) >= 3]


def test_outlines_as_ultralytics_writes_them_are_the_mask() -> None:
    height, width = 190, 333
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(height, width)), (0, 0), 6)
    blobs, _ = cv2.findContours((noise > 0.02).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(noise.shape, np.uint8)
    cv2.drawContours(mask, blobs, -1, 1, -1)
    drawn = np.zeros(mask.shape, np.bool_)
    for outline in as_ultralytics(mask):
        drawn |= shapes.relative(outline, height, width)
    assert (drawn & (mask > 0)).sum() / (drawn | (mask > 0)).sum() > 0.99


def test_its_usual_folders(tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture) -> None:
    """Images of equal names in several splits have their labels in the folders of these splits."""
    save(tmp_path / "data.yaml", "path: ../x  # somewhere\ntrain: images/train\nnames:\n  0: crack\n  1: 'blow hole'\n")
    rows = {"train": "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0.5 0.5 0.2 0.4 0.9\n", "val": "1 .1 .1 .5 .1 .5 .5 .7\n"}
    for split, text in rows.items():
        photo(tmp_path / f"images/{split}/a.png")
        photo(tmp_path / f"images/{split}/free.png")
        save(tmp_path / f"labels/{split}/a.txt", text)
        save(tmp_path / f"labels/{split}/free.txt", "")
    for given in (tmp_path, tmp_path / "data.yaml", tmp_path / "labels"):
        catalog = read_defects(tmp_path / "images", marking=Marking(given))
        assert {(str(image.path.relative_to(tmp_path)), image.category) for image in catalog.images} == {
            ("images/train/a.png", "crack"), ("images/train/a.png", "blow hole"), ("images/val/a.png", "blow hole"),
        }  # fmt: skip
        assert len(catalog.warnings) == 1  # the box; images listed as free are nothing odd
    with pytest.raises(BadInputError, match="is a .*a.png or .*a.png"):
        masks_of(tmp_path / "images", save(tmp_path / "other/a.txt", rows["val"]))


def test_a_box_has_a_center_and_a_size(tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture) -> None:
    photo(tmp_path / "a.png")
    save(tmp_path / "classes.txt", "crack\ndent\n")
    masks, _ = masks_of(tmp_path, save(tmp_path / "a.txt", "1 0.5 0.5 0.1 0.2\n"))
    assert masks["a.png", "dent"][12:18, 18:22].all()
    assert masks["a.png", "dent"].sum() == 24


def test_classes_without_names(tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture) -> None:
    photo(tmp_path / "a.png")
    row = "1 0.1 0.1 0.5 0.1 0.5 0.5\n"
    masks, lines = masks_of(tmp_path, save(tmp_path / "a.txt", row))
    assert set(masks) == {("a.png", "class-1")}
    assert "names the classes" in lines[0]
    save(tmp_path / "data.yaml", "names: [crack]")
    save(tmp_path / "a.txt", row + row.replace("1", "0", 1))
    masks, lines = masks_of(tmp_path, tmp_path)
    assert set(masks) == {("a.png", "crack")}
    assert "not read: object of the class 1, which has no name" in lines[0]


@pytest.mark.parametrize(
    "text",
    [
        "names: [crack, 'blow hole', \"it's\"]\nnc: 3",
        "nc: 3\nnames:\n- crack\n- blow hole\n- it's\nval: x",
        "names:\n  0: crack  # first\n  1: 'blow hole'\n\n  2: \"it's\"\n",
        "names: {0: crack, 1: blow hole, 2: 'it''s'}",
        "names: ['crack',\n  'blow hole',\n  'it''s']\n",
        'names: ["crack", "blow\\x20hole", "it\\u0027s"]',
    ],
)
def test_each_way_to_write_names(save: Fixture, tmp_path: Path, text: str) -> None:
    """By the standard of PyYAML, which reads all of them the same."""
    assert read_names(save(tmp_path / "data.yaml", text)) == {0: "crack", 1: "blow hole", 2: "it's"}


def test_coordinates_that_are_no_fractions(tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(BadInputError, match=r"a\.txt: damaged, or not YOLO txt .*fractions"):
        masks_of(tmp_path, save(tmp_path / "a.txt", "0 10 10 50 10 50 50\n"))
