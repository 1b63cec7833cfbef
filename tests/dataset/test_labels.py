"""COCO and YOLO labels, decoded by independent readers and compared with the masks."""

import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.dataset import Layout, LayoutOptions, Normal, Sample, open_folder
from defectgen.dataset.coco import run_lengths
from defectgen.dataset.manifest import Provenance
from defectgen.dataset.polygons import bridged, pieces, together
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


def write(out: Path, layout: Layout, **options: Any) -> list[Sample]:
    """A sample of each mask, every third for validation, and two normals."""
    image = np.full((40, 50), 100, np.uint8)
    made = [
        Sample(i, ("hole", "crack")[i % 2], "p", image, mask, Provenance(seed=0), validates=i % 3 == 2)
        for i, mask in enumerate(masks().values())
    ]
    normals = [Normal("p", validates, lambda: image) for validates in (False, True)]
    dataset = open_folder(
        out, layout=layout, command="", resume=False, overwrite=False, options=LayoutOptions(**options)
    )
    dataset.write(made, normals=normals)
    return made


def decoded_coco(segmentation: Any, shape: tuple[int, ...] = (40, 50)) -> Mask:
    if isinstance(segmentation, dict):
        return decoded(segmentation)
    return np.any([filled(np.array(each).reshape(-1, 2), shape) for each in segmentation], axis=0)


