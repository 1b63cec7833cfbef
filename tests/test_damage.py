"""Damaged files of our own end in an error that names them, never in another exception, and never cost a file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.dataset import Layout, Normal, Sample, open_folder
from defectgen.dataset.manifest import Provenance
from defectgen.errors import UserError
from defectgen.evaluation.data import read_synthetic
from defectgen.evaluation.learning import ScoreCache
from defectgen.imaging.images import encode_png

MUTATIONS = 60  # of each file
ODD: list[Any] = [
    None, True, -1, 10**30, 1.5, float("nan"), "", "x", "3", "../a", "/etc/passwd", "images", "mine.png", ".", "a\\b",
    "a\0b", "x" * 300, "\U0001f600", [], {}, [[]], {"a": {}}, ["x"], [None],
]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy of JSON lines, or of one JSON document, that is damaged as files are: by bits, cuts, and by hand."""
    at, to = sorted(int(i) for i in rng.integers(0, len(data) + 1, 2))
    match rng.integers(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[to:]
        case 2:
            return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]
        case 3:
            return data[:at] + bytes([data[at - 1] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        case 4:
            return data[:at] + b"[" * 100_000 + data[at:]
        case _:
            return by_hand(data, rng)


def by_hand(data: bytes, rng: np.random.Generator) -> bytes:
    """The same with one value removed or replaced."""
    lines = data.split(b"\n") if data.startswith(b'{"index"') else [data]
    number = int(rng.integers(len(lines)))
    if not lines[number]:
        return data + b"\n"
    document = json.loads(lines[number])
    place = document
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
        elif rng.random() < 0.3:
            del place[key]
            break
        else:
            place[key] = ODD[int(rng.integers(len(ODD)))]
            break
    lines[number] = json.dumps(document).encode()
    return b"\n".join(lines)


def samples(count: int, start: int = 0) -> list[Sample]:
    image, mask = np.full((20, 24), 120, np.uint8), np.zeros((20, 24), np.bool_)
    mask[5:9, 6:12] = True
    base: dict[str, Any] = {"source": "a.png", "method": "cut-outs", "placement": {"scale": [1, 1]}, "seed": 0}
    return [
        Sample(i, ("crack", "hole")[i % 2], "tile", image, mask, Provenance(**base, refused=("mask",)))
        for i in range(start, count)
    ]


def ends_well(action: Callable[[], object]) -> bool:
    """Whether an action ends; if not, with an error in one line that tells what to do."""
    try:
        action()
    except UserError as error:
        said = str(error)
    else:
        return True
    assert len(said) < 1000
    return False


@pytest.mark.parametrize("layout", [Layout.YOLO, Layout.MVTEC])
@pytest.mark.parametrize("name", ["manifest.jsonl", "dataset.json"])
def test_of_a_dataset(tmp_path: Path, layout: Layout, name: str) -> None:
    rng = np.random.default_rng(0)
    normals = [Normal("tile", False, lambda: np.zeros((20, 24), np.uint8))]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.png").write_bytes(b"mine")
    whole = tmp_path / "whole"
    open_folder(whole, layout=layout, command="", resume=False, overwrite=False).write(samples(4), normals=normals)
    (whole / "a.png").write_bytes(b"mine")
    passed = 0
    for number in range(MUTATIONS // 2):
        for flag in ("resume", "overwrite"):
            out = tmp_path / f"{flag}{number}"
            shutil.copytree(whole, out)
            (out / name).write_bytes(mutated((whole / name).read_bytes(), rng))
            ends_well(lambda out=out: read_synthetic(out))  # type: ignore[misc]

            def again(out: Path = out, flag: str = flag) -> None:
                resume, overwrite = flag == "resume", flag == "overwrite"
                opened = open_folder(out, layout=layout, command="", resume=resume, overwrite=overwrite)
                todo = [each for each in samples(5) if each.index not in opened.done]
                opened.write(todo, normals=normals)

            passed += ends_well(again)
            assert (out / "a.png").read_bytes() == (tmp_path / "outside/a.png").read_bytes() == b"mine"
            shutil.rmtree(out)
    assert 0 < passed < MUTATIONS


def test_of_the_scores_of_an_evaluation(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "results.json"
    scores = {"all/a/0": {"ap": 0.5, "categories": {"crack": {"ap": 0.25}}, "curve": [1.0, 0.5]}, "choice": 0.75}
    cache = ScoreCache(path, "one", resume=False)
    for key, value in scores.items():
        cache.get(key, lambda value=value: value)  # type: ignore[misc]
    good = path.read_bytes()
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(good, rng))
        read: list[ScoreCache] = []
        if ends_well(lambda read=read: read.append(ScoreCache(path, "one", resume=True))):  # type: ignore[misc]
            assert {key: read[0].get(key, lambda: "lost") for key in scores} == scores  # what was read is right


def test_of_an_image_of_a_dataset(tmp_path: Path) -> None:
    """A sample that is there but damaged is named, and can be replaced."""
    open_folder(tmp_path, layout=Layout.COCO, command="", resume=False, overwrite=False).write(samples(2))
    (tmp_path / "masks/000001.png").write_bytes(encode_png(np.full((20, 24), 7, np.uint8)))
    opened = open_folder(tmp_path, layout=Layout.COCO, command="", resume=True, overwrite=False)
    with pytest.raises(UserError, match=r"masks/000001\.png"):
        opened.write(samples(3, start=2))
    opened = open_folder(tmp_path, layout=Layout.COCO, command="", resume=False, overwrite=True)
    assert opened.write(samples(2)).written == 2
