"""`defectgen train`, with the training stood in for."""

import json
from pathlib import Path
from typing import Any

import pytest

from defectgen.__main__ import main
from defectgen.cli import train
from defectgen.errors import ExitCode
from defectgen.models import registry
from defectgen.training import trainer

Requests = list[Any]
TRAIN = ["train", "--method", "dt-gan", "tiles/good", "tiles/defects"]


def test_train_leaves_a_model_that_can_be_found(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*TRAIN, "--preset", "tiny", "--steps", "7", "--batch-size", "2", "--seed", "5", "--time", "1m"])
    captured = capsys.readouterr()
    assert (code, captured.err.count("error")) == (0, 0)
    (request,) = trained
    assert (request.name, request.run) == ("dt-gan-tiles", Path("runs/dt-gan-tiles"))
    assert (request.config.steps, request.config.batch_size, request.seed, request.seconds) == (7, 2, 5, 60)
    assert request.catalog.categories == ("crack",)
    assert len(request.catalog.images) == 6
    (entry,) = registry.read(Path("weights.toml"))
    assert entry.name == "dt-gan-tiles"
    assert entry.categories == ("crack",)
    assert entry.trained_on == {"tiles": photographs / "good"}
    assert (entry.steps, entry.stopped) == (3, False)
    registry.verify(entry)
    (line,) = captured.out.splitlines()
    for word in ("dt-gan-tiles", "3 steps", "1 min 15 s", "crack", "model.safetensors", "weights.toml", "/previews"):
        assert word in line
    assert "training 1/3, 12.5 images/s, 1 min 00 s left, 2.5 passes over the images\n" in captured.err
    assert "training 3/3" in captured.err


def test_a_second_run_gets_a_name_of_its_own_and_resume_takes_the_last(photographs: Path, trained: Requests) -> None:
    for extra in ([], [], ["--resume"], ["--overwrite"], ["--name", "mine"]):
        assert main([*TRAIN, "--quiet", *extra]) == 0
    names = [request.name for request in trained]
    assert names == ["dt-gan-tiles", "dt-gan-tiles-2", "dt-gan-tiles-2", "dt-gan-tiles-2", "mine"]
    assert [(request.resume, request.overwrite) for request in trained[1:4]] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert [entry.name for entry in registry.read(Path("weights.toml"))] == [
        "dt-gan-tiles",
        "dt-gan-tiles-2",
        "mine",
    ]


