import csv
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import DecodedImage, encode_jpeg, read_image, read_mask
from defectgen.inspection import report as report_module
from defectgen.inspection.inspector import Finding, Unreadable
from defectgen.inspection.report import InspectionReport, Settings, overlay

THUMBNAILS = encode_jpeg(np.zeros((8, 32), np.uint8))


def finding(name: str = "a.png", *, defective: bool = True) -> Finding:
    mask = np.zeros((40, 50), np.bool_)
    if defective:
        mask[5:10, 8:20] = True
        mask[30:33, 40:44] = True
    photograph = DecodedImage(np.full((40, 50), 100, np.uint8))
    return Finding(Path("line") / name, photograph, 0.9 if defective else 0.2, 0.5, mask, thumbnails=THUMBNAILS)


def opened(out: Path, *, resume: bool = False, overwrite: bool = False, **changes: Any) -> InspectionReport:
    report = InspectionReport(out, resume=resume, overwrite=overwrite)
    report.check(replace(Settings("golden", 0.5, 0), **changes))
    report.begin()
    return report


def test_a_record_holds_the_verdict_and_the_defects(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    row = report.add(finding(), "9 1")
    assert row == {
        "image": "line/a.png", "defective": True, "score": 0.9, "threshold": 0.5, "border": 0, "reference": "golden",
        "scorer": "ssim", "floor": 0.0, "boxes": [[8, 5, 12, 5], [40, 30, 4, 3]], "areas": [60, 12],
        "mask": "masks/a.png.png", "overlay": "overlays/a.png.jpg", "thumbnail": "thumbnails/a.png.jpg",
        "stamp": "9 1",
        "contours": [[[[8, 5], [8, 9], [19, 9], [19, 5]]], [[[40, 30], [40, 32], [43, 32], [43, 30]]]],
    }  # fmt: skip
    np.testing.assert_array_equal(read_mask(tmp_path / "r/masks/a.png.png"), finding().mask)
    assert read_image(tmp_path / "r/overlays/a.png.jpg").channels == 3
    flawless = report.add(finding("b.png", defective=False))
    assert (flawless["defective"], flawless["boxes"], flawless["mask"]) == (False, [], None)
    assert report.add(Unreadable(Path("line/c.png"), "truncated")) == {"image": "line/c.png", "error": "truncated"}
    assert [json.loads(line)["image"] for line in (tmp_path / "r/report.jsonl").read_text().splitlines()] == [
        "line/a.png", "line/b.png", "line/c.png",
    ]  # fmt: skip
    rows = table(report)
    assert [row["image"] for row in rows] == ["line/a.png", "line/b.png", "line/c.png"]
    assert (rows[0]["defective"], rows[0]["defects"], rows[0]["area"]) == ("True", "2", "72")
    assert rows[2]["error"] == "truncated"


def table(report: InspectionReport) -> list[dict[str, str]]:
    with report.write_table().open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_is_resumed_after_an_interruption(tmp_path: Path) -> None:
    opened(tmp_path / "r").add(finding(), "9 1")
    with (tmp_path / "r/report.jsonl").open("a") as file:
        file.write('{"image": "line/b.p')  # killed while writing
    with pytest.raises(UsageError, match="--resume"):
        InspectionReport(tmp_path / "r", resume=False, overwrite=False)
    report = opened(tmp_path / "r", resume=True)
    assert (report.stamp_of(Path("line/a.png")), report.stamp_of(Path("line/b.png"))) == ("9 1", None)
    report.add(finding("b.png"))
    assert [row.image for row in report.rows()] == ["line/a.png", "line/b.png"]


def test_the_last_record_of_an_image_counts(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    report.add(finding())
    report.add(Unreadable(Path("line/b.png"), "truncated"))
    assert (report.defective, report.errors, report.kept) == (1, 1, 0)
    report = opened(tmp_path / "r", resume=True)
    assert (report.defective, report.errors, report.kept) == (1, 1, 2)
    assert report.stamp_of(Path("line/b.png")) is None
    report.add(finding(defective=False))
    report.add(finding("b.png"))
    assert (len(report), report.defective, report.errors, report.kept) == (2, 1, 0, 0)
    assert [(row["image"], row["defective"]) for row in table(report)] == [
        ("line/a.png", "False"),
        ("line/b.png", "True"),
    ]
    assert (tmp_path / "r/report.jsonl").read_text().count("\n") == 2
    assert [path.name for path in (tmp_path / "r/masks").iterdir()] == ["b.png.png"]
    lines = list(map(json.loads, (tmp_path / "r/report.jsonl").read_text().splitlines()))
    assert [len(line["contours"]) for line in lines] == [0, 2]  # also in lines that were moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 0.4}, "threshold 0.5, not 0.4"),
        ({"border": 3}, "border 0, not 3"),
        ({"reference": "model b"}, "reference golden, not model b"),
    ],
)
def test_verdicts_by_other_settings_are_not_mixed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    opened(tmp_path / "r").add(finding())
    before = (tmp_path / "r/report.jsonl").read_bytes()
    with pytest.raises(UsageError, match=words):
        opened(tmp_path / "r", resume=True, **change)
    assert (tmp_path / "r/report.jsonl").read_bytes() == before
    opened(tmp_path / "r", overwrite=True, **change)


