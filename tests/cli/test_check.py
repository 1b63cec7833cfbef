import json
from pathlib import Path

import pytest

from defectgen.__main__ import main


@pytest.fixture
def dataset(photographs: Path) -> Path:
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "6", "--format", "yolo", "--val", "0.5", "-q"]) == 0
    return Path("dataset")


def test_a_table_or_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["check", "dataset"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "dataset: yolo, 6 samples, 0 normals; loads unedited in"
    assert lines[0].startswith("Ultralytics  yes")
    assert main(["check", "dataset", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["message_type"], found["format"], found["faults"]) == ("check", "yolo", [])
    assert {each["name"] for each in found["loaders"]} >= {"Ultralytics", "defectgen"}


def test_a_damaged_dataset_is_bad_input(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (dataset / "labels").rglob("*.txt"):
        path.unlink()
    capsys.readouterr()
    assert main(["check", "dataset"]) == 4
    captured = capsys.readouterr()
    assert "Ultralytics  no: the dataset is damaged" in captured.out
    (line,) = captured.err.splitlines()
    assert "missing (and 5 more); restore the dataset" in line
    assert main(["check", "tiles"]) == 4
    assert "not a defectgen dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "layout", "words"),
    [
        ("--val=0.3", "plain", "--val: has no effect with --format plain; it is for yolo, coco, mvtec"),
        ("--segmentation=rle", "yolo", "--segmentation: has no effect with --format yolo; it is for coco"),
        ("--normals-share=0.1", "mvtec", "--normals-share: has no effect with --format mvtec"),
        ("--instances=pieces", "mvtec", "--instances: has no effect"),
        ("--product=x", "coco", "--product: has no effect"),
        ("--product= ", "mvtec", "--product: the name is empty"),
    ],
)
def test_options_of_other_layouts_are_refused(
    photographs: Path, capsys: pytest.CaptureFixture[str], option: str, layout: str, words: str
) -> None:
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "2", "--format", layout, option]) == 2
    assert words in capsys.readouterr().err
    assert not Path("dataset").exists()


def test_the_product_names_the_folder(photographs: Path) -> None:
    common = ["compose", "tiles/defects", "tiles/good", "-n", "2", "--format", "mvtec", "-q"]
    assert main([*common, "--product", "my tile"]) == 0
    assert sorted(path.name for path in Path("dataset/my_tile/test").iterdir()) == ["crack", "good"]
    assert len(list(Path("dataset/my_tile/train/good").iterdir())) == 3


def test_one_normal_is_said(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((photographs / "good").iterdir())[1:]:
        path.unlink()
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "6", "--format", "coco", "-q"]) == 0
    assert "a single photograph of normals, so samples for training and validation share it" in capsys.readouterr().err
