import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectgen.errors import BadInputError

Fixture = Callable[..., Any]


def document(*shapes: dict[str, Any], name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {
        "version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": name, "imageData": None,
        "imageHeight": 30, "imageWidth": 40, **more,
    }  # fmt: skip


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def test_every_kind_of_shape(tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture) -> None:
    photo(tmp_path / "a.png")
    part = np.array([[True, False, True], [True, True, True]])
    data = io.BytesIO()
    Image.fromarray(part).save(data, "PNG")
    save(
        tmp_path / "a.json",
        document(
            shape("polygon", [[2, 3], [9, 3], [9, 8], [2, 8]]),
            shape("box", [[30, 20], [20, 10]], "rectangle"),
            shape("disc", [[20, 15], [20, 20]], "circle"),
            shape("mask", [[5, 6], [7, 7]], "mask", mask=base64.b64encode(data.getvalue()).decode()),
            shape("line", [[3, 20], [30, 20]], "linestrip"),
            shape("dot", [[10, 10]], "point"),
            shape("odd", [[10, 10]], "spiral"),
            shape("__ignore__", [[0, 0], [40, 0], [40, 30]]),
        ),
    )
    masks, lines = masks_of(tmp_path, tmp_path)
    masks = {name: mask for (_, name), mask in masks.items()}
    assert set(masks) == {"polygon", "box", "disc", "mask", "line", "dot"}
    assert masks["polygon"][3:9, 2:10].all()
    assert masks["polygon"].sum() == 6 * 8
    assert masks["box"][10:21, 20:31].all()
    assert masks["box"].sum() == 11 * 11
    assert masks["disc"].sum() == pytest.approx(np.pi * 5.5**2, rel=0.1)
    np.testing.assert_array_equal(masks["mask"][6:8, 5:8], part)
    assert masks["line"][20, 3:31].all()
    assert masks["dot"][10, 10]
    assert any("1 box is used as a mask" in line for line in lines)
    assert any("2 lines and points are drawn" in line for line in lines)
    assert any("not read: spiral" in line for line in lines)


def test_the_file_named_as_the_image_is_its_own(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    """As LabelMe opens it: of a copy, `imagePath` is still that of the first image."""
    for name in ("a", "b"):
        photo(tmp_path / f"{name}.png")
        save(tmp_path / f"{name}.json", document(shape(name, [[2, 3], [9, 3], [9, 8]])))
    assert set(masks_of(tmp_path, tmp_path)[0]) == {("a.png", "a"), ("b.png", "b")}


def test_files_in_a_folder_of_their_own_with_windows_paths(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    for place in ("left", "right"):
        photo(tmp_path / f"images/{place}/a.png")
        path = f"..\\images\\{place}\\a.png"
        save(tmp_path / f"json/{place}.json", document(shape(place, [[2, 3], [9, 3], [9, 8]]), name=path))
    masks, _ = masks_of(tmp_path / "images", tmp_path / "json")
    assert {name for _, name in masks} == {"left", "right"}


def test_a_turned_image_is_annotated_as_it_is_shown(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "a.jpg", size=(40, 30), exif=exif)
    save(tmp_path / "a.json", document(shape("crack", [[2, 3], [39, 3], [39, 8]]), name="a.jpg"))
    masks, lines = masks_of(tmp_path, tmp_path)
    assert masks["a.jpg", "crack"].shape == (30, 40)
    assert lines == []
    save(tmp_path / "a.json", document(shape("crack", [[2, 3]] * 3), name="a.jpg", imageHeight=40, imageWidth=30))
    with pytest.raises(BadInputError, match=r"is of an image of 30x40 pixels, but this one has 40x30; .*EXIF"):
        masks_of(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "content",
    ['{"shapes": [', '{"shapes": 3}', '{"shapes": [{"label": "a", "points": [[1, 2], [3]]}]}', '{"shapes": [3]}'],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture, content: str
) -> None:
    photo(tmp_path / "a.png")
    save(tmp_path / "a.json", content)
    with pytest.raises(BadInputError, match=r"a\.json: damaged, or not LabelMe JSON"):
        masks_of(tmp_path, tmp_path)


def test_a_mask_that_cannot_be_drawn_skips_its_image(
    tmp_path: Path, photo: Fixture, masks_of: Fixture, save: Fixture
) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    save(tmp_path / "a.json", document(shape("crack", [[5, 6], [7, 7]], "mask", mask="AAAA")))
    save(tmp_path / "b.json", document(shape("crack", [[2, 3], [9, 3], [9, 8]])))
    masks, lines = masks_of(tmp_path, tmp_path)
    assert set(masks) == {("b.png", "crack")}
    assert "a.json: a: its mask is no PNG" in lines[0]
