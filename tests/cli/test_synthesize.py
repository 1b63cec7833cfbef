"""`defectgen synthesize`, with the generating and the writing stood in for."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from defectgen import dataset
from defectgen.__main__ import main
from defectgen.errors import UsageError
from defectgen.imaging.images import encode_png
from defectgen.imaging.windows import Box
from defectgen.models import registry
from defectgen.models.registry import Entry
from defectgen.pipelines.synthesize import SynthesizeRequest, prepare_synthesis


def test_synthesize_takes_all_from_the_model(
    model: Entry, synthesized: SimpleNamespace, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["synthesize", "-n", "5", "--seed", "3", "--format", "coco", "--out", "my set", "--resume"]
    assert main(arguments) == 0
    (request,), (target,) = synthesized.requests, synthesized.datasets
    assert request.entry == model
    wanted = request.wanted
    assert wanted.categories == ("blowhole", "crack")
    assert (wanted.num, wanted.seed, wanted.skip) == (5, 3, frozenset({0}))
    assert [sample.path for sample in wanted.normals.images] == sorted((photographs / "good").iterdir())
    assert target.out == Path("my set")
    assert target.settings == {
        "layout": dataset.Layout.COCO,
        "options": dataset.LayoutOptions(),
        "command": "defectgen synthesize -n 5 --seed 3 --format coco --out 'my set' --resume",
        "resume": True,
        "overwrite": False,
    }
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    for words in ("my set", "3 samples written", "1 kept", "2 regenerated", "1 failed", "sheet.jpg"):
        assert words in line
    assert re.search(r"synthesizing 4/4, [\d,]+ samples/s, 0 s left, 2 regenerated\n", captured.err)


def test_synthesize_in_json(model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "-n", "5", "-c", "crack", "--json"]) == 0
    *_, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert summary["message_type"] == "summary"
    counts = {key: summary[key] for key in ("written", "kept", "redrawn", "failed", "skipped")}
    assert counts == {"written": 3, "kept": 1, "redrawn": 2, "failed": 1, "skipped": 0}


def test_normals_may_be_others(model: Entry, synthesized: SimpleNamespace, photographs: Path) -> None:
    for given in ("tiles/defects/crack", "tiles=tiles/defects/crack"):
        assert main(["synthesize", "-n", "5", "--normals", given]) == 0
    for request in synthesized.requests:
        assert {sample.path.parent.name for sample in request.wanted.normals.images} == {"crack"}
        assert {sample.product for sample in request.wanted.normals.images} == {"tiles"}


def test_normals_of_several_products_are_told_apart(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    two = model.model_copy(
        update={
            "name": "two",
            "products": ("road", "tiles"),
            "trained_on": {},
            "created": datetime(2027, 1, 1),
        }
    )
    registry.add(two, Path("weights.toml"))
    assert main(["synthesize", "-n", "2", "--normals", "tile=tiles/good"]) == 2
    assert "two knows road, tiles; name one of them, or none for another product" in capsys.readouterr().err
    assert main(["synthesize", "-n", "2"]) == 2
    assert "use --normals DIR" in capsys.readouterr().err
    given = ["--normals", "road=tiles/defects/crack", "--normals", "tiles=tiles/good"]
    assert main(["synthesize", "-n", "5", *given]) == 0
    samples = synthesized.requests[-1].wanted.normals.images
    assert {(sample.product, sample.path.parent.name) for sample in samples} == {
        ("road", "crack"),
        ("tiles", "good"),
    }


def test_a_product_that_the_model_does_not_know_is_painted_and_told(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {"name": "two", "products": ("road", "tiles"), "created": datetime(2027, 1, 1)}
    registry.add(model.model_copy(update=two), Path("weights.toml"))
    assert main(["synthesize", "-n", "5", "-c", "crack", "--normals", "tiles/defects/crack"]) == 0
    images = synthesized.requests[-1].wanted.normals.images
    assert {image.product for image in images} == {"crack"}
    told = "from two onto 2 normals of tiles/defects/crack, which two does not know, in the mixed style of road and "
    assert told in capsys.readouterr().err
    assert main(["synthesize", "-n", "5", "--normals", "road=tiles/good"]) == 0
    assert "onto 4 normals of tiles/good in the style of road, into" in capsys.readouterr().err


@pytest.mark.parametrize("trained_on", [{}, {"road": "tiles/good"}])
def test_normals_are_those_of_the_product_that_they_taught_or_are_named_after(
    model: Entry, trained_on: dict[str, str], synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {
        "name": "two", "products": ("road", "tiles"), "created": datetime(2027, 1, 1),
        "trained_on": {product: Path(folder).absolute() for product, folder in trained_on.items()},
    }  # fmt: skip
    registry.add(model.model_copy(update=two), Path("weights.toml"))
    assert main(["synthesize", "-n", "5", "--normals", "tiles/good"]) == 0
    product = "road" if trained_on else "tiles"
    assert f"onto 4 normals of tiles/good in the style of {product}, into" in capsys.readouterr().err


def test_the_default_is_no_trial_and_says_onto_which_images_it_paints(
    model: Entry, synthesized: SimpleNamespace, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = {"name": "trial", "steps": 10, "stopped": True, "created": datetime(2027, 1, 1)}
    registry.add(model.model_copy(update=trial), Path("weights.toml"))
    assert main(["synthesize", "-n", "5", "--quiet"]) == 0
    assert "warning: trial was stopped after 10 steps: one is used instead" in capsys.readouterr().err
    assert synthesized.requests[-1].entry.name == "one"
    assert main(["synthesize", "-n", "5", "--model", "trial"]) == 0
    captured = capsys.readouterr().err
    assert "warning: trial was stopped after 10 steps; for better samples train longer" in captured
    assert f"from trial onto 4 normals of {photographs / 'good'} in the style of tiles, into dataset" in captured


def test_what_is_missing_is_said(
    model: Entry, photographs: Path, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*arguments: str, code: int) -> str:
        assert main(["synthesize", "-n", "2", *arguments]) == code
        (told,) = capsys.readouterr().err.splitlines()
        return told

    assert "one knows blowhole, crack" in line("-c", "rust", code=5)
    assert "no model two" in line("--model", "two", code=5)
    assert "none.toml: no such file" in line("--weights", "none.toml", code=5)
    (photographs / "good").rename(photographs / "gone")
    assert "use --normals DIR" in line(code=4)
    model.file.write_bytes(b"other")
    assert "altered" in line(code=5)
    assert synthesized.requests == []


def test_regions_and_unions_are_passed_on(model: Entry, synthesized: SimpleNamespace) -> None:
    assert main(["synthesize", "-n", "5", "--region", "crack=1,2,30,40", "--region", "blowhole=object"]) == 0
    assert main(["synthesize", "-n", "5", "-c", "blowhole+crack", "--region", "5,5,9,9", "--restored"]) == 0
    first, second = synthesized.requests
    assert first.wanted.categories == ("crack+blowhole",)
    assert [(name, region.name) for name, region in first.regions] == [("crack", "1,2,30,40"), ("blowhole", "object")]
    assert (first.regions[0][1].box, first.restored) == (Box(1, 2, 30, 40), False)
    assert second.wanted.categories == ("blowhole+crack",)
    assert [name for name, _ in second.regions] == [None]
    assert second.restored


def test_rejected_samples_reach_the_stream_but_restored_images_have_no_others(
    model: Entry, synthesized: SimpleNamespace, photographs: Path
) -> None:
    prepare_synthesis(SynthesizeRequest(num=2, categories=("crack",))).samples({0}, {1})
    (request,) = synthesized.requests
    assert (request.wanted.skip, request.wanted.rejected) == ({0}, {1})
    job = prepare_synthesis(SynthesizeRequest(num=2, restore=photographs / "defects"))
    job.samples({0})
    with pytest.raises(UsageError, match="--restore has one result for each image"):
        job.samples({0}, {1})


def test_names_with_the_signs_of_the_syntax(
    model: Entry, synthesized: SimpleNamespace, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ("a+b", "x:1", "c,d", "e=f", "crack", "blowhole")
    odd = model.model_copy(update={"name": "odd", "categories": known, "created": model.created + timedelta(days=1)})
    registry.add(odd, Path("weights.toml"))
    Path("k=m.png").write_bytes(encode_png(np.full((60, 80), 255, np.uint8) * (np.arange(80) < 40).astype(np.uint8)))
    for name in known:
        assert main(["synthesize", "-n", "5", "-c", name]) == 0
        assert main(["synthesize", "-n", "5", "--region", f"{name}=1,2,3,4"]) == 0
        assert main(["synthesize", "-n", "5", "--region", f"{name}=k=m.png"]) == 0
        plain, boxed, masked = synthesized.requests[-3:]
        assert [each.wanted.categories for each in (plain, boxed, masked)] == [(name,)] * 3
        assert (boxed.regions[0][0], masked.regions[0][0], masked.regions[0][1].name) == (name, name, "k=m.png")
    assert main(["synthesize", "-n", "5", "--region", "k=m.png"]) == 0
    assert synthesized.requests[-1].regions[0][0] is None
    assert main(["synthesize", "-n", "5", "-c", "x:1+crack"]) == 0
    assert synthesized.requests[-1].entry.name == "odd"
    capsys.readouterr()
    assert main(["synthesize", "-n", "5", "--region", "crack+blowhole=1,2,3,4"]) == 2
    assert "is crack and blowhole in odd, not crack+blowhole" in capsys.readouterr().err
    assert main(["synthesize", "-n", "5", "-c", "crack:x"]) == 2
    assert "--category crack:x: give a name, or names with weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--region", "1,2,3,4", "--region", "5,6,7,8"],
            "several regions need a category each, such as --region crack=0,0,64,64",
        ),
        (["--region", "crack=1,2,3,4", "-c", "crack"], "omit --category"),
        (["--region", "crack=1,2,3,4", "--region", "5,6,7,8"], "give a category for each region"),
        (["--region", "crack=1,2,0,4"], "--region 1,2,0,4: the box is empty"),
        (["--region", "nowhere.png"], "--region nowhere.png: no such file"),
    ],
)
def test_regions_that_cannot_be_meant(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["synthesize", "-n", "5", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert synthesized.requests == []


def test_a_model_that_changes_nothing_is_unfit(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synthesize", "-n", "2"]) == 5  # of which one was there, and the other is failed
    assert "train the model one longer" in capsys.readouterr().err


def test_a_dry_run_of_synthesize_writes_nothing(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["synthesize", "-n", "100", "--dry-run", "--json", "--device", "cpu"]) == 0
    (plan,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert plan["model"] == "one"
    assert (plan["num"], plan["normals"], plan["device"]) == (100, 4, "cpu")
    assert synthesized.datasets == []
    assert sorted(Path().rglob("*")) == before


def test_skipped_normals_are_told_by_the_code(
    model: Entry, synthesized: SimpleNamespace, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "good" / "x.png").write_bytes(b"no picture")
    assert main(["synthesize", "-n", "5"]) == 3
    assert capsys.readouterr().err.count("x.png") == 1


@pytest.mark.parametrize("more", [[], ["--quiet"], ["--json"], ["--dry-run"]])
def test_warnings_about_images_are_printed_once_and_keep_the_code(
    model: Entry, synthesized: SimpleNamespace, photographs: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    (photographs / "good" / "x.heic").write_bytes(b"no picture")
    assert main(["synthesize", "-n", "5", "--gate", "tiles/defects", *more]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "x.heic" in line]
    assert lines[0].startswith("defectgen: warning: ")
    assert len(lines) == (2 if "--json" in more else 1)
    if "--json" in more:
        record = json.loads(lines[1])
        assert record["message_type"] == "warning"
        assert lines[0] == f"defectgen: warning: {record['message']}"
    assert "x.heic" not in captured.out


def test_a_gate_compares_with_real_defects(
    model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synthesize", "-n", "5", "--gate", "tiles/defects", "--quiet"]) == 0
    (request,) = synthesized.requests
    assert request.wanted.gate.name == "tiles/defects"
    assert main(["synthesize", "-n", "5", "--gate", "nowhere"]) == 4
    assert "nowhere: no such folder" in capsys.readouterr().err
