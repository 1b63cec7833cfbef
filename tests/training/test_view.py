import json
import re
from pathlib import Path

import numpy as np
import pytest

from defectgen import files
from defectgen.errors import DiskFullError
from defectgen.imaging.images import encode_jpeg
from defectgen.training.view import Sheet, View
from tests import browser

COLUMNS = ("normal", "made 1", "made 2", "made 3", "real")


def preview(folder: Path, name: str = "0000064.jpg", rows: int = 3) -> None:
    """As many columns as `COLUMNS`, each in a gray of its own, and rows, each brighter than the one above."""
    tiles = 30 * np.arange(len(COLUMNS)) + 40 * np.arange(rows)[:, None]
    (folder / "previews").mkdir(parents=True, exist_ok=True)
    (folder / "previews" / name).write_bytes(encode_jpeg(tiles.repeat(64, 0).repeat(64, 1).astype(np.uint8)))


def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_it_says_how_far_the_training_is_and_refreshes_itself_until_it_ends(tmp_path: Path) -> None:
    shown = View(tmp_path, "my <run>", tmp_path / "metrics.jsonl")
    for step in range(1, 31):
        shown.log({"step": step, "seconds": step, "d": 1 / step, "<g>": step})
    preview(tmp_path)
    shown.preview(Sheet("0000064.jpg", COLUMNS, ["crack", "crack", "<pit>"]))
    shown.step(30, 1200, 12.5, 200.0, "masks are <empty>")
    text = page(tmp_path)
    assert "Training: my &lt;run&gt;" in text
    assert "Step 30 of 1,200: 12.5 images/s, 3 min 20 s left" in text
    assert '<meta http-equiv="refresh" content="10">' in text
    assert "masks are &lt;empty&gt;" in text
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == ["d: 0.0333", "&lt;g&gt;: 30"]
    assert text.count("<polyline") == text.count('aria-label="Loss ') == 2
    for heading in (*COLUMNS, "crack", "&lt;pit&gt;"):
        assert f">{heading}</b>" in text
    assert 'alt="3 rows: crack, &lt;pit&gt;; columns: normal, made 1' in text
    assert "data:image/jpeg;base64," in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:|//)""", text)
    shown.end("done, after 5 min 00 s")
    assert 'http-equiv="refresh"' not in page(tmp_path)
    assert "Step 30 of 1,200: done, after 5 min 00 s" in page(tmp_path)


def test_it_is_written_every_few_seconds_and_for_new_previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps = 0.0, []
    monkeypatch.setattr("defectgen.training.view.time.monotonic", lambda: now)
    shown = View(tmp_path, "run", tmp_path / "metrics.jsonl")
    for step in range(1, 41):
        now += 0.6
        if step == 20:
            preview(tmp_path)
            shown.preview(Sheet("0000064.jpg", COLUMNS, ["crack"]))
        shown.step(step, 100, 1, 1)
        steps.append(int(re.findall(r"Step (\d+) of", page(tmp_path))[0]))
    assert sorted(set(steps)) == [1, 18, 20, 37]


def test_a_resumed_run_shows_all_its_losses_and_earlier_previews(tmp_path: Path) -> None:
    rows = [{"step": step, "seconds": 1, "d": 0.5} for step in range(10, 3000, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30')
    for name in ("0000064.jpg", "0000128.jpg", "twins.jpg"):
        preview(tmp_path, name)
    shown = View(tmp_path, "run", tmp_path / "metrics.jsonl")
    shown.log({"step": 3000, "d": 0.7})
    shown.preview(Sheet("0000128.jpg", COLUMNS, ["crack"]))
    shown.step(3000, 6000, 1, 1)
    text = page(tmp_path)
    (points,) = re.findall(r'points="([^"]*)"', text)
    assert len(points.split()) == 150
    assert "d: 0.7" in text
    assert "3,000</text>" in text
    assert re.findall(r"<summary>(.*?)</summary>", text) == [
        "Defects, and below the same repaired",
        "Earlier: 0000064.jpg",
    ]


def test_a_run_that_has_nothing_left_to_do_shows_its_end(tmp_path: Path) -> None:
    shown = View(tmp_path, "run", tmp_path / "metrics.jsonl", 300, 300)
    shown.end("done")
    assert "Step 300 of 300: done" in page(tmp_path)
    assert "There are none yet" in page(tmp_path)
    for name in ("0000064.jpg", "0000128.jpg", "twins.jpg"):
        preview(tmp_path, name)
    shown.end("done")
    assert "There are none yet" not in page(tmp_path)
    assert re.findall(r"<details open><summary>(.*?)</summary>", page(tmp_path)) == ["Earlier: 0000128.jpg"]


def test_it_never_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff[1]\n{}\n")
    shown = View(tmp_path, "run", tmp_path / "metrics.jsonl")
    shown.preview(Sheet("gone.jpg", COLUMNS, ["crack"]))
    shown.log({"step": 1, "d": 0.0})

    def full(*_: object) -> None:
        raise DiskFullError("no space")

    monkeypatch.setattr(files, "write", full)
    shown.step(1, 2, 0.0, 1)
    shown.end("done")
    assert not (tmp_path / "index.html").exists()


_HEADINGS = """
const box = each => each.getBoundingClientRect(), image = box(document.querySelector(".preview img"));
const inside = (start, length, each) => (each - start) / length;
return JSON.stringify({
  columns: [...document.querySelectorAll(".preview b:not(.row)")].slice(1).map(each =>
    [inside(image.left, image.width, (box(each).left + box(each).right) / 2), box(each).bottom <= image.top + 1]),
  rows: [...document.querySelectorAll(".preview b.row")].map(each =>
    inside(image.top, image.height, (box(each).top + box(each).bottom) / 2)),
  ratio: image.width / image.height,
  size: parseFloat(getComputedStyle(document.querySelector(".preview b")).fontSize),
  wide: document.documentElement.scrollWidth <= innerWidth,
});
"""


@pytest.mark.parametrize("width", [500, 1200])
def test_headings_lie_over_their_columns_and_beside_their_rows_in_a_browser(tmp_path: Path, width: int) -> None:
    preview(tmp_path)
    shown = View(tmp_path, "run", tmp_path / "metrics.jsonl")
    shown.log({"step": 1, "d": 0.0})
    shown.preview(Sheet("0000064.jpg", COLUMNS, ["crack", "crack", "a very long category of defects"]))
    shown.end("done")
    found = json.loads(browser.after(tmp_path / "index.html", _HEADINGS, width=width))
    assert [at for at, _ in found["columns"]] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.02)
    assert all(above for _, above in found["columns"])
    assert found["rows"] == pytest.approx([1 / 6, 3 / 6, 5 / 6], abs=0.05)
    assert found["ratio"] == pytest.approx(5 / 3, rel=0.05)
    assert found["size"] >= 12
    assert found["wide"]
