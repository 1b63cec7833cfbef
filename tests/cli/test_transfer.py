"""`defectgen transfer`, for real with cut-outs, with the generating stood in for with a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from defectgen.__main__ import main
from defectgen.imaging.images import encode_png, read_mask
from defectgen.models import registry
from defectgen.models.registry import Entry


@pytest.fixture
def road(photographs: Path) -> Path:
    """Two cracks of another product, the first without a mask, and normals that they can be seen on."""
    for index in range(2):
        pixels = np.full((50, 70, 3), 120, np.uint8)
        pixels[20:30, 30:40] = (10, 30, 60)
        mask = (pixels[..., 0] == 10).astype(np.uint8) * 255
        for path, image in (
            (Path(f"road/defects/crack/{index}.png"), pixels),
            (Path(f"road/masks/crack/{index}.png"), mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))
    for path in (photographs / "good").iterdir():
        path.write_bytes(encode_png(np.full((60, 80), 140, np.uint8)))
    return Path("road/defects")


def rows(out: str = "dataset") -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(out, "manifest.jsonl").read_text().splitlines()]


def known_as(entry: Entry, method: str, *products: str) -> None:
    """Enter the model as one of another method, or of several products."""
    own = products or entry.products
    changes = {"method": method, "products": own, "trained_on": dict.fromkeys(own, Path("tiles/good").absolute())}
    registry.add(entry.model_copy(update=changes), Path("weights.toml"))


def test_real_defects_of_one_product_onto_another(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer", "--from", "road/defects", "--to", "tiles/good", "-n", "5", "--crop", "0.5:1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dataset: 5 samples written")
    for row in rows():
        assert (row["category"], row["contents"], row["method"]) == ("crack", "road/defects", "cut-outs")
        assert str(row["source"]).startswith(str(Path("tiles/good").absolute()))
        placement, parameters = row["placement"], row["parameters"]
        assert isinstance(placement, dict)
        assert isinstance(parameters, dict)
        assert (placement["colour"], placement["crop"]) == ("match", [0.5, 1.0])
        assert parameters["defects"][0]["content"].startswith(str(Path("road/defects/crack").absolute()))
        assert read_mask(Path("dataset", str(row["mask"]))).any()


def test_products_and_folders_with_equals_signs(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("road").rename("k=v")
    Path("k=v/defects/crack/x.gif").write_bytes(b"x")
    transfer = ["transfer", "-n", "1", "--to", "tile=a=tiles/good", "--dry-run", "--json"]
    assert main([*transfer, "--from", "road=1=k=v/defects"]) == 0
    assert main([*transfer, "--from", "k=v/defects"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["from"] for line in captured.out.splitlines()] == [["road=1=k=v/defects"], ["k=v/defects"]]
    assert (
        captured.err.count("defectgen: warning: k=v/defects/crack: 1 image has a format that is not read (x.gif)") == 2
    )


def test_the_same_again_is_the_same_and_a_dataset_grows(road: Path) -> None:
    transfer = ["transfer", "--from", "road/defects", "--to", "tiles/good", "--quiet"]
    assert main([*transfer, "-n", "3", "--out", "a"]) == 0
    assert main([*transfer, "-n", "5", "--out", "b", "--workers", "1"]) == 0
    assert main([*transfer, "-n", "5", "--out", "a", "--resume"]) == 0
    assert rows("a") == rows("b")
    assert main([*transfer, "-n", "6", "--out", "a", "--resume", "--colour", "gray"]) == 2


def test_a_guided_model_gets_references_of_several_products(
    road: Path, model: Entry, synthesized: SimpleNamespace
) -> None:
    """Table 5 of DT-GAN: v-Same, v-Others and v-ABC are one command each."""
    known_as(model, "dt-gan", "tiles", "road")
    (road.parent / "masks/crack/0.png").unlink()  # masks help; they need not be there
    transfer = ["transfer", "--model", "one", "--to", "tiles=tiles/good", "-n", "5", "--quiet"]
    for sources, products in (
        (["tiles=tiles/defects"], ["tiles"]),
        (["road=road/defects"], ["road"]),
        (["tiles=tiles/defects", "road=road/defects"], ["road", "tiles"]),
    ):
        assert main([*transfer, *(part for each in sources for part in ("--from", each))]) == 0
        request = synthesized.requests[-1]
        assert sorted({sample.product for sample in request.references.images}) == products
        assert {sample.product for sample in request.wanted.normals.images} == {"tiles"}
        assert request.wanted.categories == ("crack",)  # what both know
        assert (request.style, request.placement) == ("own", None)


def test_styles_are_drawn_or_read(road: Path, model: Entry, synthesized: SimpleNamespace) -> None:
    transfer = ["transfer", "--model", "one", "--to", "tiles/good", "--from", "tiles/defects", "-n", "5", "--quiet"]
    assert main([*transfer, "--style", "sampled"]) == 0
    assert synthesized.requests[-1].style == "sampled"
    assert main([*transfer, "--style", "road/defects"]) == 0
    assert {sample.path.parts[0] for sample in synthesized.requests[-1].style.images} == {"road"}
    # What guides a sample is recorded, so that a resumed dataset cannot mix styles; also of styles alone.
    assert synthesized.requests[-1].guides == "from tiles/defects, style road/defects"
    alone = ["transfer", "--model", "one", "--to", "tiles/good", "-n", "5", "--quiet"]
    assert main([*alone, "--style", "road/defects"]) == 0
    assert synthesized.requests[-1].guides == "style road/defects"
    assert main(alone) == 0
    assert synthesized.requests[-1].guides == ""


@pytest.mark.parametrize("method", ["dcdganc", "dfmgan", "defect-gan", "isu-gan", "dt-gan"])
def test_models_make_their_own_defects_for_a_product_that_they_never_saw(
    road: Path, model: Entry, synthesized: SimpleNamespace, method: str
) -> None:
    known_as(model, method)
    assert main(["transfer", "--model", "one", "--to", "road/defects/crack", "-n", "5", "--quiet"]) == 0
    (request,) = synthesized.requests
    assert request.references is None
    assert request.wanted.categories == ("blowhole", "crack")
    assert (request.placement is not None) == (method in ("dcdganc", "dfmgan"))
    assert {sample.product for sample in request.wanted.normals.images} == {"crack"}


def test_a_dry_run_writes_nothing(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--from", "road/defects", "--to", "tiles/good", "-n", "5", "--dry-run", "--json"]
    assert main(["transfer", *arguments]) == 0
    (plan,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (plan["message_type"], plan["num"], plan["normals"], plan["from"]) == ("plan", 5, 4, ["road/defects"])
    assert (plan["colour"], plan["categories"]) == ("match", ["crack"])
    assert not Path("dataset").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give --from DEFECTS to cut out defects, or --model NAME"),
        (["--from", "road/defects", "--style", "sampled"], 2, "cut-out defects keep their own style"),
        (["--from", "road/defects", "--crop", "0:2"], 2, "--crop 0:2: give a number of 0.01 or more, 1 at most"),
        (["--from", "road/defects", "-c", "rust"], 2, "road/defects has crack"),
        (["--from", "nowhere"], 4, "nowhere: no such folder"),
        (["--from", "tiles/good"], 4, "tiles/good: 4 of 4 defect images have no mask ("),
        (["--model", "two"], 5, "no model two"),
        (["--model", "one", "--from", "wood=road/defects"], 2, "one knows tiles; omit the name"),
        (["--model", "one", "--scale", "2"], 2, "dt-gan paints defects in place"),
        (["--model", "one", "--from", "road/defects", "-c", "blowhole"], 2, "road/defects has crack"),
    ],
)
def test_what_is_wrong_is_one_line(
    road: Path, model: Entry, synthesized: SimpleNamespace, arguments: list[str], code: int, words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["transfer", "--to", "tiles/good", "-n", "2", "--quiet", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_categories_that_the_model_does_not_know(
    road: Path, model: Entry, synthesized: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("road/defects/crack").rename("road/defects/rust")
    Path("road/masks/crack").rename("road/masks/rust")
    assert main(["transfer", "--to", "tiles/good", "-n", "2", "--model", "one", "--from", "road/defects"]) == 2
    assert "one knows blowhole, crack, but --from has rust" in capsys.readouterr().err
