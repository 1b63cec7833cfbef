import base64
import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.dataset import Layout, Sample, gallery, open_folder
from defectgen.dataset.manifest import Parameters, Provenance, Reference, parse
from defectgen.imaging.images import encode_png
from tests import browser

HOSTILE = ["</script><script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "Riß & Söhne", "焊缝", "&lt;"]


class Cards(HTMLParser):
    """The articles of a page: their attributes, and what lies in each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[dict[str, str]] = []
        self.inside: list[dict[str, list[dict[str, str]]]] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        if tag == "article":
            self.cards.append(values)
            self.inside.append({})
            self.texts.append("")
        elif self.inside:
            self.inside[-1].setdefault(tag, []).append(values)

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def samples(categories: list[str], real: Path | None = None) -> Iterator[Sample]:
    for index, category in enumerate(categories):
        image = np.full((300, 400, 3), 120, np.uint8)
        mask = np.zeros((300, 400), np.bool_)
        mask[100 : 110 + 2 * index, 200:230] = True
        image[mask] = (200, 30, 30)
        facts: dict[str, Any] = {"source": "a.png", "model_sha256": "f" * 64, "method": "m", "seed": 3}
        if real is not None:
            facts |= {"gate": "real", "distance": 1 - index / 10, "nearest": Reference(file=str(real))}
        yield Sample(index, category, "tile", image, mask, Provenance(**facts))


def written(root: Path, made: Iterator[Sample], command: str = "defectgen compose a b -n 9", **settings: Any) -> Cards:
    open_folder(
        root, layout=settings.pop("layout", Layout.PLAIN), command=command, resume=False, overwrite=False
    ).write(made)
    manifest = root / "manifest.jsonl"
    gallery.write(root / "review.html", root, list(parse(manifest, manifest.read_bytes())), command, **settings)
    return Cards((root / "review.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("layout", list(Layout))
def test_every_sample_is_there_with_what_is_known_of_it(tmp_path: Path, layout: Layout) -> None:
    (tmp_path / "real.png").write_bytes(encode_png(np.full((50, 50), 99, np.uint8)))
    page = written(tmp_path / "d", samples(["crack", "pit", "crack"], tmp_path / "real.png"), layout=layout)
    rows = [json.loads(line) for line in (tmp_path / "d/manifest.jsonl").read_text().splitlines()]
    for card, inside, text, row in zip(page.cards, page.inside, page.texts, rows, strict=True):
        assert card["data-name"] == row["image"]
        assert (card["data-category"], card["data-area"]) == (row["category"], str(row["area"]))
        assert float(card["data-distance"]) == row["distance"]
        assert f"gate {row['distance']:.2f}" in text
        assert "nearest real: real.png" in text
        (picture,) = inside["img"]
        assert picture["src"].startswith("data:image/jpeg;base64,")
        assert picture["alt"] == f"Sample {row['index']:06}: {row['category']}, 1 defect of {row['area']} pixels"
        assert inside["a"][0]["href"] == row["image"]
        assert inside["span"][0]["aria-label"] == "nearest real: real.png"
    text = (tmp_path / "d/review.html").read_text(encoding="utf-8")
    assert len(re.findall(r"background-image: url\(data:image/jpeg", text)) == 1  # once for all
    assert not re.search(r"""(?:src|href|url)[=(]["']?(?:https?:|//)""", text)
    assert gallery.is_page(tmp_path / "d/review.html")


def test_real_defects_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real.png").write_bytes(encode_png(np.full((50, 50), 99, np.uint8)))
    written(Path("sets/d"), samples(["crack"], Path("real.png")))
    (row,) = parse(Path("sets/d/manifest.jsonl"), Path("sets/d/manifest.jsonl").read_bytes())
    assert row.nearest is not None
    assert row.nearest.file == str(tmp_path / "real.png")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    root = Path("../sets/d")
    gallery.write(Path("review.html"), root, [row], "c")
    (inside,) = Cards(Path("review.html").read_text(encoding="utf-8")).inside
    assert inside["span"][0]["aria-label"] == "nearest real: real.png"


def test_outlines_lie_on_the_defects_of_the_pictures(tmp_path: Path) -> None:
    """Of small ones, of those at a corner, and of those that fill their image."""
    made = []
    for index, (y, x, height, width) in enumerate([(100, 200, 10, 30), (0, 0, 12, 12), (20, 30, 250, 300)]):
        image, mask = np.full((300, 400), 120, np.uint8), np.zeros((300, 400), np.bool_)
        mask[y : y + height, x : x + width] = True
        image[mask] = 20
        made.append(Sample(index, "crack", "tile", image, mask, Provenance(seed=1)))
    page = written(tmp_path / "d", iter(made))
    for inside in page.inside:
        (picture,), (svg,), (path,) = inside["img"], inside["svg"], inside["path"]
        data = np.frombuffer(base64.b64decode(picture["src"].partition(",")[2]), np.uint8)
        pixels = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
        assert svg["viewbox"] == f"0 0 {pixels.shape[1]} {pixels.shape[0]}"
        assert max(pixels.shape) == 256
        points = np.array([float(value) for value in re.findall(r"[\d.]+", path["d"])]).reshape(-1, 2)
        filled = np.asarray(cv2.fillPoly(np.zeros(pixels.shape, np.uint8), [points.astype(np.int32)], 1)) > 0
        dark = np.asarray(pixels < 70)
        assert (filled & dark).sum() > 0.9 * (filled | dark).sum()
        assert dark.sum() > 100


def test_any_name_is_text(tmp_path: Path) -> None:
    page = written(tmp_path / "d", samples(HOSTILE))
    assert [card["data-category"] for card in page.cards] == HOSTILE
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == len(HOSTILE)
    for inside in page.inside:
        (link,) = inside["a"]
        assert not re.search(r"[<>\"'\s]", link["href"])


def test_what_a_sample_was_made_of_is_told_if_the_gate_says_nothing(tmp_path: Path) -> None:
    (one,) = samples(["crack"])
    cut = {"content": "gone/005.jpg", "content_sha256": "0" * 64, "box": {"x": 1, "y": 2, "width": 3, "height": 4}}
    parameters = Parameters.model_validate({"defects": [cut]})
    reference = Reference(file="far/007.png", window={"x": 0, "y": 0, "side": 9})
    known: list[tuple[dict[str, Any], str]] = [
        ({"parameters": parameters}, "cut out of: 005.jpg"), ({"reference": reference}, "made after: 007.png"),
        ({}, ""),
    ]  # fmt: skip
    for index, (changes, words) in enumerate(known):
        made = Sample(0, "crack", "t", one.image, one.mask, one.provenance.model_copy(update=changes))
        page = written(tmp_path / f"{index}", iter([made]))
        assert words in page.texts[0]
        assert "span" not in page.inside[0]  # its file is not there, so there is no picture


def test_pictures_beyond_what_a_page_takes_are_the_datasets_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_BYTES", 6_000)
    page = written(tmp_path / "d", samples(["crack"] * 4))
    sources = [inside["img"][0]["src"] for inside in page.inside]
    assert sources[0].startswith("data:")
    assert sources[-1] == "images/crack/000003.png"
    assert "pictures are too many for this page" in (tmp_path / "d/review.html").read_text()


def test_the_command_that_replaces_is_the_one_that_made_them(tmp_path: Path) -> None:
    for number, (command, then) in enumerate(
        [
            ("defectgen compose 'my defects' b -n 9 --overwrite", "defectgen compose 'my defects' b -n 9"),
            ("defectgen compose a b -n 9 --resume --reject old.txt -q", "defectgen compose a b -n 9 -q"),
            ("defectgen compose a b -n 9 --reject=old.txt --resume", "defectgen compose a b -n 9"),
        ]
    ):
        written(tmp_path / f"{number}", samples(["crack"]), command)
        text = (tmp_path / f"{number}/review.html").read_text()
        (shown,) = re.findall(r"<code>(.*?)</code>", text)
        words = shlex.split(shown.replace("&#x27;", "'"))
        assert words == [*shlex.split(then), "--resume", "--reject", "rejected.txt"]


def test_overwriting_a_dataset_removes_its_page_but_no_other(tmp_path: Path) -> None:
    root = tmp_path / "d"
    written(root, samples(["crack", "pit"]))
    again = open_folder(root, layout=Layout.PLAIN, command="c", resume=False, overwrite=True)
    again.write(samples(["crack"]))
    assert not (root / "review.html").exists()
    (root / "review.html").write_text("<html>mine")
    open_folder(root, layout=Layout.PLAIN, command="c", resume=False, overwrite=True).write(samples(["crack"]))
    assert (root / "review.html").read_text() == "<html>mine"


_DRIVEN = """
const said = {}, key = name => (document.activeElement || document.body).dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
const choose = (id, value) => { by(id).value = value; by(id).dispatchEvent(new Event("input")); };
const focused = () => document.activeElement.dataset.index;
const order = () => shown().map(card => card.dataset.index).join("");
said.start = [by("count").textContent, by("controls").hidden, by("next").hidden, by("export").hasAttribute("href")];
key("ArrowRight"); said.first = focused();
key("r"); said.then = focused();
key("a"); key("R");
said.exported = decodeURIComponent(by("export").href.split(",")[1]);
said.count = by("count").textContent;
key("ArrowLeft"); key("u"); said.undone = by("count").textContent;
key("End"); said.end = focused(); key("Home"); said.home = focused();
choose("order", "distance"); said.unlike = order();
choose("order", "large"); said.large = order();
choose("order", "number");
choose("category", "pit"); said.pits = order();
choose("category", ""); choose("verdict", "undecided"); said.undecided = order();
shown()[0].querySelector("button[value=rejected]").click();
said.clicked = [order(), focused()];
choose("verdict", ""); choose("name", "00004"); said.named = order();
choose("name", "");
const outline = () => getComputedStyle(document.querySelector("article[data-index='4'] svg")).visibility;
document.activeElement.blur(); said.outlines = [outline()]; key("o"); said.outlines.push(outline());
by("name").focus(); by("name").dispatchEvent(new KeyboardEvent("keydown", {key: "r", bubbles: true}));
said.typed = by("count").textContent;
said.tabs = list.querySelectorAll("[tabindex='0']").length;
said.kept = JSON.parse(localStorage.getItem(KEY)).length;
said.wide = document.documentElement.scrollWidth;
return JSON.stringify(said);
"""


def test_people_accept_and_reject_by_key_in_a_browser(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encode_png(np.full((50, 50), 99, np.uint8)))
    written(tmp_path / "d", samples(["crack", "pit", "crack", "pit", "crack"], tmp_path / "real.png"))
    said = json.loads(browser.after(tmp_path / "d/review.html", _DRIVEN, width=500))
    assert said["start"] == ["5 of 5 shown, 0 accepted, 0 rejected", False, True, False]
    assert (said["first"], said["then"]) == ("0", "1")
    assert said["exported"] == "images/crack/000000.png\nimages/crack/000002.png\n"
    assert said["count"] == "5 of 5 shown, 1 accepted, 2 rejected"
    assert said["undone"] == "5 of 5 shown, 1 accepted, 1 rejected"
    assert (said["end"], said["home"]) == ("4", "0")
    assert (said["unlike"], said["large"], said["pits"]) == ("01234", "43210", "13")
    assert (said["undecided"], said["clicked"], said["named"]) == ("234", ["34", "3"], "4")
    assert (said["typed"], said["kept"]) == ("5 of 5 shown, 1 accepted, 2 rejected", 3)
    assert said["outlines"] == ["hidden", "visible"]
    assert said["tabs"] == 3  # one sample and its two buttons
    assert said["wide"] <= 500