@pytest.mark.parametrize("segmentation", ["auto", "polygon", "rle"])
@pytest.mark.parametrize("instances", ["defects", "pieces"])
def test_coco_annotations_add_up_to_the_masks(tmp_path: Path, segmentation: str, instances: str) -> None:
    made = write(tmp_path, Layout.COCO, segmentation=segmentation, instances=instances, normals_share=0.2)
    found = {}
    for split in ("train", "val"):
        document = json.loads((tmp_path / f"annotations/instances_{split}.json").read_text())
        assert [each["name"] for each in document["categories"]] == ["crack", "hole"]
        assert [each["id"] for each in document["categories"]] == [1, 2]
        assert [each["id"] for each in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
        for image in document["images"]:
            assert (tmp_path / "images" / image["file_name"]).is_file()
            assert (image["height"], image["width"]) == (40, 50)
            assert image["id"] not in found
            found[image["id"]] = (split, image["file_name"], np.zeros((40, 50), np.bool_), list[Any]())
        for each in document["annotations"]:
            assert each["iscrowd"] == 0
            mask = decoded_coco(each["segmentation"])
            rows, columns = np.nonzero(mask)
            assert each["area"] == mask.sum()
            assert each["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            found[each["image_id"]][2][mask] = True
            found[each["image_id"]][3].append(each["segmentation"])
    for sample in made:
        split, name, mask, segmentations = found.pop(sample.index + 1)
        assert (split, name) == (("train", "val")[sample.validates], f"{sample.index:06}.png")
        np.testing.assert_array_equal(mask, sample.mask)
        assert len(segmentations) == (1 if instances == "defects" else len(list(pieces(sample.mask))))
        holes = any(piece.holes for piece in pieces(sample.mask))
        kinds = {type(each) for each in segmentations}
        if segmentation == "polygon" or (segmentation == "auto" and not holes):
            assert kinds == {list}
        else:
            assert dict in kinds
    assert sorted((split, name, int(mask.sum())) for split, name, mask, _ in found.values()) == [
        ("train", "normal_000000.png", 0), ("val", "normal_000001.png", 0)
    ]  # fmt: skip


@pytest.mark.parametrize("instances", ["defects", "pieces"])
def test_yolo_rows_add_up_to_the_masks(tmp_path: Path, instances: str) -> None:
    made = write(tmp_path, Layout.YOLO, instances=instances, normals_share=0.2)
    assert (tmp_path / "data.yaml").read_text() == (
        'train: images/train\nval: images/val\nnames:\n  0: "crack"\n  1: "hole"\n'
    )
    for sample in made:
        split = ("train", "val")[sample.validates]
        assert (tmp_path / f"images/{split}/{sample.index:06}.png").is_file()
        whole = np.zeros((40, 50), np.bool_)
        lines = (tmp_path / f"labels/{split}/{sample.index:06}.txt").read_text().splitlines()
        assert len(lines) == (1 if instances == "defects" else len(list(pieces(sample.mask))))
        for line in lines:
            category, *values = line.split()
            assert ("crack", "hole")[int(category)] == sample.category
            points = np.array(values, float).reshape(-1, 2)
            assert len(points) >= 3
            assert points.min() >= 0
            assert points.max() <= 1
            whole |= filled(points * [50, 40], (40, 50))
        np.testing.assert_array_equal(whole, sample.mask)
        np.testing.assert_array_equal(read_mask(tmp_path / f"masks/{split}/{sample.index:06}.png"), sample.mask)
    for number, split in enumerate(("train", "val")):
        assert (tmp_path / f"images/{split}/normal_{number:06}.png").is_file()
        assert (tmp_path / f"labels/{split}/normal_{number:06}.txt").read_text() == ""


@pytest.mark.parametrize("layout", [Layout.COCO, Layout.YOLO])
def test_pieces_of_two_defects_are_two_annotations(tmp_path: Path, layout: Layout) -> None:
    """Three squares are of the first, and one of the second, which has two; where they touch, they are one."""
    numbers = np.zeros((2, 40, 50), np.uint16)
    for x, number in ((2, 1), (10, 2), (20, 1), (30, 1), (36, 2)):
        numbers[:, 5:9, x : x + 4] = number
    numbers[1, 5:9, 34:36] = 1
    made = [Sample(i, "a", "p", np.zeros((40, 50), np.uint8), n > 0, Provenance(), numbers=n)
            for i, n in enumerate(numbers)]  # fmt: skip
    open_folder(tmp_path, layout=layout, command="", resume=False, overwrite=False).write(made)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    by_box = [dict(zip((box[0] for box in row["boxes"]), row["instances"], strict=True)) for row in rows]
    assert by_box[0][2] == by_box[0][20] == by_box[0][30] != by_box[0][10] == by_box[0][36]
    assert set(by_box[1].values()) == {0}
    if layout is Layout.YOLO:
        labels = [(tmp_path / f"labels/train/{i:06}.txt").read_text().splitlines() for i in range(2)]
        assert [len(lines) for lines in labels] == [2, 1]
    else:
        document = json.loads((tmp_path / "annotations/instances_train.json").read_text())
        assert sorted((each["image_id"], each["area"]) for each in document["annotations"]) == [
            (1, 32), (1, 48), (2, 88)
        ]  # fmt: skip


def test_pieces_of_older_rows_with_several_defects_stay_apart(tmp_path: Path) -> None:
    defects = {"defects": [{"at": (0, 0)}, {"at": (9, 9)}]}
    mask = masks()["two"]
    sample = Sample(0, "a", "p", np.zeros((40, 50), np.uint8), mask, Provenance(parameters=defects))
    open_folder(tmp_path, layout=Layout.YOLO, command="", resume=False, overwrite=False).write([sample])
    assert len((tmp_path / "labels/train/000000.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("layout", [Layout.COCO, Layout.YOLO])
def test_without_validation_samples(tmp_path: Path, layout: Layout) -> None:
    """YOLO validates on those for training, since Ultralytics demands some; COCO has no file for none."""
    sample = Sample(0, "a", "p", np.zeros((40, 50), np.uint8), masks()["square"], Provenance())
    dataset = open_folder(tmp_path, layout=layout, command="", resume=False, overwrite=False)
    dataset.write([sample])
    assert "too few samples for validation" in dataset.warnings[0]
    if layout is Layout.YOLO:
        assert "val: images/train\n" in (tmp_path / "data.yaml").read_text()
    else:
        assert [path.name for path in (tmp_path / "annotations").iterdir()] == ["instances_train.json"]


def test_polygons_of_thousands_of_holes_take_time_by_pixels() -> None:
    rows, columns = np.mgrid[:800, :800]
    (piece,) = pieces((rows % 10 < 7) | (columns % 10 < 7))
    start = time.process_time()
    line = bridged(piece)
    assert time.process_time() - start < 2  # 0.3 s; each hole to the whole line takes a minute
    assert len(piece.holes) > 6000
    x, y = line.T
    area = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2
    parts = [(each, 1 if i == 0 else -1) for i, each in enumerate((piece.outline, *piece.holes))]
    areas = [
        sign * abs(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - np.roll(p[:, 0], -1) * p[:, 1])) / 2 for p, sign in parts
    ]
    assert abs(area) == pytest.approx(sum(areas))


def test_joined_polygons_fill_to_all_of_them() -> None:
    rng = np.random.default_rng(3)
    mask = cv2.GaussianBlur(rng.normal(size=(60, 90)), (0, 0), 1.2) > 0.1
    lines = [bridged(piece) for piece in pieces(mask)]
    assert len(lines) > 10
    np.testing.assert_array_equal(filled(together(lines), mask.shape), mask)


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
        document = json.loads((tmp_path / "annotations/instances_train.json").read_text(encoding="utf-8"))
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
