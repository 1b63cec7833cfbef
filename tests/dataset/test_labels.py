"""COCO and YOLO labels, decoded by independent readers and compared with the masks."""

import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.dataset import Layout, Sample, open_folder
from defectgen.dataset.coco import run_lengths
from defectgen.dataset.manifest import Provenance
from defectgen.dataset.polygons import bridged, pieces
from defectgen.imaging.images import read_mask
from defectgen.imaging.windows import paste_on_zeros

Mask = NDArray[np.bool_]


def masks() -> dict[str, Mask]:
    blank = np.zeros((40, 50), np.bool_)
    shapes = {
        name: blank.copy() for name in ("square", "line", "pixel", "diagonal", "ring", "rings", "edge", "two", "blob")
    }
    shapes["square"][5:15, 8:30] = True
    shapes["line"][20, 3:45] = True
    shapes["pixel"][7, 9] = True
    shapes["diagonal"][np.arange(30), np.arange(30)] = True
    shapes["ring"][5:25, 5:25] = True
    shapes["ring"][10:18, 12:20] = False
    shapes["rings"][2:38, 2:48] = True
    shapes["rings"][6:12, 6:12] = False
    shapes["rings"][20:30, 30:40] = False
    shapes["edge"][:, :4] = True
    shapes["edge"][36:, :] = True
    shapes["two"][3:9, 3:9] = True
    shapes["two"][20:30, 30:45] = True
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(40, 50)), (0, 0), 3)
    shapes["blob"] = noise > 0.02
    return shapes


