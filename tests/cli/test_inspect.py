"""`defectgen inspect`, for real against golden images, with the network stood in for with a model."""

import html
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import defectgen
from defectgen.__main__ import main
from defectgen.cli.inspect import Score
from defectgen.errors import WeightsError
from defectgen.files import sha256
from defectgen.imaging.images import DecodedImage, encode_jpeg, encode_png, read_image, read_mask
from defectgen.inspection import features, inspector, reconstruction
from defectgen.inspection.scores import COMPARING, LEARNED
from defectgen.models import checkpoint, registry
from defectgen.models.model import criteria_of, load_model
from defectgen.models.registry import Entry
from defectgen.pipelines import inspect as pipeline


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
    assert 0.0005 < threshold < 0.1
    assert "calibrated on 6 flawless images" in capsys.readouterr().err
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
    assert "6 images inspected (4 earlier), 2 defective" in capsys.readouterr().out
    assert Path("report/report.jsonl").read_text() == "".join(rows)


@pytest.fixture
def isu(line: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A model whose repair is the golden image, and whose file is a checkpoint of nothing."""

    class Golden:
        def __init__(self, model: Path, device: str) -> None:
            self.criteria = criteria_of(checkpoint.load(model)[1])

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


def test_a_newer_model_whose_file_is_gone_is_passed_over_and_named(
    isu: Entry, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"name": "gone", "file": isu.file.with_name("gone"), "created": isu.created.replace(year=2027)}
    registry.add(isu.model_copy(update=gone), Path("weights.toml"))
    assert main(["inspect", "line", "--threshold", "0.5", "--quiet"]) == 0
    assert "passed over, since the file is missing: gone" in capsys.readouterr().err


def test_a_model_keeps_its_threshold(isu: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line"]) == 2
    assert "--model isu: has no threshold for ssim yet; give --calibrate DIR" in capsys.readouterr().err
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
    assert len(rows_of_page()) == 5


INSPECT = ["inspect", "line", "--reference", "golden"]


def rename(folder: Path, old: str, name: bytes) -> None:
    os.rename(folder / old, os.path.join(os.fsencode(folder), name))


def test_the_exit_code_is_that_of_the_whole_report(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (line / "2.png").read_bytes()
    (line / "2.png").write_bytes(whole[:300])
    assert main([*INSPECT, "--fail-on-defect"]) == 9
    assert main([*INSPECT, "--fail-on-defect", "--resume"]) == 9
    for name in ("1.png", "4.png"):
        (line / name).write_bytes(Path("good", name).read_bytes())
    capsys.readouterr()
    assert main([*INSPECT, "--fail-on-defect", "--resume", "--json"]) == 3
    *images, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["image"] for row in images] == ["line/1.png", "line/2.png", "line/4.png"]  # changed, or with an error
    assert {key: summary[key] for key in ("inspected", "defective", "errors", "kept")} == {
        "inspected": 6, "defective": 0, "errors": 1, "kept": 3,
    }  # fmt: skip
    (line / "2.png").write_bytes(whole)
    assert main([*INSPECT, "--resume"]) == 0
    assert [row["image"] for row in records()] == [f"line/{i}.png" for i in range(6)]
    assert not list(Path("report/masks").iterdir())
    Path("golden/0.png").write_bytes(Path("golden/5.png").read_bytes()[:-30])  # its reference changes
    assert main([*INSPECT, "--resume"]) == 3
    assert main([*INSPECT, "--resume", "--threshold", "0.3"]) == 2
    assert "threshold 0.2, not 0.3" in capsys.readouterr().err


def test_images_of_other_formats_do_not_pass(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".pgm", ".HEIC", ".jp2", ".gif", ".dng"):
        (line / f"9{suffix}").write_bytes((line / "1.png").read_bytes())
    (line / "8.jfif").write_bytes(encode_jpeg(np.zeros((100, 120), np.uint8)))
    Path("golden/8.jfif").write_bytes(encode_jpeg(np.zeros((100, 120), np.uint8)))
    for name in ("Thumbs.db", ".hidden.png", "labels.csv", "a.json", "notes.txt", "image", "b.bin"):
        (line / name).write_text("x")
    (line / "deeper").mkdir()
    assert main(INSPECT) == 3
    out, err = capsys.readouterr()
    assert [row["image"] for row in records() if "error" in row] == [
        f"line/9{suffix}" for suffix in (".HEIC", ".dng", ".gif", ".jp2", ".pgm")
    ]
    assert "line/9.pgm    unreadable: .pgm is not supported; convert it" in out
    assert "12 images inspected, 2 defective, 5 unreadable" in out
    assert err.count("not inspected, since only images directly in the folder are: b.bin, deeper, image\n") == 1


def test_any_file_name_is_judged_and_printed_on_its_line(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        b"M\xfcller.png",
        b"a\nreport: 0 defective.png",
        b"\x1b[2J.png",
        ("焊缝检测相机二工位" * 9).encode() + b".png",
    ]
    for folder in (line, Path("golden")):
        for i, name in enumerate(names):
            rename(folder, f"{(1, 2, 3, 4)[i]}.png", name)
    assert main([*INSPECT, "--threshold", "0", "--fail-on-defect"]) == 9
    out = capsys.readouterr().out
    assert "line/M\\xfcller.png " in out
    assert "line/a\\nreport: 0 defective.png " in out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 8
    rows = records()
    assert len(rows) == 6
    assert all((Path("report") / row["mask"]).is_file() for row in rows)
    assert Path("report/report.csv").read_text().count("\n") == 7
    assert main([*INSPECT, "--threshold", "0", "--resume", "-q"]) == 0
    assert "(6 earlier)" in capsys.readouterr().out


def test_an_unexpected_error_is_that_of_one_image(line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"1.png": MemoryError(), "2.png": cv2.error("no"), "3.png": OSError(36, "File name too long")}

    def read(path: Path) -> DecodedImage:
        if path.parent.name == "line" and path.name in errors:
            raise errors[path.name]
        return read_image(path)

    monkeypatch.setattr(inspector, "read_image", read)
    assert main([*INSPECT, "-q"]) == 3
    assert [row.get("defective") for row in records()] == [False, None, None, None, True, False]
    assert "out of memory" in records()[1]["error"]


def test_calibrating_on_nothing_readable_is_an_error(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad").mkdir()
    for i in range(4):
        Path(f"bad/{i}.png").write_text("x")
    assert main([*INSPECT, "--calibrate", "bad"]) == 4
    error = capsys.readouterr().err
    assert "no readable image to calibrate on (bad/0.png: not an image" in error
    assert "and 1 more" in error
    assert not Path("report").exists()
    Path("good/0.png").write_text("x")
    assert main([*INSPECT, "--calibrate", "good"]) == 3
    error = capsys.readouterr().err
    assert "--calibrate: skipped good/0.png: not an image" in error
    assert "inputs skipped: 1" in error


def test_a_calibration_that_changes_the_threshold_does_not_resume(isu: Entry, line: Path) -> None:
    assert main(["inspect", "line", "--calibrate", "good"]) == 0
    threshold = records()[0]["threshold"]
    assert main(["inspect", "line", "--calibrate", "good", "--resume"]) == 0
    model, lists = isu.file.read_bytes(), Path("weights.toml").read_bytes()
    assert main(["inspect", "line", "--calibrate", "line", "--resume"]) == 2
    assert (isu.file.read_bytes(), Path("weights.toml").read_bytes()) == (model, lists)
    assert {row["threshold"] for row in records()} == {threshold}
    trained_again = isu.model_copy(update={"created": isu.created + timedelta(days=1), "sha256": sha256(isu.file)})
    registry.add(trained_again, Path("weights.toml"))
    assert main(["inspect", "line", "--resume"]) == 2


def test_one_process_at_a_time_writes_a_report(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom defectgen import files\n"
        "with files.locked(Path('report')):\n    print('locked', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        assert main([*INSPECT]) == 2
        assert "report: another defectgen is writing here" in capsys.readouterr().err
        assert not any(Path("report").iterdir())
        waiting = subprocess.Popen([sys.executable, "-m", "defectgen", *INSPECT, "--wait", "-q"])
        time.sleep(1)
        assert waiting.poll() is None
        other.stdin.close()
        assert waiting.wait(30) == 0
    assert len(records()) == 6


def test_a_run_killed_before_its_first_record_resumes(line: Path) -> None:
    job = defectgen.inspect(defectgen.InspectRequest(images=line, reference=Path("golden"), workers=1))
    del job  # never started
    assert not Path("report").exists()
    Path("report").mkdir()
    Path("report/.report.csv.abcdefgh.defectgen-tmp").write_text("x")
    assert main([*INSPECT, "-q"]) == 2
    assert main([*INSPECT, "-q", "--resume"]) == 0
    assert len(records()) == 6
    assert not list(Path("report").glob(".*"))


def test_watching_takes_what_is_empty_changed_or_of_another_format(line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_POLL", 0.02)
    monkeypatch.setattr(pipeline, "_PATIENCE", 0.1)
    for path in line.iterdir():
        if path.name != "0.png":
            path.rename(path.with_suffix(".later"))
    (line / "1.png").touch()
    (line / "2.pgm").write_text("P5")
    request = defectgen.InspectRequest(images=Path("line"), reference=Path("golden"), watch=True)
    job = defectgen.inspect(request)
    rows = [inspected.row for inspected in itertools.islice(job, 3)]
    assert sorted(row["image"] for row in rows) == ["line/0.png", "line/1.png", "line/2.pgm"]
    assert job.errors == 2
    del job
    job = defectgen.inspect(replace(request, resume=True))
    images: Any = iter(job)
    with closing(images):
        (line / "2.pgm").unlink()
        assert next(images).row["error"] == "the file is empty"
        (line / "1.later").replace(line / "1.png")
        assert next(images).row["defective"]
        (line / "0.png").write_bytes((line / "4.later").read_bytes())
        assert next(images).row["image"] == "line/0.png"
        assert job.totals == {"inspected": 3, "defective": 2, "errors": 1}
        time.sleep(0.15)
        (line / "5.later").rename(line / "5.png")
        assert next(images).row["image"] == "line/5.png"
        assert {"2.later", "3.later", "4.later"} <= {path.name for path in job.passed_over}
    assert sorted(row["image"] for row in records()) == ["line/0.png", "line/1.png", "line/2.pgm", "line/5.png"]


def test_a_damaged_report_is_replaced_and_not_continued(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INSPECT, "-q"]) == 0
    with Path("report/report.jsonl").open("a") as file:
        file.write("x\n")
    assert main([*INSPECT, "-q", "--resume"]) == 4
    assert "report/report.jsonl, line 7: damaged" in capsys.readouterr().err
    assert main([*INSPECT, "-q", "--overwrite"]) == 0
    victim = Path("golden/0.png")
    with Path("report/report.jsonl").open("a") as file:
        file.write('{"image": "a", "defective": true, "mask": "../golden/0.png"}\n')
    assert main([*INSPECT, "-q", "--overwrite"]) == 4
    assert victim.is_file()
    assert len(records()) == 7


@pytest.fixture
def labeled(line: Path) -> Path:
    """The images of the line in a folder of normals and of a category, with equal names; and their golden images."""
    for name in ("photos/normals", "photos/defects/scratch", "photos/masks/scratch"):
        Path(name).mkdir(parents=True)
    truth = np.zeros((100, 120), np.uint8)
    truth[40:46, 30:80] = 255
    for i in range(6):
        folder, name = ("defects/scratch", f"{(i + 1) // 4}.png") if i in (1, 4) else ("normals", f"{i}.png")
        for root, source in (("photos", "line"), ("gold", "golden")):
            Path(root, folder).mkdir(parents=True, exist_ok=True)
            Path(root, folder, name).write_bytes(Path(source, f"{i}.png").read_bytes())
    for i in range(2):
        Path(f"photos/masks/scratch/{i}.png").write_bytes(encode_png(truth))
    return Path("photos")


LABELED = ["inspect", "photos", "--labels", "--reference", "gold"]


def figures(out: str = "report") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "labels.json").read_text())
    return found


def test_verdicts_are_compared_with_labels(labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LABELED, "--fail-on-defect"]) == 9
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-6:-3]] == [
        ["category", "images", "defective", "share", "AUROC"],
        ["normal", "4", "0", "0.000"],
        ["scratch", "2", "2", "1.000", "1.000"],
    ]
    assert lines[-3].startswith("images: accuracy 1.000, precision 1.000, recall 1.000, F1 1.000, AUROC 1.000; best F1")
    assert lines[-2].startswith("pixels: AUROC ")
    assert lines[-1].startswith("report: 6 images inspected, 2 defective")
    assert {row["image"]: row["category"] for row in records()} == {
        "photos/normals/0.png": "normal", "photos/normals/2.png": "normal", "photos/normals/3.png": "normal",
        "photos/normals/5.png": "normal", "photos/defects/scratch/0.png": "scratch",
        "photos/defects/scratch/1.png": "scratch",
    }  # fmt: skip
    found = figures()
    assert max(row["score"] for row in records() if row["category"] == "normal") < found["best_threshold"]
    assert (found["false_alarms"], found["best_f1"], found["categories"]["scratch"]["found"]) == (0, 1, 2)
    pixels = found["pixels"]
    assert (pixels["images"], pixels["regions"]) == (6, 2)
    assert min(pixels["auroc"], pixels["aupro"]) > 0.95
    truth, hits, marked = read_image(labeled / "masks/scratch/0.png").pixels > 0, 0, 0
    for row in records():
        if row["mask"]:
            mask = read_image(Path("report", row["mask"])).pixels > 0
            hits, marked = hits + int((mask & truth).sum()), marked + int(mask.sum())
    assert pixels["f1"] == pytest.approx(2 * hits / (2 * truth.sum() + marked))
    assert main([*LABELED, "--threshold", "0", "--score", "difference", "--json", "--out", "b"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["labels"] == figures("b")
    assert (figures("b")["false_alarms"], figures("b")["accuracy"]) == (4, 2 / 6)
    assert figures("b")["pixels"]["auroc"] == pixels["auroc"]


def test_labels_from_annotations(labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All in one folder, where the annotations alone tell normals from defects."""
    assert main([*LABELED, "-q", "--out", "a"]) == 0
    by_folders = figures("a")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for root in ("photos", "gold"):
        for folder in ("normals", "defects/scratch"):
            for path in sorted(Path(root, folder).iterdir()):
                moved = Path("all", root, f"{folder[:2]}{path.name}")
                moved.parent.mkdir(parents=True, exist_ok=True)
                moved.write_bytes(path.read_bytes())
                if root == "photos":
                    images.append({"id": len(images), "file_name": moved.name, "height": 100, "width": 120})
                    if folder != "normals":
                        box = {"bbox": [30, 40, 50, 6], "image_id": images[-1]["id"], "category_id": 1}
                        annotations.append(box)
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "scratch"}]}
    Path("coco.json").write_text(json.dumps(document))
    inspect = ["inspect", "all/photos", "--reference", "all/gold", "--annotations", "coco.json", "-q", "--out", "b"]
    assert main(inspect) == 2
    assert "mark the defects of --labels or --defects" in capsys.readouterr().err
    assert main([*inspect, "--labels"]) == 0
    assert figures("b") == by_folders


