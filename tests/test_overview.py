"""`examples/overview.py`: rows of windows around defects, and mixed ones for the blind test."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defectgen.evaluation.data import read_synthetic

SCRIPT = Path(__file__).parents[1] / "examples/overview.py"
REAL, MADE = 80, 160  # gray levels of the images of two folders
SIDE = 32


def folder(root: Path, gray: int, side: int = 48) -> Path:
    """Ten images each of dots and lines, all of one brightness; four dots are longer than a window."""
    for category in ("dot", "line"):
        for path in (root / "defects" / category, root / "masks" / category):
            path.mkdir(parents=True)
        for k in range(10):
            mask = np.zeros((side, side), np.uint8)
            if category == "line":
                mask[side // 2, 2 : side - 2] = 255
            elif k < 4:
                mask[1 : side - 1, 8:12] = 255
            else:
                mask[k : k + 6, 8:14] = 255
            Image.fromarray(np.where(mask, 0, gray).astype(np.uint8)).save(root / "defects" / category / f"{k}.png")
            Image.fromarray(mask).save(root / "masks" / category / f"{k}.png")
    return root / "defects"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["overview.py", *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image.convert("L"))


def test_half_of_the_blind_windows_are_synthetic_and_the_answers_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = folder(tmp_path / "real", REAL), folder(tmp_path / "made", MADE)
    run(monkeypatch, "blind", tmp_path / "out", real, made, "--side", SIDE)
    sheet = pixels(tmp_path / "out.png")
    tiles = [sheet[y : y + 144, x : x + 144] for y in range(0, len(sheet), 162) for x in range(0, 8 * 150, 150)]
    grays = [int(np.median(tile)) for tile in tiles]
    answers = [int(word) for word in (tmp_path / "out.txt").read_text().split()]
    # 6 of the 10 dots fit, and no line does: so 6 dots and all 10 lines of each folder.
    assert sorted(set(grays)) == [REAL, MADE]
    assert [k + 1 for k, gray in enumerate(grays) if gray == MADE] == answers
    assert len(answers) == grays.count(REAL) == 16
    assert all((tile < 60).any() for tile in tiles)  # each shows its defect
    run(monkeypatch, "blind", tmp_path / "again", real, made, "--side", SIDE, "--seed", 2)
    assert (tmp_path / "again.txt").read_text().split() != (tmp_path / "out.txt").read_text().split()


def test_rows_show_the_first_of_each_category_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = folder(tmp_path / "real", REAL), folder(tmp_path / "made", MADE)
    run(monkeypatch, "rows", tmp_path / "out.png", f"a={real}", f"b={made}", "--side", SIDE)
    sheet = pixels(tmp_path / "out.png")
    assert sheet.shape == (2 * 108, 10 * 108)
    for row, gray in enumerate((REAL, MADE)):
        tiles = [sheet[row * 108 : (row + 1) * 108, x : x + 108] for x in range(108, 10 * 108, 108)]
        assert [int(np.median(tile)) for tile in tiles] == [gray] * 9
        lines = [bool((tile[54] < 60).all() or (tile < 60).any(axis=0).all()) for tile in tiles]
        assert lines == [False] * 5 + [True] * 4  # sorted by category


def test_images_smaller_than_a_window_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = folder(tmp_path / "real", REAL)
    with pytest.raises(SystemExit, match=f"{real}: no image is as large as a window of 72 pixels; see --side"):
        run(monkeypatch, "rows", tmp_path / "out.png", f"a={real}")


def test_samples_on_normals_of_their_own_come_first_in_the_blind_test(tmp_path: Path) -> None:
    """A judge told them by two cracks on the same road, speck for speck."""
    images = read_synthetic(folder(tmp_path, MADE)).images
    on = [tmp_path / f"{k // 5}.png" for k in range(len(images))]  # five samples on each of four normals
    script = runpy.run_path(str(SCRIPT))
    script["defects"].__globals__["read_synthetic"] = lambda folder: SimpleNamespace(
        images=[replace(image, source=source) for image, source in zip(images, on, strict=True)]
    )
    first = script["defects"](tmp_path, 4, SIDE, apart=True)
    assert len({image.source for image in first}) == 4
    assert {image.category for image in first} == {"dot", "line"}
    assert len({image.source for image in script["defects"](tmp_path, 4, SIDE)}) == 3