def filled(points: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """A polygon's pixels by the even-odd rule at their centers, one crossing at a time."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, np.bool_)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= ys) != (y1 <= ys)
            inside ^= crosses & (xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
    return inside


def decoded(lengths: dict[str, Any]) -> Mask:
    """Decode COCO's run lengths as its C code does."""
    counts: list[int] = []
    data, i = lengths["counts"].encode(), 0
    while i < len(data):
        value, k, more = 0, 0, True
        while more:
            c = data[i] - 48
            value |= (c & 0x1F) << 5 * k
            more = bool(c & 0x20)
            i, k = i + 1, k + 1
            if not more and c & 0x10:
                value |= -1 << 5 * k
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    height, width = lengths["size"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


@pytest.mark.parametrize("name", masks())
def test_polygons_fill_to_exactly_the_mask(name: str) -> None:
    mask = masks()[name]
    whole = np.zeros_like(mask)
    for piece in pieces(mask):
        shape = filled(bridged(piece), mask.shape)
        np.testing.assert_array_equal(shape, paste_on_zeros(piece.mask, (piece.box.x, piece.box.y), mask.shape))
        whole |= shape
    np.testing.assert_array_equal(whole, mask)


def test_run_lengths_of_a_known_case() -> None:
    mask = np.zeros((4, 5), np.bool_)
    mask[1:3, 1:4] = True
    assert run_lengths(mask) == {"size": [4, 5], "counts": "5220003"}


@pytest.mark.parametrize("name", masks())
def test_run_lengths_decode_to_the_mask(name: str) -> None:
    mask = masks()[name]
    np.testing.assert_array_equal(decoded(run_lengths(mask)), mask)
    np.testing.assert_array_equal(decoded(run_lengths(~mask)), ~mask)


@pytest.mark.parametrize("at", [(0, 0), (3, 2), (0, 9), (20, 0), (20, 9)])  # within, and at each edge
def test_run_lengths_of_a_part_are_those_of_the_whole(at: tuple[int, int]) -> None:
    rings = masks()["rings"][1:32, 1:31]
    for part in (rings, ~rings):
        whole = paste_on_zeros(part, at, (40, 50))
        assert run_lengths(part, at, whole.shape) == run_lengths(whole)


def test_pieces_are_those_of_each_label_on_the_whole_mask() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        mask = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 1.5) > rng.uniform(-0.2, 0.2)
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        found = list(pieces(mask))
        assert len(found) == count - 1
        for label, piece in enumerate(found, start=1):
            whole = labels == label
            np.testing.assert_array_equal(paste_on_zeros(piece.mask, (piece.box.x, piece.box.y), mask.shape), whole)
            doubled = whole.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
            contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            lines = {((contour[:, 0] + 0.5) / 2).tobytes() for contour in contours}
            assert {line.tobytes() for line in (piece.outline, *piece.holes)} == lines


def test_the_labels_of_many_small_defects_take_time_by_pixels() -> None:
    rows, columns = np.mgrid[:1024, :1024]
    mask = (rows % 20 < 4) & (columns % 20 < 4)
    start = time.process_time()
    assert sum(1 for _ in pieces(mask)) == 2704
    assert time.process_time() - start < 1  # 0.15 s; by pixels times defects it takes ten


def test_run_lengths_agree_with_pycocotools() -> None:
    reader = pytest.importorskip("pycocotools.mask")
    for mask in masks().values():
        assert reader.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() == run_lengths(mask)["counts"]


def write(out: Path, layout: Layout) -> list[Sample]:
    image = np.full((40, 50), 100, np.uint8)
    made = [
        Sample(i, ("hole", "crack")[i % 2], "p", image, mask, Provenance(seed=0))
        for i, mask in enumerate(masks().values())
    ]
    open_folder(out, layout=layout, command="", resume=False, overwrite=False).write(made)
    return made


def test_coco_annotations_add_up_to_the_masks(tmp_path: Path) -> None:
    made = write(tmp_path, Layout.COCO)
    document = json.loads((tmp_path / "annotations.json").read_text())
    assert document["categories"] == [
        {"id": 1, "name": "crack", "supercategory": "defect"},
        {"id": 2, "name": "hole", "supercategory": "defect"},
    ]
    assert [image["id"] for image in document["images"]] == list(range(1, 10))
    assert [each["id"] for each in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    wholes = {image["id"]: np.zeros((40, 50), np.bool_) for image in document["images"]}
    for image in document["images"]:
        assert (tmp_path / "images" / image["file_name"]).is_file()
        assert (image["height"], image["width"]) == (40, 50)
    for each in document["annotations"]:
        assert each["iscrowd"] == 0
        segmentation = each["segmentation"]
        if isinstance(segmentation, dict):
            mask = decoded(segmentation)
        else:
            mask = filled(np.array(segmentation[0]).reshape(-1, 2), (40, 50))
        rows, columns = np.nonzero(mask)
        assert each["area"] == mask.sum()
        assert each["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        wholes[each["image_id"]] |= mask
    for sample in made:
        np.testing.assert_array_equal(wholes[sample.index + 1], sample.mask)


def test_yolo_rows_add_up_to_the_masks(tmp_path: Path) -> None:
    made = write(tmp_path, Layout.YOLO)
    assert (tmp_path / "data.yaml").read_text() == (
        'train: images/train\nval: images/val\nnames:\n  0: "crack"\n  1: "hole"\n'
    )
    for sample in made:
        split = "val" if sample.index % 5 == 4 else "train"
        assert (tmp_path / f"images/{split}/{sample.index:06}.png").is_file()
        whole = np.zeros((40, 50), np.bool_)
        for line in (tmp_path / f"labels/{split}/{sample.index:06}.txt").read_text().splitlines():
            category, *values = line.split()
            assert ("crack", "hole")[int(category)] == sample.category
            points = np.array(values, float).reshape(-1, 2)
            assert len(points) >= 3
            assert points.min() >= 0
            assert points.max() <= 1
            whole |= filled(points * [50, 40], (40, 50))
        np.testing.assert_array_equal(whole, sample.mask)
        np.testing.assert_array_equal(read_mask(tmp_path / f"masks/{split}/{sample.index:06}.png"), sample.mask)


def test_yolo_without_validation_samples_validates_on_training_samples(tmp_path: Path) -> None:
    sample = Sample(0, "a", "p", np.zeros((40, 50), np.uint8), masks()["square"], Provenance())
    open_folder(tmp_path, layout=Layout.YOLO, command="", resume=False, overwrite=False).write([sample])
    assert "val: images/train\n" in (tmp_path / "data.yaml").read_text()


NAMES = [
    "crack", "pit hole", 'say "no"', "it's", "a: b", "- x", "#1", "{a}", "on", "null", "1.5", "Löcher", "ひび", "😀",
    "tab\tand\nline", "back\\slash", "\x7f", "\x85", "\u2028", "\ufeffx", " ends ",
]  # fmt: skip


def unquoted(text: str) -> str:
    """A double-quoted YAML scalar, by the rules of YAML 1.2: only printable characters, and escapes."""
    assert text[0] == text[-1] == '"'
    plain = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}
    found, i = "", 1
    while i < len(text) - 1:
        if text[i] == "\\" and text[i + 1] == "u":
            code = int(text[i + 2 : i + 6], 16)
            assert not 0xD800 <= code < 0xE000  # YAML joins no pairs
            found, i = found + chr(code), i + 6
        elif text[i] == "\\":
            found, i = found + plain[text[i + 1]], i + 2
        else:
            assert text[i] != '"'
            assert text[i].isprintable()
            found, i = found + text[i], i + 1
    return found


@pytest.mark.parametrize("layout", [Layout.YOLO, Layout.COCO, Layout.MVTEC])
def test_any_name_of_a_category_is_read_back(tmp_path: Path, layout: Layout) -> None:
    mask = masks()["square"]
    image = np.full((40, 50), 100, np.uint8)
    made = [Sample(i, name, name, image, mask, Provenance()) for i, name in enumerate(NAMES)]
    open_folder(tmp_path, layout=layout, command="", resume=False, overwrite=False).write(made)
    if layout is Layout.YOLO:
        head, listed = (tmp_path / "data.yaml").read_text(encoding="utf-8").split("names:\n")
        assert [line.split(": ")[0] for line in head.splitlines()] == ["train", "val"]
        lines = [line.split(": ", 1) for line in listed.split("\n")[:-1]]
        assert [number for number, _ in lines] == [f"  {i}" for i in range(len(NAMES))]
        assert [unquoted(text) for _, text in lines] == sorted(NAMES)
    elif layout is Layout.COCO:
        document = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
        assert [each["name"] for each in document["categories"]] == sorted(NAMES)
    else:
        folders = [path.parent for path in tmp_path.glob("*/test/*/*.png")]
        assert len({folder.name for folder in folders}) == len(NAMES)
        assert all(str(folder.relative_to(tmp_path)).isascii() for folder in folders)


@pytest.mark.parametrize("working", ["", "elsewhere"])
def test_yolo_is_found_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, working: str) -> None:
    """As Ultralytics finds it (data/utils.py): an existing `path` from the working folder, else the yaml's own."""
    write(tmp_path / "out/d", Layout.YOLO)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / working)
    lines = (tmp_path / "out/d/data.yaml").read_text().splitlines()
    values = dict(line.split(": ") for line in lines if not line.startswith((" ", "names")))
    root = Path(values["path"]) if "path" in values else tmp_path / "out/d"
    for split in ("train", "val"):
        assert list((root / values[split]).glob("*.png"))
