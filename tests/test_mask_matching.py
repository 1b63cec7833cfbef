import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectgen.errors import BadInputError
from defectgen.mask_matching import (
    about,
    image_files,
    match,
    match_beside,
    unread_folders,
    unread_formats,
    without_masks,
)


def files(tmp_path: Path, names: Sequence[str]) -> list[Path]:
    """Writes an image for each name; those that are followed by `*` are masks."""
    paths = []
    for name in names:
        path = tmp_path / name.rstrip("*")
        pixels = np.full((16, 16), 90, np.uint8)
        if name.endswith("*"):
            pixels[:], pixels[4:8] = 0, 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def matched(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    found = match([Path("i", name) for name in images], [Path("m", name) for name in masks])
    return {image.name: mask.name for image, mask in found.items()}


@pytest.mark.parametrize(
    ("images", "masks", "pairs"),
    [
        (["a.jpg", "b.PNG", "c.png"], ["a.png", "b_mask.png"], {"a.jpg": "a.png", "b.PNG": "b_mask.png"}),
        (["a.png", "b.png", "c.png"], ["a_GT.PNG", "b-label.bmp", "c_seg.png"],
         {"a.png": "a_GT.PNG", "b.png": "b-label.bmp", "c.png": "c_seg.png"}),
        (["a_mask.png"], ["a_mask.png"], {"a_mask.png": "a_mask.png"}),
        (["a.jpg", "a.jpg.png"], ["a.png", "a.jpg.png"], {"a.jpg": "a.png", "a.jpg.png": "a.jpg.png"}),
        (["a.jpg", "b.jpg"], ["a.jpg.png", "b.jpg_mask.png"], {"a.jpg": "a.jpg.png", "b.jpg": "b.jpg_mask.png"}),
        (["a_mask.png"], ["a_mask_mask.png"], {"a_mask.png": "a_mask_mask.png"}),
        (["a.png", "a_mask.png"], ["a.png", "a_mask.png"], {"a.png": "a.png", "a_mask.png": "a_mask.png"}),
        (["a.png", "a_mask.png"], ["a_mask.png", "a_mask_mask.png"],
         {"a.png": "a_mask.png", "a_mask.png": "a_mask_mask.png"}),
        (["d0.png"], ["D0.png", "other.png"], {}),
    ],
)  # fmt: skip
def test_masks_are_matched_by_name(images: list[str], masks: list[str], pairs: dict[str, str]) -> None:
    assert matched(images, masks) == pairs
    assert matched(images[::-1], masks[::-1]) == pairs


@pytest.mark.parametrize(
    ("images", "masks", "names"),
    [
        (["p.png", "p.bmp"], ["p.png"], ["i/p.png", "i/p.bmp", "m/p.png"]),
        (["p.png"], ["p.png", "p_mask.png"], ["i/p.png", "m/p.png", "m/p_mask.png"]),
        (["p.png"], ["p.png", "p.bmp"], ["i/p.png", "m/p.png", "m/p.bmp"]),
        (["a.png", "a_mask.png"], ["a_mask.png"], ["i/a.png", "i/a_mask.png", "m/a_mask.png"]),
        (["a.png", "a_mask.png"], ["a.png", "a_mask.png", "a_mask_mask.png"], ["has two masks"]),
    ],
)
def test_what_is_not_clear_is_an_error_that_names_all(images: list[str], masks: list[str], names: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        matched(images, masks)
    assert all(name in str(caught.value) for name in names)


def test_names_of_a_mac_match() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Gehäuse.png") for form in ("NFC", "NFD"))
    assert matched([composed], [decomposed]) == {composed: decomposed}
    assert matched([decomposed], [composed.replace(".", "_mask.")]) == {decomposed: composed.replace(".", "_mask.")}


class TestBeside:
    @pytest.mark.parametrize(
        ("names", "pairs"),
        [
            (["p0.jpg", "p0.png*", "p1.jpg"], {"p0.jpg": "p0.png"}),
            (["p0.bmp*", "p0.png"], {"p0.png": "p0.bmp"}),
            (["p.png", "p_mask.png*", "q.png", "q_GT.png*"], {"p.png": "p_mask.png", "q.png": "q_GT.png"}),
            (["p.png", "p_label.png"], {"p.png": "p_label.png"}),  # its values are an error of the mask, later
            (["a_mask.png", "a_mask_mask.png*"], {"a_mask.png": "a_mask_mask.png"}),
            (["a.jpg", "a.png*", "a_label.jpg", "a_label.png*"], {"a.jpg": "a.png", "a_label.jpg": "a_label.png"}),
            (["part_mask.png", "other.png"], {}),
        ],
    )
    def test_masks_among_their_images(self, tmp_path: Path, names: list[str], pairs: dict[str, str]) -> None:
        paths = files(tmp_path, names)
        beside, lines = match_beside(paths, {})
        assert {image.name: mask.name for image, mask in beside.items()} == pairs
        assert all(mask in lines[0] for mask in pairs.values()) if pairs else not lines

    @pytest.mark.parametrize(
        "names",
        [
            ["p.png*", "p.bmp*"],
            ["p.jpg", "p.png*", "p.bmp*"],
            ["p.jpg", "p.png*", "p_mask.png*"],
            ["p.jpg", "p.bmp", "p_mask.png*"],
            ["a.png", "a_mask.png", "a_mask_mask.png*"],
        ],
    )
    def test_what_is_not_clear_is_an_error(self, tmp_path: Path, names: list[str]) -> None:
        with pytest.raises(BadInputError, match="mask"):
            match_beside(files(tmp_path, names), {})

    def test_a_mask_elsewhere_and_one_beside(self, tmp_path: Path) -> None:
        photo, own, other = files(tmp_path, ["p.png", "p_mask.png*", "masks/p.png*"])
        with pytest.raises(BadInputError, match=r"has two masks, .*masks/p\.png and .*p_mask\.png"):
            match_beside([photo, own], {photo: other})
        (named,) = files(tmp_path, ["p_label.png"])  # a photograph, by its pixels
        assert match_beside([photo, named], {photo: other}) == ({}, [])

    def test_two_images_of_one_name_are_told(self, tmp_path: Path) -> None:
        beside, lines = match_beside(files(tmp_path, ["p.png", "p.bmp"]), {})
        assert beside == {}
        assert "2 images have one name (p.png, p.bmp)" in lines[0]

    def test_what_a_table_lists_is_an_image(self, tmp_path: Path) -> None:
        paths = files(tmp_path, ["p.png", "p_mask.png"])
        assert match_beside(paths, {}, paths) == ({}, [])

    def test_normals_without_their_masks(self, tmp_path: Path) -> None:
        paths = files(tmp_path, ["0.png", "0_GT.png*", "1.jpg", "1.png*", "2.png", "2_label.png", "3.png", "3.bmp"])
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "0_GT.png")
        images, (line,) = without_masks(paths)
        assert [path.name for path in images] == ["0.png", "1.jpg", "2.png", "2_label.png", "3.png", "3.bmp"]
        assert "2 masks lie among normal images (0_GT.png, 1.png)" in line


def test_what_systems_leave_behind_is_not_listed(tmp_path: Path) -> None:
    paths = files(tmp_path, ["a.png", "b.JPG"])
    left = ["._a.png", ".hidden.png", "Thumbs.db", "__MACOSX/a.png", "@eaDir/a.png", "$RECYCLE.BIN/a.png"]
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert image_files(tmp_path) == paths
    assert unread_folders(tmp_path) == []


def test_images_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    files(tmp_path, ["a.png", "lot 1/b.png", "masks/a.png"])
    for name in ("d.gif", "a.heic", "b.PGM", "c.jp2", "notes.txt", "a.json"):
        (tmp_path / name).write_bytes(b"x")
    assert unread_formats(tmp_path) == [
        f"{tmp_path}: 4 images have formats that are not read (a.heic, b.PGM, c.jp2 and 1 more); convert to PNG"
    ]
    (line,) = unread_folders(tmp_path)
    assert "1 folder of images is not read (lot 1)" in line


def test_a_line_about_files_of_several_folders() -> None:
    paths = [Path("in/a/1.png"), Path("in/b/2.png")]
    assert about(paths, "image is odd", "images are odd", "look") == "in: 2 images are odd (a/1.png, b/2.png); look"
    assert about(paths[:1], "image is odd", "images are odd") == "in/a: 1 image is odd (1.png)"