def test_overwriting_removes_only_files_of_the_report(tmp_path: Path) -> None:
    opened(tmp_path / "r").add(finding())
    opened(tmp_path / "r", resume=True).write_page()
    (tmp_path / "r/masks/mine.txt").write_text("x")
    assert len(opened(tmp_path / "r", overwrite=True)) == 0
    assert {path.name for path in (tmp_path / "r").rglob("*") if path.is_file()} == {"mine.txt", "report.jsonl"}
    assert not (tmp_path / "r/report.jsonl").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x").write_text("x")
    with pytest.raises(BadInputError, match="not an inspection report"):
        InspectionReport(tmp_path / "other", resume=False, overwrite=True)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "../out/mine.txt", "{out}/mine.txt", "mine.txt", "masks/../../out/mine.txt", "link/mine.txt",
        "masks/linked.png", "report.jsonl", "masks", "masks/deep/a.png", "masks/folder", "{other}/a.png",
        "masks/a\\u0000b", "masks/",
        "", ".", "masks/" + "x" * 300,
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["mask", "overlay", "thumbnail"])
def test_a_record_that_names_other_files_deletes_nothing(tmp_path: Path, name: str, key: str, resume: bool) -> None:
    opened(tmp_path / "r").add(finding())
    outside = tmp_path / "out"
    outside.mkdir()
    (outside / "mine.txt").write_text("x")
    (tmp_path / "r/mine.txt").write_text("x")
    (tmp_path / "r/link").symlink_to(outside)
    (tmp_path / "r/masks/linked.png").symlink_to(outside / "mine.txt")
    (tmp_path / "r/masks/folder").mkdir()
    name = name.replace("{out}", str(outside)).replace("{other}", "overlays" if key == "mask" else "masks")
    text = f'{{"image": "b", "defective": true, "{key}": "{name}"}}\n'
    with (tmp_path / "r/report.jsonl").open("a") as file:
        file.write(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInputError, match=r"r(/.*)?: (a record names|is a link)"):
        opened(tmp_path / "r", resume=resume, overwrite=not resume)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["report.jsonl", "report.csv", "report.html", "masks", "overlays", "thumbnails"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_link_in_the_place_of_the_reports_own_is_not_followed(tmp_path: Path, name: str, resume: bool) -> None:
    opened(tmp_path / "r").add(finding())
    (tmp_path / "r/report.csv").touch()
    (tmp_path / "r/report.html").touch()
    (tmp_path / "r" / name).rename(tmp_path / "moved")
    (tmp_path / "r" / name).symlink_to(tmp_path / "moved")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInputError, match="is a link"):
        opened(tmp_path / "r", resume=resume, overwrite=not resume)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    [
        b"x", b"\xff\xfe", b"[" * 100_000, b"null", b"3", b"[]", b"{}", b'{"image": "b"}',
        b'{"image": 3, "error": "e"}',
        b'{"image": "", "error": "e"}', b'{"image": "b", "defective": "yes"}', b'{"image": "b", "defective": 1}',
        b'{"image": "b", "defective": true, "boxes": [[1, 2]]}', b'{"image": "b", "defective": true, "areas": 3}',
        b'{"image": "b", "defective": true, "score": NaN}', b'{"image": "b", "defective": true, "mask": ["a"]}',
        b'{"image": "\\ud800", "error": "e"}', b'{"image": "b", "error": "e"', b"\0" * 50,
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_can_be_replaced(tmp_path: Path, line: bytes) -> None:
    report = opened(tmp_path / "r")
    report.add(finding())
    records = tmp_path / "r/report.jsonl"
    records.write_bytes(records.read_bytes() + line + b"\n")
    with pytest.raises(BadInputError, match=r"report\.jsonl, line 2: damaged .*--overwrite$"):
        InspectionReport(tmp_path / "r", resume=True, overwrite=False)
    (tmp_path / "r/masks/mine.png").write_text("x")
    opened(tmp_path / "r", overwrite=True)
    assert {path.name for path in (tmp_path / "r").rglob("*") if path.is_file()} == {"mine.png", "report.jsonl"}


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    for i in range(3):
        report.add(finding(f"{i}.png"))
    records = tmp_path / "r/report.jsonl"
    whole = records.read_bytes()
    rng = random.Random(4)  # noqa: S311
    damaged = 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        records.write_bytes(data)
        try:
            InspectionReport(tmp_path / "r", resume=True, overwrite=False)
        except BadInputError:
            damaged += 1
    assert damaged > 50


def test_lines_that_an_editor_changed_are_read(tmp_path: Path) -> None:
    opened(tmp_path / "r").add(finding())
    records = tmp_path / "r/report.jsonl"
    records.write_bytes(b"\xef\xbb\xbf" + records.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(opened(tmp_path / "r", resume=True)) == 1


def test_a_killed_run_leaves_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    out = tmp_path / "r"
    end = ".abcd_123.defectgen-tmp"
    ours = [
        f"{name}{end}"
        for name in ("masks/.a.png.png", "overlays/.a.png.jpg", "thumbnails/.a", ".report.csv", ".report.html")
    ]
    foreign = [".foo.tmp", "masks/.foo.tmp", f"masks/a.png{end}", "masks/.a.png"]
    for overwrite in (False, True):
        opened(out, overwrite=overwrite).add(finding())
        for name in (*ours, *foreign):
            (out / name).write_text("x")
        opened(out, resume=not overwrite, overwrite=overwrite)
        assert not [name for name in ours if (out / name).exists()]
        assert all((out / name).exists() for name in foreign)
        for name in foreign:
            (out / name).unlink()
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.report.jsonl.abcdefgh.defectgen-tmp").write_text("x")
    opened(tmp_path / "s", resume=True).add(finding())
    (tmp_path / "t").mkdir()
    (tmp_path / "t/.foo.tmp").write_text("x")
    with pytest.raises(BadInputError, match="not an inspection report"):
        InspectionReport(tmp_path / "t", resume=True, overwrite=False)


def test_no_two_images_share_a_mask(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    long = "焊缝检测相机二工位" * 9
    names = [
        "a.png",
        "a.bmp",
        "one/a.png",
        "A.png",
        "a%x0a.png",
        f"{long}.png",
        f"{long}2.png",
        "x" * 251,
        "x" * 250,
        "a\\b.png",
    ]
    images = [*names, *(f"two/{name}" for name in names), os.fsdecode(b"M\xfcller.png"), "a\n.png"]
    rows = []
    for i, name in enumerate(images):
        if i == len(names):
            report = opened(tmp_path / "r", resume=True)
        rows.append(report.add(finding(name)))
    for key, folder in (("mask", "masks"), ("overlay", "overlays"), ("thumbnail", "thumbnails")):
        assert (
            len({row[key].casefold() for row in rows}) == len(list((tmp_path / "r" / folder).iterdir())) == len(images)
        )
        assert all((tmp_path / "r" / row[key]).is_file() and len(row[key].encode()) < 140 for row in rows)
    assert len(opened(tmp_path / "r", resume=True)) == len(images)
    assert report.add(finding(names[2]))["mask"] == rows[2]["mask"]


def test_names_reach_the_table_as_text(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    names = [
        "=1+1.png",
        "+a.png",
        "-a.png",
        "@a.png",
        "a\nb,c.png",
        "\x1b[2Ja.png",
        os.fsdecode(b"M\xfcller.png"),
        "ä.png",
    ]
    for name in names:
        report.add(Unreadable(Path(name), f"{name}: no such\r\nfile"))
    rows = table(report)
    assert [row["image"] for row in rows] == [
        "./=1+1.png", "./+a.png", "./-a.png", "./@a.png", "a\\nb,c.png", "\\x1b[2Ja.png", "M\\xfcller.png", "ä.png",
    ]  # fmt: skip
    assert not [row["error"] for row in rows if row["error"].startswith(("=", "+", "-", "@"))]
    assert (tmp_path / "r/report.csv").read_bytes().count(b"\n") == 1 + len(names)
    report = opened(tmp_path / "r", resume=True)
    for name in names:
        report.add(finding(name), "1 1")
        assert report.stamp_of(Path("line") / name) == "1 1"
    assert len(report) == 2 * len(names)


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("too large"), ValueError("OpenCV cannot")])
def test_an_overlay_that_cannot_be_made_is_an_error_of_its_image(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> bytes:
        raise error

    monkeypatch.setattr(report_module, "encode_jpeg", fail)
    report = opened(tmp_path / "r")
    row = report.add(finding())
    assert (row["defective"], row["mask"], row["overlay"]) == (True, "masks/a.png.png", None)
    assert "judged, but its defects cannot be drawn" in row["error"]
    assert (report.defective, report.errors) == (1, 1)
    assert opened(tmp_path / "r", resume=True).stamp_of(Path("line/a.png")) is None  # judged again


@pytest.mark.parametrize("shape", [(70_000, 12), (8, 150_000), (3, 70_000, 3)])
def test_the_overlay_of_a_strip_fits_a_jpeg(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape[:2], np.bool_)
    mask[1:3, 1:3] = mask[-3:-1, -3:-1] = True
    report = opened(tmp_path / "r")
    row = report.add(Finding(Path("a.png"), DecodedImage(np.full(shape, 100, np.uint8)), 1.0, 0.5, mask))
    assert "error" not in row
    drawn = read_image(tmp_path / "r" / row["overlay"]).pixels.astype(int)
    assert max(drawn.shape) > 60_000
    assert (drawn[..., 0] - drawn[..., 1]).max() > 20  # red


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_an_overlay_draws_outlines_and_keeps_the_rest(shape: tuple[int, ...]) -> None:
    photograph = DecodedImage(np.full(shape, 100, np.uint8))
    drawn = overlay(photograph, finding().mask)
    assert drawn.shape == (40, 50, 3)
    assert (drawn[5, 10] == (230, 40, 40)).all()
    assert (drawn[20:28] == 100).all()
    assert (photograph.pixels == 100).all()


def test_only_the_flawless_images_of_the_highest_scores_have_thumbnails(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    scores = np.random.default_rng(0).permutation(200) / 1000
    for i, score in enumerate(scores.tolist()):
        if i == 120:
            report = opened(tmp_path / "r", resume=True)
        report.add(replace(finding(f"{i}.png", defective=False), score=score))
    with_some = {row.score for row in report.rows() if row.thumbnail}
    assert set(np.sort(scores)[-50:].tolist()) <= with_some
    assert len(with_some) < 140
    assert len(list((tmp_path / "r/thumbnails").iterdir())) == len(with_some)
    assert report.write_page().read_text().count("<img") == 50


def test_thumbnails_go_with_their_record(tmp_path: Path) -> None:
    report = opened(tmp_path / "r")
    report.add(finding())
    assert (tmp_path / "r/thumbnails/a.png.jpg").read_bytes() == THUMBNAILS
    report.add(Unreadable(Path("line/a.png"), "truncated"))
    assert not list((tmp_path / "r/thumbnails").iterdir())
    report.write_page()
    assert "<img" not in (tmp_path / "r/report.html").read_text()
