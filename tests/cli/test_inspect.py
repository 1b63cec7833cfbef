"""`defectgen inspect`, for real against golden images, with the network stood in for with a model."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.__main__ import main
from defectgen.imaging.images import DecodedImage, encode_png
from defectgen.inspection import reconstruction
from defectgen.models import checkpoint, registry
from defectgen.models.registry import Entry


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Six images of which 1 and 4 carry a scratch, and their golden images."""
    rng = np.random.default_rng(0)
    for name in ("line", "golden", "good"):
        (tmp_path / name).mkdir()
    coarse = cv2.resize(rng.normal(0, 40, (6, 6)), (120, 100), interpolation=cv2.INTER_CUBIC)
    for i in range(6):
        whole = np.clip(130 + coarse + rng.normal(0, 4, coarse.shape), 0, 255).astype(np.uint8)
        (tmp_path / f"golden/{i}.png").write_bytes(encode_png(whole))
        noisy = np.clip(whole + rng.normal(0, 1, whole.shape), 0, 255).astype(np.uint8)
        (tmp_path / f"good/{i}.png").write_bytes(encode_png(noisy))
        if i in (1, 4):
            noisy[40:46, 30:80] //= 3
        (tmp_path / f"line/{i}.png").write_bytes(encode_png(noisy))
    return tmp_path / "line"


def records(out: str = "report") -> list[dict[str, Any]]:
    return [json.loads(text) for text in Path(out, "report.jsonl").read_text().splitlines()]