def test_without_labels_nothing_is_added(labeled: Path) -> None:
    assert main([*LABELED, "-q"]) == 0
    assert main(["inspect", "photos/defects/scratch", "--reference", "gold", "-q", "--overwrite"]) == 3
    assert all("category" not in row for row in records())
    assert not Path("report/labels.json").exists()


@pytest.mark.parametrize("layout", ["MVTec AD", "its test", "beside", "defects beside normals", "normal inside"])
def test_labeled_folders_have_several_layouts(labeled: Path, layout: str) -> None:
    def move(**places: str) -> None:
        for old, new in places.items():
            for root in ("photos", "gold"):
                Path(root, new).parent.mkdir(parents=True, exist_ok=True)
                if Path(root, old).is_dir():
                    Path(root, old).rename(Path(root, new))

    folder = "photos"
    if layout in ("MVTec AD", "its test"):
        move(defects="test", normals="test/good", masks="ground_truth")
        for path in Path("photos/ground_truth/scratch").iterdir():
            path.rename(path.with_name(f"{path.stem}_mask.png"))
        Path("photos/train/good").mkdir(parents=True)
        Path("photos/train/good/9.png").write_bytes(Path("photos/test/good/0.png").read_bytes())
        folder = "photos/test" if layout == "its test" else folder
    elif layout == "beside":
        Path("photos/defects/scratch").rename("photos/scratch")
        Path("photos/defects").rmdir()
        Path("gold/defects/scratch").rename("gold/scratch")
        move(normals="good")
    elif layout == "defects beside normals":
        folder = "photos/defects"
        for path in list(Path("gold/normals").iterdir()):  # outside the folder: by their names
            path.rename(Path("gold", path.name))
        Path("gold/defects/scratch").rename("gold/scratch")
    else:
        move(normals="defects/normal")
    golden = "gold/test" if layout == "its test" else "gold"
    assert main(["inspect", folder, "--labels", "--reference", golden, "-q"]) == 0
    found = figures()
    assert (found["normals"], found["defects"], found["accuracy"]) == (4, 2, 1)
    assert list(found["categories"]) == ["scratch"]
    assert found["pixels"]["regions"] == 2


