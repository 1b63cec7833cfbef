from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.errors import BadInputError

Fixture = Callable[..., Any]


def document(inner: str, name: str = "some/a.png") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f'<image id="0" name="{name}" width="40" height="30">{inner}</image></annotations>'
    )


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ('<polygon label="crack" points="1.00,5.00;3.00,5.00;3.00,10.00;1.00,10.00" z_order="0"/>', np.s_[5:10, 1:3]),
        ('<box label="crack" xtl="1.00" ytl="5.00" xbr="3.00" ybr="10.00"/>', np.s_[5:10, 1:3]),
        ('<box label="crack" xtl="1" ytl="5" xbr="7" ybr="9" rotation="90.0"/>', np.s_[4:10, 2:6]),
        ('<mask label="crack" rle="0, 10" left="1" top="5" width="2" height="5"/>', np.s_[5:10, 1:3]),
        ('<polyline label="crack" points="4.5,6.5;20.5,6.5"/>', np.s_[5:8, 3:22]),
    ],
)
def test_each_way_to_mark(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture, inner: str, expected: Any
) -> None:
    photo(tmp_path / "images/some/a.png")
    masks, _ = masks_of(tmp_path / "images", save(tmp_path / "annotations.xml", document(inner)))
    wanted = np.zeros((30, 40), np.bool_)
    wanted[expected] = True
    np.testing.assert_array_equal(masks["a.png", "crack"], wanted)


def test_an_ellipse_and_run_lengths_row_by_row(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    photo(tmp_path / "a.png")
    inner = '<ellipse label="disc" cx="20" cy="15" rx="9" ry="4"/>'
    inner += '<mask label="chip" rle="1, 2, 2, 1" left="3" top="2" width="3" height="2"/><tag label="old"/>'
    masks, lines = masks_of(tmp_path, save(tmp_path / "a.xml", document(inner, "a.png")))
    assert masks["a.png", "disc"].sum() == pytest.approx(np.pi * 9 * 4, rel=0.05)
    np.testing.assert_array_equal(masks["a.png", "chip"][2:4, 3:6], [[0, 1, 1], [0, 0, 1]])
    assert any("not read: tag" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotations><track id='0'/></annotations>", "is of a video; export it from CVAT as"),
        ("<annotations><image></annotations>", "damaged, or not CVAT XML"),
        (document('<polygon label="a" points="1,2;3,x"/>'), "damaged, or not CVAT XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotations>&a;</annotations>', "it defines entities"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture, content: str, message: str
) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(BadInputError, match=message):
        masks_of(tmp_path, save(tmp_path / "a.xml", content))
