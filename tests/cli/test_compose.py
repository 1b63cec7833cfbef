"""`defectgen compose`, for real with cut-outs, with the generating stood in for with a model."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen import dataset
from defectgen.__main__ import main
from defectgen.dataset.manifest import Row
from defectgen.imaging.images import encode_png, read_image, read_mask
from defectgen.models.registry import Entry


def rows(out: str = "dataset") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "manifest.jsonl").read_text().splitlines()]


def test_compose_cuts_out_and_lays_on(defects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "5", "--seed", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dataset: 5 samples written, 0 kept, 0 regenerated, 0 failed")
    for row in rows():
        assert row["category"] == "crack"
        assert row["product"] == "good"
        assert read_mask(Path("dataset", str(row["mask"]))).any()
    assert {row["contents"] for row in rows()} == {"tiles/defects"}


def test_what_is_odd_about_images_is_a_warning(defects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = read_mask(Path("tiles/masks/crack/0.png"))
    Path("tiles/masks/crack/0.png").write_bytes(encode_png((~mask).astype(np.uint8) * 255))
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "1", "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("defectgen: warning: tiles/masks/crack: 1 mask marks 96% of its image")


def test_annotations_instead_of_masks(defects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("tiles/masks")
    for path in (defects / "defects/crack").iterdir():
        shape = {"label": "scratch", "points": [[29, 19], [51, 19], [51, 31], [29, 31]], "shape_type": "polygon"}
        document = {"shapes": [shape], "imagePath": path.name, "imageHeight": 60, "imageWidth": 80}
        path.with_suffix(".json").write_text(json.dumps(document))
    compose = ["compose", "tiles/defects", "tiles/good", "-n", "2", "--quiet"]
    assert main(compose) == 4
    assert "2 LabelMe JSON files lie beside the images, not read" in capsys.readouterr().err
    assert main([*compose, "--annotations", "tiles/defects", "--gate", "tiles/defects", "--dry-run"]) == 0
    assert main([*compose, "--annotations", "tiles/defects"]) == 0
    assert capsys.readouterr().err == ""
    assert [row["category"] for row in rows()] == ["scratch", "scratch"]
    transfer = ["transfer", "--from", "tiles/defects", "--to", "tiles/good", "-n", "1", "--out", "other", "-q"]
    assert main([*transfer, "--annotations", "tiles/defects"]) == 0
    assert main(["compose", "--model", "m", "tiles/good", "-n", "1", "--annotations", "tiles/defects"]) == 2
    assert "leave out --annotations" in capsys.readouterr().err


def test_the_same_again_is_the_same_and_a_dataset_grows(defects: Path) -> None:
    compose = ["compose", "tiles/defects", "tiles/good", "--quiet"]
    assert main([*compose, "-n", "3", "--out", "a"]) == 0
    assert main([*compose, "-n", "5", "--out", "b", "--workers", "1"]) == 0
    assert main([*compose, "-n", "5", "--out", "a", "--resume"]) == 0
    assert rows("a") == rows("b")
    for row in rows("a"):
        assert Path("a", str(row["image"])).read_bytes() == Path("b", str(row["image"])).read_bytes()


def test_resuming_with_other_options_is_refused(defects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compose = ["compose", "tiles/defects", "tiles/good", "--quiet"]
    assert main([*compose, "-n", "2"]) == 0
    assert main([*compose, "-n", "4", "--resume", "--scale", "2"]) == 2
    assert "cannot resume: placement was" in capsys.readouterr().err


def test_options_reach_the_samples(defects: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    cv2.rectangle(mask, (0, 0), (79, 25), 255, -1)
    Path("roi.png").write_bytes(encode_png(mask))
    options = ["--scale", "0.5", "--rotation", "-5:5", "--per-image", "2", "--region", "roi.png", "--blend", "alpha"]
    options += ["--place", "anywhere", "--vary", "0.5"]
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "4", "-c", "crack", *options]) == 0
    for row in rows():
        assert row["placement"] == {
            "scale": [0.5, 0.5], "rotation": [-5.0, 5.0], "per_image": [2, 2], "region": "roi.png", "blend": "alpha",
            "crop": [1.0, 1.0], "colour": "keep", "place": "anywhere",
            "vary": 0.5,
        }  # fmt: skip
        assert not read_mask(Path("dataset", str(row["mask"])))[26:].any()


def test_few_defects_teach_little_of_places_and_that_is_said(defects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "2", "-c", "crack"]) == 0
    said = capsys.readouterr().err
    places = json.loads(Path("dataset/dataset.json").read_text())["places"]["crack"]
    assert places["real_defects"] < 6
    assert ("places of crack, learned from" in said) == (places["inside"] > 0)
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "2", "-c", "crack", "--overwrite", "--quiet"]) == 0
    assert "places of" not in capsys.readouterr().err


def test_rejected_samples_are_replaced_and_those_that_are_not_there_are_named(
    defects: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compose = ["compose", "tiles/defects", "tiles/good", "--quiet"]
    assert main([*compose, "-n", "3"]) == 0
    Path("rejected.txt").write_text("images/crack/000001.png\n")
    reject = [*compose, "--resume", "--reject", "rejected.txt"]
    before = Path("dataset/manifest.jsonl").read_bytes()
    capsys.readouterr()
    for arguments, code, words in (
        ([*compose, "-n", "3", "--reject", "rejected.txt"], 2, "--reject rejected.txt: replaces samples of a dataset"),
        ([*reject, "-n", "2"], 2, "--num: dataset has 3 samples; repeat the command that made it, with --reject"),
        ([*reject[:-1], "nope.txt", "-n", "3"], 4, "nope.txt: No such file or directory"),
    ):
        assert main(arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert Path("dataset/manifest.jsonl").read_bytes() == before
    assert main([*reject, "-n", "3"]) == 0
    assert capsys.readouterr().out.startswith(
        "dataset: 1 samples written, 2 kept, 0 regenerated, 0 failed, 1 rejected;"
    )
    assert [row["index"] for row in rows()] == [0, 2, 3]
    Path("rejected.txt").write_text("images/crack/000003.png\n")
    assert main([*reject, "-n", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == 1
    assert main([*reject, "-n", "3"]) == 0
    assert "rejected.txt: 1 of the samples in it were replaced before" in capsys.readouterr().err
    assert [row["index"] for row in rows()] == [0, 2, 4]


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_replacements_keep_the_split(defects: Path, layout: str) -> None:
    """Also where all samples for validation are rejected: each category has as many, of photographs of their own."""
    for kind in ("defects", "masks"):
        shutil.copytree(f"tiles/{kind}/crack", f"tiles/{kind}/hole")
    for number, path in enumerate([*Path("tiles/defects").rglob("*.png"), *Path("tiles/good").iterdir()]):
        pixels = read_image(path).pixels.copy()
        pixels[0, 0] = number  # else some have the same contents
        path.write_bytes(encode_png(pixels))
    compose = ["compose", "tiles/defects", "tiles/good", "-n", "20", "--format", layout, "--val", "0.3", "--quiet"]

    def split(row: dict[str, Any]) -> tuple[str, str]:
        return row["category"], row["split"]

    assert main(compose) == 0
    first = rows()
    assert Counter(map(split, first)) == {(c, s): n for c in ("crack", "hole") for s, n in (("val", 3), ("train", 7))}
    rejected = [str(row["image"]) for row in first if row["split"] == "val"] + ["000000", "000001", "000009"]
    Path("rejected.txt").write_text("\n".join(rejected))
    for _ in range(2):
        assert main([*compose, "--resume", "--reject", "rejected.txt"]) == 0
        now = rows()
        assert not {row["index"] for row in now} & {row["index"] for row in first if str(row["image"]) in rejected}
        assert Counter(map(split, now)) == Counter(map(split, first))
        used = {side: set[str]() for side in ("train", "val")}
        for row in now:
            used[row["split"]] |= Row.model_validate(row).used_photographs
        assert not used["train"] & used["val"]
        assert main(["check", "dataset"]) == 0


@pytest.mark.parametrize("layout", ["mvtec", "coco", "yolo"])
def test_other_layouts(defects: Path, layout: str) -> None:
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "4", "--format", layout]) == 0
    made = {"mvtec": "good/test/crack/000000.png", "coco": "annotations/instances_train.json", "yolo": "data.yaml"}
    assert Path("dataset", made[layout]).is_file()


def test_a_model_makes_the_contents(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", "--model", "one", "tiles/good", "-n", "5", "-c", "crack:0.3,blowhole:0.7"]) == 0
    (request,) = synthesized.requests
    assert request.entry == model
    assert request.wanted.categories == ("crack:0.3,blowhole:0.7",)
    assert request.placement.summary()["region"] is None
    assert [sample.path.parent.name for sample in request.wanted.normals.images] == ["good"] * 4


def test_a_dry_run_writes_nothing(
    defects: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset, "open_folder", lambda *_, **__: pytest.fail("opened"))
    assert main(["compose", "tiles/defects", "tiles/good", "-n", "5", "--dry-run", "--json"]) == 0
    (plan,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (plan["message_type"], plan["num"], plan["normals"]) == ("plan", 5, 4)
    assert plan["categories"] == ["crack"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tiles/defects"], 2, "DEFECTS and NORMALS"),
        (["tiles/defects", "tiles/good", "--model", "one"], 2, "DEFECTS and NORMALS"),
        (["tiles/defects", "tiles/good", "-c", "rust"], 2, "tiles/defects has crack"),
        (["nowhere", "tiles/good"], 4, "nowhere: no such folder"),
        (["tiles/defects", "tiles/good", "--scale", "0"], 2, "--scale 0: give a number of 0.01 or more"),
        (["tiles/defects", "tiles/good", "--scale", "2:1"], 2, "or a range LOW:HIGH"),
        (["tiles/defects", "tiles/good", "--per-image", "1.5"], 2, "whole numbers"),
        (["tiles/defects", "tiles/good", "--rotation", "left"], 2, "--rotation left"),
        (["tiles/defects", "tiles/good", "--region", "roi.png"], 2, "--region roi.png: no such file"),
        (["tiles/defects", "tiles/good", "--region", "0,0,0,5"], 2, "the box is empty"),
        (["tiles/defects", "tiles/good", "--region", "900,0,5,5"], 4, "lies outside a normal of 80x60"),
        (["tiles/defects", "tiles/good", "--blend", "paste"], 2, "paste"),
        (["tiles/good", "tiles/good"], 4, "tiles/good: 4 of 4 defect images have no mask ("),
        (["--model", "one", "tiles/good"], 5, "no model one"),
    ],
)
def test_what_is_wrong_is_one_line(
    defects: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", *arguments, "-n", "2", "--quiet"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_gate_refuses_what_real_defects_do_not_look_like_and_lets_cut_outs_pass(defects: Path) -> None:
    """Six alike are enough to tell by; nearly copying them is what cut-outs are for."""
    for index in range(2, 6):
        for name in ("defects", "masks"):
            path = defects / f"{name}/crack/{index}.png"
            path.write_bytes((defects / f"{name}/crack/0.png").read_bytes())
    compose = ["compose", "tiles/defects", "tiles/good", "-n", "4", "--gate", "tiles/defects", "--quiet"]
    assert main([*compose, "--scale", "1", "--rotation", "0"]) in (0, 4)
    record = json.loads(Path("dataset/dataset.json").read_text())
    assert len(record["gated_by"]) == 6
    assert "copy" not in record.get("refused", {})


def test_masks_of_a_model_are_refused(defects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compose", "--model", "one", "tiles/good", "-n", "2", "--masks", "tiles/masks"]) == 2
    assert "--masks tiles/masks: a model has no masks to find" in capsys.readouterr().err