def test_defects_are_found_and_the_line_is_stopped(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line", "--reference", "golden"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("report: 6 images inspected, 2 defective, 0 unreadable")
    assert lines[0].split() == ["image", "score", "defects", "pixels"]
    assert [text.split()[0] for text in lines[1:-1]] == ["line/1.png", "line/4.png"]
    assert lines[1].split()[2:] == ["1", str(records()[1]["areas"][0])]
    assert [row["defective"] for row in records()] == [False, True, False, False, True, False]
    x, y, width, height = records()[1]["boxes"][0]
    assert x < 34
    assert y < 42
    assert 46 <= width < 60
    assert 4 <= height < 16
    assert Path("report/report.csv").is_file()
    assert Path("report", records()[1]["overlay"]).is_file()
    assert main(["inspect", "line", "--reference", "golden", "--fail-on-defect", "--out", "b", "-q"]) == 9
    assert main(["inspect", "line/0.png", "--reference", "golden", "--fail-on-defect", "--out", "c"]) == 0


def test_in_json_each_image_is_a_line(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line", "--reference", "golden", "--json"]) == 0
    *images, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["message_type"] for row in images] == ["image"] * 6
    assert [{k: v for k, v in row.items() if k != "message_type"} for row in images] == records()
    counts = {key: summary[key] for key in ("inspected", "defective", "errors", "kept")}
    assert counts == {"inspected": 6, "defective": 2, "errors": 0, "kept": 0}


def test_what_cannot_be_read_is_reported_and_the_rest_goes_on(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line / "2.png").write_bytes((line / "2.png").read_bytes()[:300])
    Path("golden/3.png").unlink()
    assert main(["inspect", "line", "--reference", "golden"]) == 3
    assert [("error" in row) for row in records()] == [False, False, True, True, False, False]
    assert "truncated" in records()[2]["error"]
    assert "line/3.png   unreadable: golden/3.png" in capsys.readouterr().out


def test_a_threshold_is_calibrated_on_flawless_images(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line", "--reference", "golden", "--calibrate", "good"]) == 0
    threshold = records()[0]["threshold"]
    assert 0.005 < threshold < 0.4
    assert "calibrated: 99.0% of the images in good pass" in capsys.readouterr().err
    assert [row["defective"] for row in records()].count(True) == 2
    assert main(["inspect", "line", "--reference", "golden", "--threshold", "1.99", "--out", "b"]) == 0
    assert not any(row["defective"] for row in records("b"))


def test_resuming_inspects_what_is_left(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line", "--reference", "golden"]) == 0
    rows = Path("report/report.jsonl").read_text().splitlines(keepends=True)
    Path("report/report.jsonl").write_text("".join(rows[:4]) + rows[4][:30])
    assert main(["inspect", "line", "--reference", "golden"]) == 2
    capsys.readouterr()
    assert main(["inspect", "line", "--reference", "golden", "--resume"]) == 0
    assert "2 images inspected" in capsys.readouterr().out
    assert Path("report/report.jsonl").read_text() == "".join(rows)


@pytest.fixture
def isu(line: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A model whose repair is the golden image, and whose file is a checkpoint of nothing."""

    class Golden:
        def __init__(self, model: Path, device: str) -> None:
            saved = checkpoint.load(model)[1]
            self.threshold, self.border = saved.get("threshold"), saved.get("border", 0)

        def __call__(self, path: Path, photograph: DecodedImage) -> Any:
            return cv2.imread(f"golden/{path.name}", cv2.IMREAD_GRAYSCALE)

    monkeypatch.setattr(reconstruction, "NetworkRepair", Golden)
    from datetime import datetime, timezone

    from defectgen import files

    file = Path("runs/isu/model.safetensors").absolute()
    file.parent.mkdir(parents=True)
    checkpoint.save(file, {}, {"method": "isu-gan"})
    entry = Entry(
        name="isu", method="isu-gan", categories=("defect",), products=("a",), image_size=64, channels=1, file=file,
        sha256=files.sha256(file), created=datetime(2026, 11, 21, tzinfo=timezone.utc), trained_on={},
    )  # fmt: skip
    registry.add(entry, Path("weights.toml"))
    return entry


def test_a_model_keeps_its_threshold(isu: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line"]) == 2
    assert "--model isu: has no threshold yet; give --calibrate DIR" in capsys.readouterr().err
    assert main(["inspect", "line", "--calibrate", "good", "--share", "1"]) == 0
    threshold = records()[0]["threshold"]
    assert main(["inspect", "line", "--out", "b"]) == 0  # the list of models knows the changed file
    assert records("b")[0]["threshold"] == threshold
    assert [row["defective"] for row in records("b")].count(True) == 2
    calibrated = ["--calibrate", "good", "--share", "1", "--border", "50"]  # nothing is left
    assert main(["inspect", "line", *calibrated, "--out", "c"]) == 0
    assert main(["inspect", "line", "--out", "d", "--json"]) == 0  # and so they do later
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["border"] == 50
    for out in ("c", "d"):
        assert not any(row["defective"] for row in records(out))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "--reference", "golden"], 4, "nowhere: no such file or folder"),
        (["line", "--reference", "nowhere"], 4, "--reference nowhere: no such folder"),
        (["line", "--reference", "golden", "--model", "m"], 2, "--reference replaces --model"),
        (["line", "--reference", "golden", "--calibrate", "good", "--threshold", "1"], 2, "give one of them"),
        (["line", "--model", "m"], 5, "no model m of isu-gan"),
        (["line", "--reference", "golden", "--calibrate", "nowhere"], 4, "nowhere: no such folder"),
        (["line", "--reference", "golden", "--resume", "--overwrite"], 2, "give one of them"),
    ],
)
def test_what_is_wrong_is_one_line(
    line: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments, "-q"]) == code
    (error_line,) = capsys.readouterr().err.splitlines()
    assert words in error_line


def test_watching_takes_each_image_once_and_none_half_written(line: Path) -> None:
    late = [path.read_bytes() for path in sorted(line.iterdir())]
    for path in sorted(line.iterdir())[3:]:
        path.unlink()
    command = [sys.executable, "-m", "defectgen", "inspect", "line", "--reference", "golden", "--watch", "--quiet"]

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            if Path("report/report.jsonl").exists() and len(records()) >= count:
                return
            time.sleep(0.05)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(3)
        (line / "3.png").write_bytes(late[3][:2000])  # the first half, and a pause longer than two looks
        time.sleep(1.6)
        assert len(records()) == 3
        (line / "3.png").write_bytes(late[3])
        (line / "4.png").write_bytes(late[4])
        wait_for(5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    rows = records()
    assert sorted(row["image"] for row in rows) == [f"line/{i}.png" for i in range(5)]
    assert not any("error" in row for row in rows)
    assert {row["image"] for row in rows if row["defective"]} == {"line/1.png", "line/4.png"}
    assert Path("report/report.csv").read_text().count("\n") == 6
