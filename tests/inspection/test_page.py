import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from defectgen.inspection import page
from defectgen.inspection.record import Record

VOID = {"meta", "img", "input", "path", "rect"}


class Page(HTMLParser):
    """The rows of a report's page, [image, verdict, score, threshold, defects, area], and its tags and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: dict[str, str] = {}  # of each image with thumbnails, their alternative text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tbody":
            self.rows.append([])
        if tag == "td":
            self._cell = "colspan" not in dict(attrs)
            self.rows[-1] += [""] * self._cell
        if tag == "img":
            self.pictures[self.rows[-1][0]] = dict(attrs)["alt"] or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open[-1:] == ["td"] and self._cell:
            self.rows[-1][-1] += data


def record(name: str, score: float | None, *, defective: bool | None = None, thumbnail: str | None = None) -> Record:
    if score is None:
        return Record(image=name, error="truncated & <damaged>")
    defective = score > 0.5 if defective is None else defective
    boxes, areas = ([(1, 2, 3, 4)], [int(100 * score)]) if defective else ([], [])
    return Record(
        image=name, defective=defective, score=score, threshold=0.5, border=3, reference="golden", boxes=boxes,
        areas=areas, thumbnail=thumbnail, mask=f"masks/{name}.png" if defective else None,
    )  # fmt: skip


def written(tmp_path: Path, records: list[Record]) -> Page:
    page.write(tmp_path / "report.html", records, lambda name: tmp_path / name)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


NAMES = ["<b>&\"'.png", "</script><script>alert(1)</script>.png", "&lt;.png", "a b%20#?.png", "焊缝.png", "a\n.png"]


def test_any_name_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.jpg").write_bytes(b"jpeg")
    found = written(tmp_path, [record(name, 0.9, thumbnail="t.jpg") for name in NAMES])
    assert sorted(row[0] for row in found.rows) == sorted(name.replace("\n", "\\n") for name in NAMES)
    assert all(alt.startswith(f"{name}: ") for name, alt in found.pictures.items())
    assert len(found.pictures) == len(NAMES)
    assert [tag for tag, _ in found.tags].count("script") == 1
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert "masks/a%20b%2520%23%3F.png.png" in links
    assert not [link for link in links if link and re.search(r"[<>\"'\n]", link)]


def test_a_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    (tmp_path / "t.jpg").write_bytes(b"jpeg")
    found = written(tmp_path, [record("a.png", 0.9, thumbnail="t.jpg"), record("b.png", None)])
    assert "http" not in (tmp_path / "report.html").read_text()
    sources = [attributes[key] for _, attributes in found.tags for key in ("src", "srcset") if key in attributes]
    assert [str(source)[:22] for source in sources] == ["data:image/jpeg;base64"]
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object", "embed", "base")]
    controls = next(attributes for _, attributes in found.tags if attributes.get("id") == "controls")
    assert "hidden" in controls  # until the script runs; all rows are shown without it
    assert not [attributes for tag, attributes in found.tags if tag in ("tbody", "tr") and "hidden" in attributes]


def test_rows_are_sorted_by_score_and_errors_come_last(tmp_path: Path) -> None:
    scores = {"b.png": 0.2, "a.png": 1.5, "error.png": None, "c.png": 0.7, "d.png": 0.2}
    found = written(tmp_path, [record(name, score) for name, score in scores.items()])
    assert found.rows == [
        ["a.png", "defective", "1.5", "0.5", "1", "150"], ["c.png", "defective", "0.7", "0.5", "1", "70"],
        ["b.png", "flawless", "0.2", "0.5", "0", "0"], ["d.png", "flawless", "0.2", "0.5", "0", "0"],
        ["error.png", "not judged", "", "", "", ""],
    ]  # fmt: skip
    assert "truncated & <damaged>" in found.text
    assert "2 defective, 2 flawless, 1 not judged; threshold 0.5, compared with golden, 3 pixels" in found.text
    assert "const SCORES = [1.5, 0.7, 0.2, 0.2];" in found.text
    assert [tag for tag, _ in found.tags].count("svg") == 1


def test_images_without_any_verdict_have_a_page(tmp_path: Path) -> None:
    found = written(tmp_path, [record("a.png", None)])
    assert [row[0] for row in found.rows] == ["a.png"]
    assert "svg" not in dict(found.tags)


def test_what_is_too_much_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.jpg").write_bytes(bytes(300))
    records = [record(f"{i:03}.png", 0.6 + i / 1000, thumbnail="t.jpg") for i in range(30)]
    monkeypatch.setattr(page, "_BYTES", 10 * 400)
    found = written(tmp_path, records)
    assert sorted(found.pictures) == [f"{i:03}.png" for i in range(20, 30)]
    assert len(found.rows) == 30
    assert [attributes["href"] for tag, attributes in found.tags if tag == "a"].count("t.jpg") == 20
    assert "The pictures of 20 images with lower scores would make this page too large" in found.text
    assert "in the folder thumbnails" in found.text
    monkeypatch.setattr(page, "_ROWS", 12)
    found = written(tmp_path, [*records, record("flawless.png", 0.1)])
    assert [row[0] for row in found.rows] == [*(f"{i:03}.png" for i in range(29, 17, -1)), "flawless.png"]
    assert "18 defective images more are in report.csv" in found.text


def test_thumbnails_that_are_gone_leave_a_row(tmp_path: Path) -> None:
    found = written(tmp_path, [record("a.png", 0.9, thumbnail="gone.jpg"), record("b.png", 0.8)])
    assert [row[0] for row in found.rows] == ["a.png", "b.png"]
    assert not found.pictures
