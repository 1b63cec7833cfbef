import csv
import json
from pathlib import Path

import numpy as np
import pytest

from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import DecodedImage, read_image, read_mask
from defectgen.inspection.inspector import Finding, Unreadable
from defectgen.inspection.report import InspectionReport, overlay


def finding(name: str = "a.png", *, defective: bool = True) -> Finding:
    mask = np.zeros((40, 50), np.bool_)
    if defective:
        mask[5:10, 8:20] = True
        mask[30:33, 40:44] = True
    photograph = DecodedImage(np.full((40, 50), 100, np.uint8))
    return Finding(Path("line") / name, photograph, 0.9 if defective else 0.2, 0.5, mask)


def test_a_record_holds_the_verdict_and_the_defects(tmp_path: Path) -> None:
    report = InspectionReport(tmp_path / "r", resume=False, overwrite=False)
    row = report.add(finding())
    assert row == {
        "image": "line/a.png", "defective": True, "score": 0.9, "threshold": 0.5,
        "boxes": [[8, 5, 12, 5], [40, 30, 4, 3]], "areas": [60, 12],
        "mask": "masks/a.png.png", "overlay": "overlays/a.png.jpg",
    }  # fmt: skip
    np.testing.assert_array_equal(read_mask(tmp_path / "r/masks/a.png.png"), finding().mask)
    assert read_image(tmp_path / "r/overlays/a.png.jpg").channels == 3
    flawless = report.add(finding("b.png", defective=False))
    assert (flawless["defective"], flawless["boxes"], flawless["mask"]) == (False, [], None)
    assert report.add(Unreadable(Path("line/c.png"), "truncated")) == {"image": "line/c.png", "error": "truncated"}
    assert [json.loads(line)["image"] for line in (tmp_path / "r/report.jsonl").read_text().splitlines()] == [
        "line/a.png", "line/b.png", "line/c.png",
    ]  # fmt: skip
    with report.write_table().open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["line/a.png", "line/b.png", "line/c.png"]
    assert (rows[0]["defective"], rows[0]["defects"], rows[0]["area"]) == ("True", "2", "72")
    assert rows[2]["error"] == "truncated"


def test_a_report_is_resumed_after_an_interruption(tmp_path: Path) -> None:
    InspectionReport(tmp_path / "r", resume=False, overwrite=False).add(finding())
    with (tmp_path / "r/report.jsonl").open("a") as file:
        file.write('{"image": "line/b.p')  # killed while writing
    with pytest.raises(UsageError, match="--resume"):
        InspectionReport(tmp_path / "r", resume=False, overwrite=False)
    report = InspectionReport(tmp_path / "r", resume=True, overwrite=False)
    assert report.done == {"line/a.png"}
    report.add(finding("b.png"))
    assert [row["image"] for row in report.rows()] == ["line/a.png", "line/b.png"]


def test_overwriting_removes_only_files_of_the_report(tmp_path: Path) -> None:
    InspectionReport(tmp_path / "r", resume=False, overwrite=False).add(finding())
    (tmp_path / "r/masks/mine.txt").write_text("x")
    assert InspectionReport(tmp_path / "r", resume=False, overwrite=True).done == set()
    assert {path.name for path in (tmp_path / "r").rglob("*") if path.is_file()} == {"mine.txt"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x").write_text("x")
    with pytest.raises(BadInputError, match="not an inspection report"):
        InspectionReport(tmp_path / "other", resume=False, overwrite=True)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_an_overlay_draws_outlines_and_keeps_the_rest(shape: tuple[int, ...]) -> None:
    photograph = DecodedImage(np.full(shape, 100, np.uint8))
    drawn = overlay(photograph, finding().mask)
    assert drawn.shape == (40, 50, 3)
    assert (drawn[5, 10] == (230, 40, 40)).all()
    assert (drawn[20:28] == 100).all()
    assert (photograph.pixels == 100).all()