def test_an_image_of_several_categories_counts_in_each(labeled: Path) -> None:
    Path("photos/masks/spot").mkdir()
    small = np.zeros((100, 120), np.uint8)
    small[10:14, 10:14] = 255
    Path("photos/masks/spot/0.png").write_bytes(encode_png(small))
    for i in range(2):
        Path(f"photos/defects/scratch/{i}.png").rename(f"photos/defects/{i}.png")
        Path(f"gold/defects/scratch/{i}.png").rename(f"gold/defects/{i}.png")
    Path("photos/defects/scratch").rmdir()
    Path("photos/defects/labels.csv").write_text("0.png,spot;scratch\n1.png,scratch\n")
    assert main([*LABELED, "-q"]) == 0
    assert [row["category"] for row in records()][-2:] == ["scratch;spot", "scratch"]
    assert {name: each["images"] for name, each in figures()["categories"].items()} == {"scratch": 2, "spot": 1}
    assert figures()["pixels"]["regions"] == 3


def test_a_mask_that_cannot_be_used_is_an_error_of_its_image(labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/masks/scratch/0.png").write_bytes(encode_png(np.eye(50, dtype=np.uint8) * 255))
    assert main(LABELED) == 3
    out = capsys.readouterr().out
    assert "photos/masks/scratch/0.png: the mask is 50x50, but its image is 120x100" in out
    assert (figures()["unreadable"], figures()["defects"], figures()["pixels"]["images"]) == (1, 1, 5)
    Path("photos/masks/scratch/0.png").unlink()
    assert main([*LABELED, "--overwrite"]) == 0
    err = capsys.readouterr().err
    assert "1 defect image has no mask (0.png); the figures of pixels leave it out" in err
    assert (figures()["defects"], figures()["pixels"]["images"]) == (2, 5)
    Path("photos/masks/scratch/1.png").unlink()
    assert main([*LABELED, "--overwrite"]) == 0
    assert figures()["pixels"] is None


def test_resuming_completes_the_figures_of_images(labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LABELED, "-q"]) == 0
    whole = figures()
    rows = Path("report/report.jsonl").read_text().splitlines(keepends=True)
    Path("report/report.jsonl").write_text("".join(rows[:3]))
    assert main([*LABELED, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "(3 earlier)" in out
    assert "no figures of pixels, which need all images to be judged in one run: use --overwrite" in err
    assert figures() == {**whole, "pixels": None}
    unlabeled = [json.loads(row) for row in rows]
    for row in unlabeled:
        del row["category"]
    Path("report/report.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlabeled))
    assert main([*LABELED, "--resume", "-q"]) == 0  # what has no category yet is judged again
    assert figures() == whole
    assert Path("report/report.jsonl").read_text() == "".join(rows)
    Path("photos/normals/0.png").unlink()
    assert main([*LABELED, "--resume", "-q"]) == 0
    assert figures()["normals"] == 3  # its record stays, but it has no label any more


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["photos", "--watch"], 2, "--watch never ends, --labels counts when all is inspected: give one of them"),
        (["line/0.png"], 4, "line/0.png: no such folder; give a labeled one"),
        (["photos/normals"], 4, "photos/normals: no normals in it; a labeled folder has"),
        (["photos/masks"], 4, "photos/masks: no images of defects in it"),
        (["nowhere"], 4, "nowhere: no such file or folder"),
    ],
)
def test_what_is_wrong_with_a_labeled_folder_is_one_line(
    labeled: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments, "--labels", "--reference", "gold", "-q"]) == code
    (error_line,) = capsys.readouterr().err.splitlines()
    assert words in error_line
    assert not Path("report").exists()


