from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Fixture = Callable[..., Any]


def test_boxes_count_from_one_and_include_their_last_pixel(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    photo(tmp_path / "JPEGImages/a.jpg")
    box = "<bndbox><xmin>2</xmin><ymin>6</ymin><xmax>3</xmax><ymax>10</ymax></bndbox>"
    objects = f"<object><name>crack</name>{box}</object>" * 2 + "<object><name>point</name></object>"
    size = "<size><width>40</width><height>30</height><depth>1</depth></size>"
    save(tmp_path / "Annotations/a.xml", f"<annotation><filename>old.jpg</filename>{size}{objects}</annotation>")
    masks, lines = masks_of(tmp_path / "JPEGImages", tmp_path / "Annotations")
    wanted = np.zeros((30, 40), np.bool_)
    wanted[5:10, 1:3] = True
    np.testing.assert_array_equal(masks["a.jpg", "crack"], wanted)
    assert [line.split(": ", 1)[1] for line in lines] == [
        "not read: object without a box",
        "2 boxes are used as masks, with all the ground in it; outline defects for better masks",
    ]