def test_a_name_that_is_taken_is_refused_before_training(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--name", "mine"]) == 0
    assert main([*TRAIN, "--name", "mine", "--out", "elsewhere"]) == 2
    assert "--name" in capsys.readouterr().err
    assert main([*TRAIN, "--out", "elsewhere"]) == 0
    assert len(trained) == 2


def test_broken_photographs_are_named_once_and_told_by_the_code(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "good" / "broken ä.png").write_bytes((photographs / "good" / "0.png").read_bytes()[:100])
    assert main([*TRAIN, "--quiet"]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("broken ä.png") == 1
    assert "inputs skipped: 1" in captured.err
    assert len(captured.out.splitlines()) == 1


def test_what_is_odd_about_folders_is_told_once_and_keeps_the_code(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "masks" / "crack" / "1.png").rename(photographs / "masks" / "crack" / "one.png")
    assert main([*TRAIN, "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("defectgen: warning: ")
    assert "1 of 2 defect images has no mask (crack/1.png); 1 mask belongs to no image" in line
    assert "crack/one.png" in line


def test_json_lines_are_all_that_json_prints(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectgen.cli.console._PERIOD", 0.0)
    assert main([*TRAIN, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["message_type"] for record in records} == {"status", "summary"}
    steps = [record for record in records if record.get("stage") == "training"]
    assert [(each["done"], each["total"]) for each in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0]["losses"] == {"d": 0.5, "g": 1.25}
    assert records[-1]["message_type"] == "summary"
    assert records[-1]["name"] == "dt-gan-tiles"
    assert records[-1]["stopped"] is False


def test_quiet_prints_the_result_alone(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert len(captured.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--time", "80s"], "a trial of 3 steps: for better samples train longer (--time 20m), or start from a model"),
        (["--steps", "3"], None),  # which says itself how short it is
    ],
)
def test_a_time_that_was_too_short_is_told(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str], options: list[str], told: str | None
) -> None:
    assert main([*TRAIN, "-q", *options]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [told in line for line in lines if told] == [True] * len(lines) == [True] * (told is not None)


def test_verbose_tells_every_setting(photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--verbose", "--set", "ema=0.123"]) == 0
    captured = capsys.readouterr()
    assert "ema" in captured.err
    assert "0.123" in captured.err
    assert len(captured.out.splitlines()) == 1


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    photographs: Path, planned: Requests, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "dt-gan-tiles" in text
    assert "tiles crack 0.5" in text
    assert main([*TRAIN, "--dry-run", "--json", "--quiet"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["message_type"] == "plan"
    assert record["domains"] == ["normal", "crack"]
    assert trained == []
    assert sorted(path.name for path in Path().iterdir()) == ["tiles"]


def test_a_run_that_was_stopped_says_how_to_go_on(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    whole: Any = trainer.train
    monkeypatch.setattr(
        trainer,
        "train",
        lambda *given: trainer.Trained(**{**vars(whole(*given)), "stopped": ExitCode.SIGTERM}),
    )
    assert main(TRAIN) == 143
    captured = capsys.readouterr()
    assert "--resume --name dt-gan-tiles" in captured.err
    assert len(captured.out.splitlines()) == 1
    (entry,) = registry.read(Path("weights.toml"))
    assert (entry.name, entry.stopped) == ("dt-gan-tiles", True)


def test_without_a_method_the_images_decide_and_the_reason_is_told(
    photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiles/good", "tiles/defects", "--steps", "7"]) == 0
    assert (trained[0].method, trained[0].name, trained[0].config.steps) == ("defect-gan", "defect-gan-tiles", 7)
    lines = [line for line in capsys.readouterr().err.splitlines() if "method" in line]
    assert len(lines) == 1
    assert lines[0].startswith("defectgen: method defect-gan: all defects have masks")
    assert main(["train", "tiles/good", "tiles/defects", "--set", "nope=1"]) == 2
    assert "nope: not a setting of defect-gan" in capsys.readouterr().err
    assert main(TRAIN) == 0
    assert "--method chooses" not in capsys.readouterr().err


def test_products(photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]) -> None:
    products = ["--product", "a=tiles/good:tiles/defects", "--product", "b=tiles/good:tiles/defects"]
    assert main(["train", "--method", "dt-gan", *products]) == 0
    (request,) = trained
    assert request.name == "dt-gan-a-b"
    assert [source.product for source in request.sources] == ["a", "b"]
    assert main(["train", "--method", "dt-gan", *products, *products[:2]]) == 2
    assert "--product a: given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "product"),
    [
        ("bottle/train/good", "bottle"),
        ("my tiles/normal", "my tiles"),
        ("bottle", "bottle"),
        ("tiles/OK", "tiles"),
    ],
)
def test_a_product_is_called_after_its_folder(folder: str, product: str, tmp_path: Path) -> None:
    assert train._product(tmp_path / folder) == product


@pytest.mark.parametrize("how", ["one", "runs/one", "runs/one/model.safetensors"])
def test_a_model_to_start_from_is_named_or_a_path(
    how: str, model: registry.Entry, photographs: Path, trained: Requests
) -> None:
    """A name is found in the nearest list, also where the new model goes to another one."""
    assert main([*TRAIN, "--quiet", "--init", how, "--weights", "other.toml"]) == 0
    (request,) = trained
    assert (request.init.name, request.init.file.absolute()) == (how, model.file)


def test_a_model_to_start_from_that_is_missing_or_altered_is_refused(
    model: registry.Entry, photographs: Path, trained: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--init", "nope"]) == ExitCode.BAD_WEIGHTS
    assert "no model nope of dt-gan; available: one knows" in capsys.readouterr().err
    model.file.write_bytes(b"altered")
    assert main([*TRAIN, "--init", "one"]) == ExitCode.BAD_WEIGHTS
    assert "altered after it was added" in capsys.readouterr().err
    assert not trained