def test_a_program_gets_the_figures(labeled: Path) -> None:
    job = defectgen.inspect(defectgen.InspectRequest(images=labeled, labels=True, reference=Path("gold")))
    assert job.figures is None
    assert len(list(job)) == len(job) == 6
    assert job.figures == figures()


def rows_of_page(out: str = "report") -> list[list[str]]:
    """The cells of each image in `report.html`."""
    found = re.findall(r"<tbody class=.*?><tr>(.*?)</tr>", Path(out, "report.html").read_text(), re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in found]


def test_the_page_shows_what_the_records_say(line: Path) -> None:
    names = {"1.png": "<i>&\"1'.png", "2.png": "&amp;.png"}
    for folder in (line, Path("golden")):
        for old, new in names.items():
            (folder / old).rename(folder / new)
    (line / "3.png").write_bytes(b"x")
    assert main([*INSPECT, "-q"]) == 3
    judged = sorted((row for row in records() if "score" in row), key=lambda row: -row["score"])
    assert rows_of_page() == [
        *(
            [
                row["image"], "defective" if row["defective"] else "flawless", str(row["score"]), str(row["threshold"]),
                str(len(row["boxes"])), str(sum(row["areas"])),
            ]
            for row in judged
        ),
        ["line/3.png", "not judged", "", "", "", ""],
    ]  # fmt: skip
    assert rows_of_page()[0][0] in ("line/<i>&\"1'.png", "line/4.png")
    assert Path("report/report.html").read_text().count("<img") == 5
    for row in judged[:2]:
        mask = read_mask(Path("report", row["mask"]))
        polygons = [np.array(polygon) for defect in row["contours"] for polygon in defect]
        drawn = cv2.fillPoly(np.zeros(mask.shape, np.uint8), polygons, 1) > 0
        assert (drawn & mask).sum() / (drawn | mask).sum() >= 0.98
        assert read_image(Path("report", row["thumbnail"])).height > 100


