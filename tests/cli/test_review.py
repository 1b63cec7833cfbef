"""`defectgen review`, from a dataset to its page and back."""

import json
import re
from pathlib import Path

import pytest

from defectgen.__main__ import main


@pytest.fixture
def dataset(defects: Path) -> Path:
    """Four cracks composed onto plain normals."""
    assert main([*COMPOSE, "--quiet"]) == 0
    return Path("dataset")


COMPOSE = ["compose", "tiles/defects", "tiles/good", "-n", "4"]


def names(page: Path) -> list[str]:
    return re.findall(r'data-name="([^"]*)"', page.read_text(encoding="utf-8"))


def test_what_is_rejected_on_the_page_is_replaced_and_the_page_made_again_shows_that(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["review", "dataset", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"message_type": "summary", "page": "dataset/review.html", "samples": 4, "skipped": 0}
    page = dataset / "review.html"
    first = names(page)
    assert first == [f"images/crack/00000{index}.png" for index in range(4)]
    Path("rejected.txt").write_text("\n".join(first[1:3]) + "\n")  # as the page exports it
    assert main([*COMPOSE, "--resume", "--reject", "rejected.txt", "--quiet"]) == 0
    assert main(["review", "dataset", "--quiet"]) == 0
    assert names(page) == [f"images/crack/00000{index}.png" for index in (0, 3, 4, 5)]
    assert "compose tiles/defects tiles/good -n 4 --quiet --resume --reject rejected.txt" in page.read_text()


def test_a_page_elsewhere_has_links_to_the_dataset(dataset: Path) -> None:
    assert main(["review", "dataset", "--out", "pages/one.html", "--quiet"]) == 0
    assert 'href="../dataset/images/crack/000000.png"' in Path("pages/one.html").read_text()
    assert not (dataset / "review.html").exists()


def test_samples_that_cannot_be_shown_are_named(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "images/crack/000001.png").write_bytes(b"damaged")
    (dataset / "masks/crack/000002.png").unlink()
    assert main(["review", "dataset", "--quiet"]) == 3
    said = capsys.readouterr().err
    assert "skipped dataset/images/crack/000001.png" in said
    assert "skipped dataset/masks/crack/000002.png" in said
    assert names(dataset / "review.html") == ["images/crack/000000.png", "images/crack/000003.png"]


def test_what_is_wrong_is_one_line(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("none").mkdir()
    Path("none/manifest.jsonl").write_text("")
    Path("bad").mkdir()
    Path("bad/manifest.jsonl").write_text("{}\n")
    Path("mine.html").write_text("<html>mine")
    capsys.readouterr()
    for arguments, code, words in (
        (["nowhere"], 4, "nowhere: no such folder"),
        (["empty"], 4, "empty: not a defectgen dataset (it has no manifest.jsonl)"),
        (["none"], 4, "none: has no samples"),
        (["bad"], 4, "bad/manifest.jsonl: line 1 cannot be read"),
        (["dataset", "--out", "mine.html"], 2, "mine.html: is in the way, and not a page of 'defectgen review'"),
        (["dataset", "--out", "empty"], 2, "empty: is a folder; give a file, such as empty/review.html"),
        ([], 2, "DATASET"),
    ):
        assert main(["review", *arguments, "--quiet"]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert Path("mine.html").read_text() == "<html>mine"
