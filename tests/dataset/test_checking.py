import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.dataset import Layout, LayoutOptions, Normal, Sample, open_folder
from defectgen.dataset.checking import Loader, check
from defectgen.dataset.manifest import Provenance
from defectgen.errors import BadInputError


def made(out: Path, layout: Layout, *, depth: int = 8, category: str = "crack", side: int = 20, **options: Any) -> Path:
    image = np.full((side, side), 100, np.uint8 if depth == 8 else np.uint16)
    mask = np.zeros((side, side), np.bool_)
    mask[2:7, 2:7] = True
    mask[4, 4] = False
    two = mask.copy()
    two[4, 4] = True
    two[8, 8] = True
    samples = [
        Sample(i, category, "tile", image, each, Provenance(), validates=i == 1) for i, each in enumerate((mask, two))
    ]
    normals = [Normal("tile", i == 1, lambda: image) for i in range(2)]
    dataset = open_folder(
        out, layout=layout, command="", resume=False, overwrite=False, options=LayoutOptions(**options)
    )
    dataset.write(samples, normals=normals)
    return out


def verdicts(folder: Path) -> dict[str, Loader]:
    found = check(folder)
    assert found.faults == ()
    return {each.name: each for each in found.loaders}


@pytest.mark.parametrize("layout", list(Layout))
def test_a_new_dataset_loads(tmp_path: Path, layout: Layout) -> None:
    found = verdicts(made(tmp_path, layout, segmentation="polygon", normals_share=1))
    assert all(each.loads for each in found.values())
    assert check(tmp_path).samples == 2
    assert check(tmp_path).normals == (0 if layout is Layout.PLAIN else 2)


@pytest.mark.parametrize(
    ("segmentation", "instances", "reason"),
    [
        ("auto", "defects", "reads no run lengths (1 annotations)"), ("rle", "pieces", "reads no run lengths (3"),
        ("polygon", "defects", ""), ("polygon", "pieces", ""),
    ],
)  # fmt: skip
def test_of_coco(tmp_path: Path, segmentation: str, instances: str, reason: str) -> None:
    found = verdicts(made(tmp_path, Layout.COCO, segmentation=segmentation, instances=instances))
    assert found["Label Studio"].loads == (reason == "")
    assert reason in found["Label Studio"].remark
    assert ("rounds" in found["supervision"].remark) == (segmentation != "rle")
    assert found["pycocotools"].loads


def test_16_bit_images_are_white_where_pillow_converts_them(tmp_path: Path) -> None:
    assert "white" in verdicts(made(tmp_path / "m", Layout.MVTEC, depth=16))["anomalib"].remark
    found = verdicts(made(tmp_path / "c", Layout.COCO, depth=16))
    assert not found["torchvision"].loads
    assert found["pycocotools"].loads


def test_reasons_by_layout(tmp_path: Path) -> None:
    assert (
        "for a split" in verdicts(made(tmp_path / "p", Layout.PLAIN, category="test 2"))["Hugging Face datasets"].remark
    )
    assert verdicts(made(tmp_path / "t", Layout.PLAIN, category="contest"))["Hugging Face datasets"].loads
    assert "below 10 pixels" in verdicts(made(tmp_path / "y", Layout.YOLO, side=9))["Ultralytics"].remark
    assert "ASCII" in verdicts(made(tmp_path / "größe", Layout.MVTEC))["anomalib"].remark
    made(tmp_path / "old", Layout.COCO)
    record = json.loads((tmp_path / "old/dataset.json").read_text())
    del record["val"]
    (tmp_path / "old/dataset.json").write_text(json.dumps(record))
    assert not verdicts(tmp_path / "old")["datumaro"].loads


def damage_mask(folder: Path) -> None:
    path = next(folder.rglob("000000*.png"))
    path.write_bytes(path.read_bytes()[:40])


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, text: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).write_text(text)

    return act


def edit(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "annotations/instances_train.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return act


@pytest.mark.parametrize(
    ("layout", "act", "words"),
    [
        (Layout.PLAIN, damage_mask, "000000.png"),
        (Layout.PLAIN, drop("masks/crack/000001.png"), "000001.png"),
        (Layout.PLAIN, drop("metadata.jsonl"), "metadata.jsonl: cannot be read"),
        (Layout.PLAIN, put("metadata.jsonl", "{}\n"), "does not name the images"),
        (Layout.YOLO, drop("data.yaml"), "data.yaml: missing"),
        (Layout.YOLO, drop("labels/train/000000.txt"), "labels/train/000000.txt: missing"),
        (Layout.YOLO, put("labels/train/000000.txt", "0 0.1 0.1 0.2"), "line 1 is no polygon"),
        (Layout.YOLO, put("labels/train/000000.txt", "0 0.1 0.1 0.2 0.2 0.3 1.3"), "line 1 is no polygon"),
        (Layout.YOLO, put("labels/train/000000.txt", "7 0.1 0.1 0.2 0.2 0.3 0.3"), "line 1 is no polygon"),
        (Layout.YOLO, put("labels/train/000000.txt", "x y"), "line 1 cannot be read"),
        (Layout.YOLO, put("labels/train/000000.txt", ""), "empty"),
        (Layout.YOLO, put("images/train/mine.png", ""), "taken for an image without defects"),
        (Layout.MVTEC, put("tile/test/crack/mine.png", ""), "not of the dataset"),
        (Layout.MVTEC, drop("tile/train/good/000000.png"), "train/good/000000.png"),
        (Layout.COCO, put("annotations/instances_val.json", "{"), "damaged"),
        (Layout.COCO, drop("annotations/instances_val.json"), "do not name the images"),
        (Layout.COCO, edit(lambda it: it["images"][0].update(width=3)), "another size"),
        (Layout.COCO, edit(lambda it: it["annotations"][0].update(category_id=9)), "no image or category"),
        (Layout.COCO, edit(lambda it: it["annotations"][0].update(segmentation=[[1, 2]])), "no polygon"),
        (Layout.COCO, edit(lambda it: it["annotations"][0].pop("segmentation")), "damaged"),
    ],
)
def test_faults_are_named(tmp_path: Path, layout: Layout, act: Callable[[Path], None], words: str) -> None:
    act(made(tmp_path, layout))
    found = check(tmp_path)
    assert words in found.faults[0]
    assert len(found.loaders) >= 2
    assert not any(each.loads for each in found.loaders)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a defectgen dataset"):
        check(tmp_path)