def test_a_resumed_report_has_a_page_of_all_images(line: Path) -> None:
    assert main([*INSPECT, "-q"]) == 0
    page = Path("report/report.html").read_bytes()
    text = Path("report/report.jsonl").read_text().splitlines(keepends=True)
    Path("report/report.jsonl").write_text("".join(text[:3]) + text[3][:40])
    Path("report/report.html").unlink()
    assert main([*INSPECT, "-q", "--resume"]) == 0
    assert Path("report/report.html").read_bytes() == page
    (line / "1.png").unlink()
    assert main([*INSPECT, "-q", "--overwrite"]) == 0
    assert rows_of_page()[0][0] == "line/4.png"
    assert len(rows_of_page()) == 5
    assert not Path("report/thumbnails/1.png.jpg").exists()


def test_the_page_is_written_while_images_are_watched_for(line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_POLL", 0.02)
    monkeypatch.setattr(pipeline, "_PATIENCE", 0.1)
    monkeypatch.setattr(pipeline, "_REFRESH", 0.0)
    monkeypatch.setattr(pipeline, "_REST", 0.0)
    job = defectgen.inspect(defectgen.InspectRequest(images=line, reference=Path("golden"), watch=True))
    images: Any = iter(job)
    with closing(images):
        for _ in range(6):
            next(images)
        (line / "9.pgm").write_text("P5")
        next(images)
        assert len(rows_of_page()) == 6
    assert len(rows_of_page()) == 7


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Flawless images in `good`, spots with masks in `bad/spot`, and in `line` three of each that are new."""
    monkeypatch.setattr(features, "_STEPS", 60)
    monkeypatch.setattr(features, "_REMEMBERED", 100)
    for name in ("good", "bad/spot", "bad/masks/spot", "line"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(15):
        image, mask = np.random.default_rng(i).normal(120, 8, (64, 72)), np.zeros((64, 72), np.uint8)
        if i % 2:
            cv2.circle(mask, (20 + 3 * i, 40 - i), 6, 255, -1)
            image[mask > 0] -= 80
        folder = "line" if i >= 9 else "bad/spot" if i % 2 else "good"
        (tmp_path / folder / f"{i}.png").write_bytes(encode_png(image.clip(0, 255).astype(np.uint8)))
        if folder == "bad/spot":
            (tmp_path / f"bad/masks/spot/{i}.png").write_bytes(encode_png(mask))
    return tmp_path


LEARN = ["inspect", "line", "--normals", "good", "--defects", "bad", "--name", "part", "--score", "classifier"]


def test_flawless_images_and_known_defects_are_learned(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEARN, "--json", "--fail-on-defect"]) == 9
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(Path(row["image"]).stem, row["defective"]) for row in records()] == [
        ("10", False), ("11", True), ("12", False), ("13", True), ("14", False), ("9", True),
    ]  # fmt: skip
    assert (summary["score"], summary["model"]) == ("classifier", "part")
    assert (summary["calibration"]["normals"], summary["calibration"]["defects"]) == (5, 4)
    assert summary["calibration"]["f1"] == 1
    x, y, width, height = records()[1]["boxes"][0]
    assert x - 8 <= 53 <= x + width + 8
    assert y - 8 <= 29 <= y + height + 8
    page = Path("report/report.html").read_text()
    assert "judged by model part" in page
    assert "<span>defect-free version</span>" not in page
    entry = registry.read(Path("weights.toml"))[0]
    assert (entry.name, entry.method, entry.categories) == ("part", "memory-bank", ("spot",))
    learned = entry.file.read_bytes()
    assert main([*LEARN, "--resume"]) == 0  # the same images: nothing is learned again
    assert "learning" not in capsys.readouterr().err
    assert main(["inspect", "line", "--model", "part", "--out", "b"]) == 0
    assert [row["score"] for row in records("b")] == [row["score"] for row in records()]
    assert entry.file.read_bytes() == learned
    (part / "good/8.png").unlink()
    assert main([*LEARN, "--out", "c"]) == 0  # other images
    assert entry.file.read_bytes() != learned
    assert main([*LEARN, "--resume"]) == 2
    assert "its images were judged with reference model part of" in capsys.readouterr().err


def test_what_was_learned_is_listed_and_moves_to_another_list(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEARN, "--quiet"]) == 0
    assert main(["models", "import", "runs/part", "--name", "moved"]) == 0
    shutil.rmtree("runs/part")
    capsys.readouterr()
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  part: memory-bank, 20\S+, the file is missing", lines[1])
    assert re.fullmatch(r"  moved: memory-bank, 20\S+, \S+ MB, ok", lines[4])
    assert lines[5] == "      spot on moved"
    assert main(["inspect", "line", "--out", "b"]) == 0  # the newest that can be used
    assert "passed over, since the file is missing: part" in capsys.readouterr().err
    assert [row["score"] for row in records("b")] == [row["score"] for row in records()]


def test_flawless_images_alone_are_remembered(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "line", "--normals", "good"]) == 0
    assert registry.read(Path("weights.toml"))[0].name == part.name  # the folder around `good`
    assert {row["scorer"] for row in records()} == {"simulated"}
    assert "calibrated on 5 flawless images" in capsys.readouterr().err
    scores = {Path(row["image"]).stem: row["score"] for row in records()}
    assert min(scores[name] for name in ("9", "11", "13")) > max(scores[name] for name in ("10", "12", "14"))
    (part / "good/0.png").write_text("x")
    assert main(["inspect", "line", "--normals", "good", "--out", "b"]) == 3
    assert "--normals: skipped good/0.png: not an image" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="memory bank, which only inspect uses"):
        load_model(registry.read(Path("weights.toml"))[0].file)
    assert main(["synthesize", "-n", "1", "--out", "c"]) == 5
    assert "no model" in capsys.readouterr().err


def test_a_model_that_ships_judges_only_where_it_is_named(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It knows other parts, on which it would pass everything."""
    assert main(["inspect", "line", "--normals", "good", "--name", "shipped"]) == 0
    package = registry._PACKAGE
    package.mkdir(parents=True)
    Path("runs").rename(package / "runs")
    Path("weights.toml").rename(package / "weights.toml")
    assert main(["inspect", "line", "--out", "b"]) == 5
    assert "no model of isu-gan or memory-bank" in capsys.readouterr().err
    assert main(["inspect", "line", "--model", "shipped", "--out", "b"]) == 0


def test_each_kind_of_score_can_be_asked_for() -> None:
    assert [each.value for each in Score] == [*COMPARING, *LEARNED]


def test_few_usable_masks_teach_no_classifier(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There are four defects, but their masks cannot all be read."""
    for i in (1, 3):
        (part / f"bad/masks/spot/{i}.png").write_bytes(b"x")
    learn = ["inspect", "line", "--normals", "good", "--defects", "bad", "--name", "part"]
    assert main([*learn, "--score", "classifier"]) == 2
    assert "--score classifier: it learns from defects with masks" in capsys.readouterr().err
    assert main([*learn, "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["score"] == "simulated"
    assert "--normals: skipped bad/spot/1.png: " in captured.err


def test_images_can_be_too_small_to_learn_from(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (part / "good").iterdir():
        path.write_bytes(encode_png(np.full((2, 2), 90, np.uint8)))
    assert main(["inspect", "line", "--normals", "good", "-q"]) == 4
    assert "good: its images are too small to learn from; give larger ones" in capsys.readouterr().err


def test_a_calibration_chooses_the_score(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the one that tells known defects best."""
    Path("bad/scratch").mkdir(parents=True)
    for i in (1, 4):
        Path(f"bad/scratch/{i}.png").write_bytes((line / f"{i}.png").read_bytes())
    known = ["--calibrate", "good", "--defects", "bad"]
    assert main(["inspect", "line", "--reference", "golden", *known, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["defective"] for row in records()].count(True) == 2
    assert summary["calibration"]["auroc"] == 1
    assert (summary["calibration"]["normals"], summary["calibration"]["defects"]) == (6, 2)
    for score in ("ssim", "difference", "features"):
        out = ["--score", score, "--out", score, "-q"]
        assert main(["inspect", "line", "--reference", "golden", *known, *out]) == 0
        assert {row["scorer"] for row in records(score)} == {score}
        assert [row["defective"] for row in records(score)].count(True) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--normals", "good", "--reference", "golden"], 2, "--reference replaces --normals"),
        (["--normals", "good", "--calibrate", "good"], 2, "--normals calibrates, too"),
        (["--defects", "golden", "--reference", "golden"], 2, "--defects: give flawless images as well"),
        (["--name", "a", "--reference", "golden"], 2, "--name: names what is learned"),
        (["--normals", "good", "--name", "a b"], 2, "--name a b: use letters"),
        (["--normals", "good", "--score", "ssim"], 2, "--score ssim"),
        (["--normals", "good", "--score", "classifier"], 2, "--score classifier: it learns from defects with masks"),
        (["--reference", "golden", "--score", "memory"], 2, "--score memory: golden can give difference or ssim"),
        (["--normals", "few"], 4, "few: 2 usable images; give 4 or more"),
        (["--normals", "nowhere"], 4, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_learned_is_one_line(
    line: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("few").mkdir()
    for i in range(2):
        Path(f"few/{i}.png").write_bytes(Path(f"good/{i}.png").read_bytes())
    assert main(["inspect", "line", *arguments, "-q"]) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("defectgen: error: " + message) or message in error
    assert "\n" not in error
    assert not Path("runs").exists()
