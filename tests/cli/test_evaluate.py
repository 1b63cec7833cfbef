"""`defectgen evaluate`: what is asked of the evaluation, and what is printed of its report."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from defectgen import evaluation
from defectgen.__main__ import main
from defectgen.evaluation import EvaluateRequest

SCORES = {name: {"mean": 0.7, "spread": 0.01} for name in ("balanced_accuracy", "mean_ap")}
BETTER = {name: {"mean": 0.8, "spread": 0.01} for name in ("balanced_accuracy", "mean_ap")}
VERDICT = {"verdict": "helps", "gain": 0.1, "low": 0.05, "high": 0.15, "seeds": 5}
FOUND: dict[str, Any] = {
    "skipped": [],
    "warnings": ["tiles: 1 image is odd (a.png)"],
    "datasets": {
        "dataset": {
            "path": "dataset", "traceable": True, "made_by_model": True, "trained_on_known": False,
            "memorisation": {"near_copies": 2, "of": 10},
        }
    },
    "downstream": [
        {
            "shots": 5,
            "augmentation": "traditional",
            "sets": {"traditional": {"scores": SCORES}, "dataset": {"scores": BETTER}},
            "datasets": {
                "dataset": {
                    "share": 0.25,
                    "tasks": {
                        "classification": {**VERDICT, "decided_by": "balanced_accuracy"},
                        "segmentation": {**VERDICT, "decided_by": "mean_ap"},
                    },
                    "reasons": ["crack gets better: recall 0.50 -> 0.60"],
                }
            },
        }
    ],
}  # fmt: skip


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[EvaluateRequest]:
    asked: list[EvaluateRequest] = []

    def stand_in(request: EvaluateRequest, on_stage: Any, _cut_outs: Any) -> dict[str, Any]:
        asked.append(request)
        on_stage("networks", 1, 2)
        return FOUND

    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    return asked


def test_a_verdict_is_printed(requests: list[EvaluateRequest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "photos", "dataset", "--quick", "--test", "apart", "--quiet"]) == 0
    (request,) = requests
    assert (request.real, request.synthetic, request.test) == (Path("photos"), (Path("dataset"),), Path("apart"))
    assert request.extent == evaluation.QUICK
    lines = capsys.readouterr()
    assert lines.out.splitlines() == [
        "dataset, 5 shots, classification: helps (balanced accuracy 0.800 with it, 0.700 without, gain +0.050 to "
        "+0.150, 5 seeds, 25% of the defects)",
        "dataset, 5 shots, segmentation: helps (average precision, mean of categories 0.800 with it, 0.700 without, "
        "gain +0.050 to +0.150, 5 seeds, 25% of the defects)",
        "  crack gets better: recall 0.50 -> 0.60",
        "dataset: 2 of 10 synthetic defects are near-copies of real ones",
        "see report/report.html",
    ]
    assert "does not say what its model was trained on" in lines.err
    assert lines.err.count("defectgen: warning: tiles: 1 image is odd (a.png)") == 1


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
        "--shots",
        "1,5,all",
        "--share",
        "0.25",
        "--from-scratch",
        "--reversal",
    ]
    assert main(["evaluate", "photos", "dataset", "other", *options, "-o", "r", "--json"]) == 0
    (request,) = requests
    assert request.features == {"inception": Path("i.pt"), "lpips": Path("v.pt")}
    assert request.synthetic == (Path("dataset"), Path("other"))
    assert (request.shots, request.share, request.kind, request.reversal) == ((1, 5, None), 0.25, "scratch", True)
    assert (request.extent.seeds, request.extent.steps, request.seed) == (7, 9, 3)
    status, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (status["message_type"], status["part"]) == ("status", "networks")
    assert (summary["message_type"], summary["report"]) == ("summary", "r/report.html")


def test_a_dry_run_tells_the_split(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "tiles", "tiles/defects", "--dry-run"]) == 4
    assert "test-set leakage: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "dataset"], 4, "no normals beside the defects"),
        (["tiles", "nowhere"], 4, "nowhere: no such folder"),
        (["tiles", "tiles/defects", "--features", "clip=x"], 2, "give KIND=FILE, where KIND is inception or lpips"),
        (["tiles", "tiles/defects", "--shots", "5,none"], 2, "give numbers of 1 or more, or all, such as 1,5,all"),
        (["tiles", "tiles/defects", "--shots", "0"], 2, "--shots 0"),
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


def test_a_signal_ends_it_at_once_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    """Not after all the networks that wait for their turn."""
    samples = Path(evaluation.__file__).parents[2] / "examples/samples"
    command = [
        sys.executable, "-m", "defectgen", "evaluate", str(samples / "steel"), str(samples / "ceramic/defects"),
        "--steps", "400", "--share", "0.5", "--device", "cpu", "--json",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("part") == "networks":
                break
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "--resume" in errors
    assert time.monotonic() - began < 60  # a network takes minutes


def test_help_says_the_defaults_that_apply(capsys: pytest.CaptureFixture[str]) -> None:
    """Help is printed without the evaluation's packages, and so repeats its numbers."""
    assert main(["evaluate", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("steps", "seeds"):
        whole, quick = (getattr(extent, name) for extent in (evaluation.WHOLE, evaluation.QUICK))
        assert f"[default: {whole}, {quick} with --quick]" in printed
