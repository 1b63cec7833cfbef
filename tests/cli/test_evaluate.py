"""`defectgen evaluate`: what is asked of the evaluation, and what is printed of its report."""

import json
from pathlib import Path
from typing import Any

import pytest

from defectgen import evaluation
from defectgen.__main__ import main
from defectgen.evaluation import EvaluateRequest

FOUND: dict[str, Any] = {
    "traceable": True,
    "made_by_model": True,
    "trained_on_known": False,
    "skipped": [],
    "memorisation": {"near_copies": 2, "of": 10},
    "downstream": {
        task: {
            "decided_by": name,
            "scores": {
                arm: {name: {"mean": mean, "spread": 0.01}} for arm, mean in (("synthetic", 0.8), ("traditional", 0.7))
            },
            "baseline": "traditional",
            "against_baseline": {"verdict": "helps", "difference": 0.1, "p": 0.01, "seeds": 5},
        }
        for task, name in (("classification", "accuracy"), ("segmentation", "f1"))
    },
}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[EvaluateRequest]:
    asked: list[EvaluateRequest] = []

    def stand_in(request: EvaluateRequest, on_stage: Any) -> dict[str, Any]:
        asked.append(request)
        on_stage("networks", 1, 2)
        return FOUND

    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    return asked


def test_a_verdict_is_printed(requests: list[EvaluateRequest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "photos", "dataset", "--quick", "--test", "apart", "--quiet"]) == 0
    (request,) = requests
    assert (request.real, request.synthetic, request.test) == (Path("photos"), Path("dataset"), Path("apart"))
    assert request.extent == evaluation.QUICK
    lines = capsys.readouterr()
    assert lines.out.splitlines() == [
        "classification: helps (accuracy 0.800 with synthetic images, 0.700 without, p = 0.010, 5 seeds)",
        "segmentation: helps (f1 0.800 with synthetic images, 0.700 without, p = 0.010, 5 seeds)",
        "2 of 10 synthetic defects are near-copies of real ones",
        "look at report/report.html",
    ]
    assert "does not say what its model was trained on" in lines.err


def test_options_reach_the_evaluation(requests: list[EvaluateRequest], capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--features",
        "inception=i.pt",
        "--features",
        "lpips=v.pt",
        "--seeds",
        "7",
        "--steps",
        "9",
        "--seed",
        "3",
    ]
    assert main(["evaluate", "photos", "dataset", *options, "-o", "r", "--json"]) == 0
    (request,) = requests
    assert request.features == {"inception": Path("i.pt"), "lpips": Path("v.pt")}
    assert (request.extent.seeds, request.extent.steps, request.seed) == (7, 9, 3)
    status, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (status["message_type"], status["part"]) == ("status", "networks")
    assert (summary["message_type"], summary["report"]) == ("summary", "r/report.html")


def test_a_dry_run_tells_the_split(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "tiles", "tiles/defects", "--dry-run"]) == 4
    assert "is a test photograph" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "dataset"], 4, "no normals beside the defects"),
        (["tiles", "nowhere"], 4, "nowhere: no such folder"),
        (["tiles", "tiles/defects", "--features", "clip=x"], 2, "give KIND=FILE, with inception or lpips"),
        (["tiles", "tiles/defects", "--features", "lpips=x.pt"], 5, "no such file"),
        (["tiles", "tiles/defects", "--resume", "--overwrite"], 2, "give one of them"),
    ],
)
def test_what_is_wrong_is_one_line(
    photographs: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments, "--quiet"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
