import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen import files
from defectgen.dataset.coco import run_lengths
from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation.data import (
    LabeledImage,
    Synthetic,
    load_examples,
    load_image,
    load_mask,
    read_real,
    read_synthetic,
    resize_mask,
    to_model_range,
)
from defectgen.evaluation.splitting import near_duplicates, remove_test_leakage, split
from defectgen.imaging.images import DecodedImage, encode_png, read_image
from defectgen.imaging.windows import common_range, value_range
from defectgen.marking import Marking


def copy_of(path: Path, to: Path, brighter: int = 0) -> LabeledImage:
    """The same photograph taken a moment later."""
    pixels = read_image(path).pixels.astype(int) + brighter
    pixels = pixels + np.random.default_rng(0).integers(-2, 3, pixels.shape)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(encode_png(np.clip(pixels, 0, 255).astype(np.uint8)))
    return LabeledImage(to, "disc")


def test_real_photographs_of_one_folder_are_told_apart_by_annotations(real: Path, tmp_path: Path) -> None:
    images, annotations = [], []
    for number, each in enumerate(read_real(real).images):
        moved = tmp_path / "all" / f"{number}.png"
        moved.parent.mkdir(exist_ok=True)
        shutil.copy(each.path, moved)
        images.append({"id": number, "file_name": moved.name, "height": 100, "width": 100})
        if each.category != "normal":
            outline = run_lengths(load_mask(each.mask, (100, 100)))
            kind = 1 + (each.category == "disc")
            annotations.append({"image_id": number, "category_id": kind, "segmentation": outline})
    categories = [{"id": 1, "name": "bar"}, {"id": 2, "name": "disc"}]
    (tmp_path / "x.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    found = read_real(tmp_path / "all", marking=Marking(tmp_path / "x.json"))
    for mine, other in zip(
        sorted(found.images, key=lambda each: each.sha256),
        sorted(read_real(real).images, key=lambda each: each.sha256),
        strict=True,
    ):
        assert (mine.sha256, mine.category) == (other.sha256, other.category)
        np.testing.assert_array_equal(load_mask(mine.mask, (100, 100)), load_mask(other.mask, (100, 100)))


def test_real_photographs_are_found_in_the_usual_folders(real: Path, tmp_path: Path) -> None:
    images = read_real(real).images
    assert {each.category for each in images} == {"bar", "disc", "normal"}
    assert len(images) == 32
    assert read_real(real / "defects").images == images
    shutil.copytree(real / "defects", tmp_path / "only")
    shutil.copytree(real / "masks", tmp_path / "masks")
    with pytest.raises(BadInputError, match="--normals"):
        read_real(tmp_path / "only")
    assert len(read_real(tmp_path / "only", real / "normals").images) == 32
    with pytest.raises(BadInputError, match="no normals in it; a test folder needs defects, masks and normals"):
        read_real(real / "defects", apart=True)  # those beside it are another's
    (tmp_path / "only/disc/0.png").write_bytes(b"damaged")
    (tmp_path / "only/disc/a.gif").write_bytes(b"x")
    (skipped,) = read_real(tmp_path / "only", real / "normals").skipped
    assert "a.gif" in read_real(tmp_path / "only", real / "normals").warnings[0]
    assert skipped.startswith(str(tmp_path / "only/disc/0.png"))


def test_near_duplicates_stay_on_one_side(real: Path, tmp_path: Path) -> None:
    twins = [copy_of(real / f"defects/disc/{i}.png", tmp_path / f"{i}.png", 15) for i in range(8)]
    images = [*read_real(real).images, *twins]
    for seed in range(4):
        parts = split(images, Synthetic(()), seed)
        sides = {each.path: side for side, part in enumerate((parts.train, parts.test)) for each in part}
        assert len(sides) == len(images)
        for i, twin in enumerate(twins):
            assert sides[twin.path] == sides[real / f"defects/disc/{i}.png"]
        for category in ("bar", "normal"):
            assert 0.3 < np.mean([each.category == category for each in parts.test]) * len(parts.test) / 11 < 0.6
    assert near_duplicates(twins, read_real(real).images) == [True] * 8
    assert not any(near_duplicates(twins, [LabeledImage(real / "defects/disc/9.png", "disc")]))


def test_photographs_of_parts_in_one_place_are_no_duplicates(tmp_path: Path) -> None:
    """All show the same disc; what differs is the surface."""
    yy, xx = np.indices((120, 120)) - 60
    images = []
    for i in range(12):
        grain = cv2.GaussianBlur(np.random.default_rng(i).normal(size=(120, 120)), (0, 0), 3) * 30
        pixels = np.where(np.hypot(yy, xx) < 40, 180, 30) + grain
        (tmp_path / f"{i}.png").write_bytes(encode_png(np.clip(pixels, 0, 255).astype(np.uint8)))
        images.append(LabeledImage(tmp_path / f"{i}.png", "normal" if i < 6 else "disc"))
    assert near_duplicates(images[:6], images[6:]) == [False] * 6
    twin = copy_of(tmp_path / "3.png", tmp_path / "twin.png", 10)
    assert near_duplicates([*images[4:], twin], images[:4]) == [False] * 8 + [True]


def test_a_category_keeps_one_photograph_to_train_on(real: Path) -> None:
    images = read_real(real).images
    used = frozenset(each.sha256 for each in images if each.category == "bar" and each.path.stem != "0")
    lone = [each for each in images if each.sha256 not in used]
    parts = split(lone, Synthetic(()), seed=0)
    assert [each.category for each in parts.train].count("bar") == 1


def test_what_went_into_the_dataset_is_trained_on(real: Path) -> None:
    images = read_real(real).images
    used = [each for each in images if int(each.path.stem) < 5]
    parts = split(images, Synthetic((), frozenset(each.sha256 for each in used)), seed=0)
    assert set(used) <= set(parts.train)
    with pytest.raises(UsageError, match="no real normals are left to test on"):
        split(images, Synthetic((), frozenset(each.sha256 for each in images)), seed=0)


@pytest.fixture
def dataset(real: Path, tmp_path: Path) -> Path:
    """One sample by a model on a normal, one cut out of a defect."""
    folder = tmp_path / "dataset"
    rows = []
    extras: list[dict[str, Any]] = [
        {"model": "m"},
        {"parameters": {"defects": [{"content": "x", "content_sha256": files.sha256(real / "defects/bar/1.png")}]}},
    ]
    for i, extra in enumerate(extras):
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(
                real / ("defects" if name == "images" else "masks") / f"bar/{i}.png", folder / name / f"{i}.png"
            )
        copy_of(real / f"defects/bar/{i}.png", folder / f"images/{i}.png")
        source = real / f"normals/{i}.png"
        rows.append(
            {
                "index": i, "image": f"images/{i}.png", "mask": f"masks/{i}.png", "category": "bar",
                "source": str(source), "source_sha256": files.sha256(source), "parameters": {}, **extra,
            }
        )  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dataset.json").write_text(json.dumps({"trained_on": [files.sha256(real / "defects/disc/3.png")]}))
    return folder


def test_a_manifest_tells_what_samples_were_made_of(dataset: Path, real: Path) -> None:
    synthetic = read_synthetic(dataset)
    assert (synthetic.traceable, synthetic.made_by_model) == (True, True)
    assert [len(each.made_of) for each in synthetic.images] == [1, 2]
    wanted = ("normals/0.png", "normals/1.png", "defects/bar/1.png", "defects/disc/3.png")
    assert synthetic.used == {files.sha256(real / name) for name in wanted}
    assert synthetic.trained_on_known
    manifest = dataset / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("content_sha256", "old"))
    assert not read_synthetic(dataset).traceable  # of an older version: a name alone says nothing elsewhere
    (dataset / "images/0.png").unlink()
    fewer = read_synthetic(dataset)
    assert (len(fewer.images), fewer.skipped) == (1, (f"{dataset}: 1 samples of its manifest are missing",))
    (dataset / "manifest.jsonl").write_text('{"image": 3}\n')
    with pytest.raises(BadInputError, match="line 1 cannot be read"):
        read_synthetic(dataset)


