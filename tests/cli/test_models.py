"""`defectgen models`: what it lists, and what it takes from elsewhere."""

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import defectgen
from defectgen import files
from defectgen.__main__ import main
from defectgen.models import registry
from defectgen.models.registry import Entry

ROOT = Path(defectgen.__file__).parents[1]
SHIPPED = ROOT / "examples/models/dt-gan-samples/model.safetensors"


@pytest.fixture
def usb(tmp_path: Path) -> Path:
    """A run folder from another machine, with the list and some normals beside it."""
    run = tmp_path / "usb/runs/old name"
    run.mkdir(parents=True)
    shutil.copy(SHIPPED, run)
    (tmp_path / "usb/photos").mkdir()
    entry = Entry(
        name="theirs", method="dt-gan", categories=("crack",), products=("steel",), image_size=64, channels=3,
        file=run / "model.safetensors", sha256=files.sha256(SHIPPED), steps=3000, stopped=True,
        created=datetime(2025, 1, 2, tzinfo=timezone.utc),
        trained_on={"steel": tmp_path / "usb/photos", "ceramic": tmp_path / "usb/gone"},
    )  # fmt: skip
    registry.add(entry, tmp_path / "usb/weights.toml")
    return run


def kept() -> set[Path]:
    return {path for path in Path().rglob("*") if path.is_file() and "usb" not in path.parts}


def test_each_model_is_listed_with_its_state(model: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    others: dict[str, dict[str, Any]] = {
        "gone": {"file": model.file.with_name("gone")},
        "altered": {"sha256": "0" * 64},
        "odd": {"method": "odd-gan"},
        "trial": {"steps": 10},
        "stopped": {"steps": 1500, "stopped": True},
    }
    for name, changes in others.items():
        registry.add(model.model_copy(update={"name": name, **changes}), Path("weights.toml"))
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    head, *lines = text.splitlines()
    assert head.endswith("weights.toml:")
    assert lines[:3] == [
        "  one: dt-gan, steps unknown, 2026-11-20, 0.0 MB, ok",
        "      blowhole, crack on tiles",
        f"      {model.file}",
    ]
    assert "  trial: dt-gan, 10 steps, 2026-11-20, 0.0 MB, was trained for 10 steps only" in lines
    assert "  gone: dt-gan, steps unknown, 2026-11-20, the file is missing" in lines
    assert main(["models", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["message_type"] for record in records} == {"model"}
    states = {record["name"]: record["state"] for record in records}
    assert states == {
        "one": "ok",
        "gone": "the file is missing",
        "altered": "the file was altered, or cannot be read",
        "odd": "the method odd-gan is not installed",
        "trial": "was trained for 10 steps only",
        "stopped": "was stopped after 1,500 steps",
    }
    assert records[0]["size"] == len(b"model")
    assert records[0]["categories"] == ["blowhole", "crack"]
    assert records[0]["weights"].endswith("weights.toml")


def test_without_models_it_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "models import DIR" in captured.err


def test_a_list_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("weights.toml").write_text("<<<<<<< HEAD\n")
    assert main(["models"]) == 5
    assert "weights.toml: not valid TOML: a merge conflict at line 1" in capsys.readouterr().err


def test_a_model_from_elsewhere_is_copied_checked_and_listed(
    usb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "import", str(usb), "--name", "mine"]) == 0
    captured = capsys.readouterr()
    assert "  mine: dt-gan, 3,000 steps, 2025-01-02, 3.6 MB, was stopped after 3,000 steps" in captured.out
    assert captured.err == ""
    (entry,) = registry.read(Path("weights.toml"))
    assert entry.file == tmp_path / "runs/mine/model.safetensors"
    assert (entry.categories, entry.products) == (("crack", "scratch", "spot"), ("ceramic", "steel"))
    assert entry.trained_on == {"steel": tmp_path / "usb/photos"}
    registry.verify(entry)
    assert kept() == {Path("weights.toml"), Path("runs/mine/model.safetensors")}
    for file in (tmp_path / "usb/weights.toml", Path("weights.toml")):
        file.unlink()
    alone = ["models", "import", str(usb / "model.safetensors"), "--name", "alone", "--json"]
    assert main(alone) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert (record["name"], record["steps"], record["state"], record["trained_on"]) == ("alone", 3000, "ok", {})
    assert "'synthesize' needs --normals DIR" in captured.err


def test_what_cannot_be_imported_leaves_nothing(
    usb: Path, tmp_path: Path, model: Entry, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str, code: int) -> str:
        before = kept()
        listed = Path("weights.toml").read_bytes()
        assert main(["models", "import", *arguments]) == code
        assert kept() == before
        assert Path("weights.toml").read_bytes() == listed
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "old name: no name for a model; choose one with --name, such as old-name" in refused(str(usb), code=2)
    assert "the name one is that of" in refused(str(usb), "--name", "one", "--out", "there", code=2)
    assert "no model here; give a folder with a model.safetensors" in refused(str(tmp_path / "usb"), code=4)
    Path("runs/full").mkdir()
    Path("runs/full/notes.txt").write_text("mine")
    assert "runs/full: not empty" in refused(str(usb), "--name", "full", code=2)
    file = usb / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "its contents do not match its sha256" in refused(str(usb), "--name", "bad", code=5)
    assert not Path("runs/bad").exists()