def test_a_manifest_says_the_same_from_any_folder(dataset: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of an older version, with files named relative to the folder where the command ran."""
    manifest, text = dataset / "manifest.jsonl", (dataset / "manifest.jsonl").read_text()
    for named in (os.path.relpath(real, dataset), os.path.relpath(real, dataset.parent)):
        manifest.write_text(text.replace(str(real), named))
        for folder in (dataset, dataset.parent, Path("/")):
            monkeypatch.chdir(folder)
            sources = [each.source for each in read_synthetic(dataset).images]
            assert [source and source.resolve() for source in sources] == [real / f"normals/{i}.png" for i in range(2)]


@pytest.mark.parametrize("path", ["../real/0.png", "/etc/passwd", "linked/0.png", "images/link.png", "a\\b.png"])
@pytest.mark.parametrize("key", ["image", "mask", "normal"])
def test_rows_that_lead_outside_are_refused(dataset: Path, tmp_path: Path, key: str, path: str) -> None:
    (dataset / "linked").symlink_to(tmp_path)
    (dataset / "images/link.png").symlink_to(dataset / "images/0.png")
    rows = [json.loads(line) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    rows[1][key] = path
    (dataset / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInputError, match="outside|not inside|is a link"):
        read_synthetic(dataset)


def test_the_half_line_of_a_killed_run_counts_as_missing(dataset: Path) -> None:
    file = dataset / "manifest.jsonl"
    file.write_bytes(file.read_bytes()[:-1])  # whole, without its end
    assert len(read_synthetic(dataset).images) == 2
    file.write_bytes(file.read_bytes()[:-5])
    synthetic = read_synthetic(dataset)
    assert (len(synthetic.images), synthetic.skipped) == (1, (f"{dataset}: 1 samples of its manifest are missing",))


@pytest.mark.parametrize("name", ["normals/0.png", "defects/bar/1.png", "defects/disc/3.png"])
def test_a_test_photograph_that_went_into_the_dataset_is_refused(dataset: Path, real: Path, name: str) -> None:
    synthetic = read_synthetic(dataset)
    apart = [LabeledImage(real / "defects/disc/7.png", "disc")]
    assert remove_test_leakage(synthetic, apart) == synthetic
    with pytest.raises(BadInputError, match=rf"test-set leakage: 1 of 2 test images were used .*\(first: .*{name}\)"):
        remove_test_leakage(synthetic, [*apart, LabeledImage(real / name, "x")])


def test_the_test_sets_own_twin_is_refused_and_single_twins_are_left_out(
    real: Path, held: Path, tmp_path: Path
) -> None:
    test = read_real(held).images
    same = Synthetic(tuple(each for each in test if each.category != "normal"))
    with pytest.raises(BadInputError, match="test-set leakage: 10 of 16 test images were used"):
        remove_test_leakage(same, test)
    twins = [copy_of(held / f"defects/disc/{i}.png", tmp_path / f"{i}.png", 5) for i in range(3)]
    with pytest.raises(BadInputError, match="3 of 3 synthetic images look like a test image"):
        remove_test_leakage(Synthetic(tuple(twins)), test)
    others = [LabeledImage(real / f"defects/bar/{i}.png", "bar") for i in range(4)]
    assert remove_test_leakage(Synthetic((*twins, *others)), test).images == tuple(others)


def test_large_photographs_are_seen_smaller_with_their_masks(tmp_path: Path) -> None:
    pixels, mask = np.full((300, 1024, 3), 100, np.uint8), np.zeros((300, 1024), np.uint8)
    cv2.line(mask, (100, 100), (900, 120), 255, 2)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))
    (tmp_path / "m.png").write_bytes(encode_png(mask))
    assert load_image(tmp_path / "a.png").shape == (3, 150, 512)
    small = load_mask(tmp_path / "m.png", (150, 512))
    assert small.shape == (150, 512)
    assert small[:, 60:440].any(axis=0).all()  # a thin line does not break
    assert not load_mask(None, (150, 512)).any()
    pinhole = np.zeros((300, 1024), np.bool_)
    pinhole[101, 301] = True
    assert resize_mask(pinhole, (75, 256)).sum() >= 1
    assert not resize_mask(np.zeros_like(pinhole), (75, 256)).any()


def test_two_of_16_bit_are_seen_by_one_tone() -> None:
    ground = np.random.default_rng(0).integers(20_000, 22_000, (64, 64), np.uint16)
    after = ground.copy()
    after[10:30, 10:30] = 60_000
    tones = value_range(DecodedImage(ground))
    a, b = to_model_range(DecodedImage(after), tones), to_model_range(DecodedImage(ground))
    assert np.array_equal(a[:, 40:], b[:, 40:])
    assert (a[:, 12:28, 12:28] == 1).all()


def test_networks_see_16_bit_images_by_one_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for i, category in enumerate(("normal", "hole")):
        pixels = rng.normal(1000, 8, (64, 64))
        pixels[20:30, 20:30] += 2000 * i
        (tmp_path / f"{i}.png").write_bytes(encode_png(pixels.astype(np.uint16)))
        images.append(LabeledImage(tmp_path / f"{i}.png", category))
    limits = common_range([each.path for each in images])
    assert limits is not None
    normal, hole = (each.x[0, 40:] for each in load_examples(images, ["hole"], limits=limits))
    assert normal.mean() == pytest.approx(hole.mean(), abs=0.01)
    assert common_range([tmp_path / "0.png"]) != limits
