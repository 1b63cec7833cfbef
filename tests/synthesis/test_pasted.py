import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen.dataset import Sample
from defectgen.dataset.manifest import Row
from defectgen.errors import BadInputError, UsageError
from defectgen.folders import read_defects, read_normals
from defectgen.imaging.images import DecodedImage, encode_png, read_image
from defectgen.imaging.patches import DefectPatch, Variation, resize, varied
from defectgen.imaging.windows import Box
from defectgen.synthesis.pasted import ComposeRequest, Placement, Region, compose, crop, lay, move, place
from defectgen.synthesis.stream import SampleSpec, mixture, mixture_name

Make = Callable[..., ComposeRequest]


def record(sample: Sample) -> dict[str, Any]:
    """The provenance of a sample, as in its manifest row."""
    return sample.provenance.model_dump(mode="json", exclude_unset=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark discs and bright bars on images of gray 100, and normals of several sizes, channels and depths."""
    root = tmp_path_factory.mktemp("composing")
    for name in ("disc", "bar"):
        (root / "defects" / name).mkdir(parents=True)
        (root / "masks" / name).mkdir(parents=True)
    (root / "normals").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        for name in ("disc", "bar"):
            surface, mask = rng.integers(96, 104, (80, 90), np.uint8), np.zeros((80, 90), np.uint8)
            if name == "disc":
                cv2.circle(mask, (40 + 5 * i, 40), 6 + i, 255, -1)
            else:
                mask[38:43, 20 : 50 + 5 * i] = 255
            surface[mask > 0] = 30 if name == "disc" else 180
            (root / f"defects/{name}/{i}.png").write_bytes(encode_png(surface))
            (root / f"masks/{name}/{i}.png").write_bytes(encode_png(mask))
    for i, (shape, low, high) in enumerate(
        [((70, 90), 140, 150), ((60, 120, 3), 120, 130), ((100, 64), 20_000, 30_000), ((20, 100), 60, 70)]
    ):
        pixels = rng.integers(low, high, shape, np.uint16)
        (root / f"normals/{i}.png").write_bytes(encode_png(pixels if high > 255 else pixels.astype(np.uint8)))
    return root


@pytest.fixture
def request_for(folder: Path) -> Make:
    def make(num: int = 8, placement: Placement | None = None, **changes: Any) -> ComposeRequest:
        normals = folder / changes.pop("normals", "normals")
        wanted = {"categories": ("bar", "disc"), "num": num, "normals": read_normals(normals), **changes}
        defects = read_defects(folder / "defects")
        return ComposeRequest(SampleSpec(**wanted), defects, "defects", placement or Placement())

    return make


def source(sample: Sample) -> DecodedImage:
    return read_image(Path(record(sample)["source"]))


def same(one: Sample, other: Sample) -> bool:
    return (
        record(one) == record(other) and np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
    )


def test_samples_differ_from_the_source_only_in_the_mask(request_for: Make) -> None:
    depths = set()
    for sample in compose(request_for(24)):
        before = source(sample).pixels
        assert (sample.image.shape, sample.image.dtype) == (before.shape, before.dtype)
        change = np.abs(sample.image.astype(float) - before)
        change = change.max(axis=2) if change.ndim == 3 else change
        spread = float(np.ptp(before)) if before.dtype == np.uint16 else 255.0
        assert np.median(change[sample.mask]) > 0.1 * spread
        near = cv2.dilate(sample.mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
        assert (change[~near] == 0).all()
        darker = sample.image[sample.mask].mean() < before[sample.mask].mean()
        assert darker == (sample.category == "disc")
        depths.add(before.dtype)
    assert len(depths) == 2


def test_a_defect_is_adapted_to_the_brightness_of_its_surroundings(request_for: Make) -> None:
    """30 on 100 is 70% darker. On 145 it is 70% darker, too: light multiplies what a surface reflects."""
    placement = Placement(scale=(1, 1), rotation=(0, 0))
    for sample in compose(request_for(12, placement, categories=("disc",))):
        before = source(sample)
        if before.depth == 8 and before.height > 60:
            inner = cv2.erode(sample.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            level = before.pixels[inner].astype(float).mean()
            assert level - sample.image[inner].mean() == pytest.approx(0.7 * level, abs=8)


@pytest.mark.parametrize(("level", "dark", "bright"), [(160, 100, 60), (80, 50, 60), (40, 25, 30)])
def test_the_highlights_of_a_defect_are_not_brighter_on_a_brighter_ground(level: int, dark: int, bright: int) -> None:
    """On 80 a defect is 50 darker in one half, 60 brighter in the other. Highlights get fainter on a darker ground."""
    mask = np.zeros((30, 40), np.bool_)
    mask[8:22, 8:32] = True
    values = np.full((30, 40, 1), 80.0)
    values[8:22, 8:20], values[8:22, 20:32] = 30, 140
    around = cv2.dilate(mask.view(np.uint8), np.ones((11, 11))) > 0
    patch = DefectPatch((values / 127.5 - 1).astype(np.float32), around, mask)
    surface = np.full((60, 80), level, np.uint8)
    made, _ = lay(DecodedImage(surface), surface, patch, (20, 15), "improved")
    change = made[15:45, 20:60].astype(float) - level
    assert change[10:20, 10:18].mean() == pytest.approx(-dark, rel=0.15)
    assert change[10:20, 22:30].mean() == pytest.approx(bright, rel=0.15)


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Half discs at the left edge of images with upright streaks, and upright bars in their darker half, the lower."""
    rng = np.random.default_rng(1)
    for name in ("chip", "bar"):
        (tmp_path / "defects" / name).mkdir(parents=True)
        (tmp_path / "masks" / name).mkdir(parents=True)
    (tmp_path / "normals").mkdir()

    def surface() -> NDArray[np.uint8]:
        streaks = 130 + rng.normal(0, 12, (1, 90)) + rng.normal(0, 1, (120, 90))
        streaks[60:] -= 50
        return np.clip(streaks, 0, 255).astype(np.uint8)

    for i in range(6):
        for name in ("chip", "bar"):
            pixels, mask = surface(), np.zeros((120, 90), np.uint8)
            if name == "chip":
                cv2.circle(mask, (0, 30 + 4 * i), 8, 255, -1)
            else:
                cv2.line(mask, (20 + 9 * i, 80 + 2 * i), (20 + 9 * i + i % 3 - 1, 100 + 2 * i), 255, 3)
            pixels[mask > 0] = 20
            (tmp_path / f"defects/{name}/{i}.png").write_bytes(encode_png(pixels))
            (tmp_path / f"masks/{name}/{i}.png").write_bytes(encode_png(mask))
        (tmp_path / f"normals/{i}.png").write_bytes(encode_png(surface()))
    return tmp_path


@pytest.fixture
def like_real(chips: Path) -> Make:
    def make(num: int = 24, placement: Placement | None = None, **changes: Any) -> ComposeRequest:
        wanted = replace(SampleSpec(("chip", "bar"), num, read_normals(chips / "normals")), **changes)
        return ComposeRequest(wanted, read_defects(chips / "defects"), "d", placement or Placement())

    return make


def test_defects_lie_where_real_ones_do(like_real: Make) -> None:
    """Chips at the left edge, where they end; bars in the dark lower half, upright as the streaks are."""
    samples = compose(like_real())
    for sample in samples:
        rows, columns = np.nonzero(sample.mask)
        if sample.category == "chip":
            assert sample.mask[:, 0].sum() > 8
            assert columns.max() < 20
            assert record(sample)["parameters"]["defects"][0]["degrees"] == 0
        else:
            assert columns.min() > 0
            assert np.ptp(rows) > 2.5 * np.ptp(columns)
        assert record(sample)["placement"]["place"] == "like-real"
    low = [np.nonzero(each.mask)[0].mean() > 55 for each in compose(like_real(40, categories=("bar",)))]
    assert np.mean(low) > 0.85
    assert samples.metadata["places"]["chip"]["at_edges"] == {"left": 1.0}
    assert samples.metadata["places"]["bar"]["learned"] == ["across", "down", "depth", "brightness", "texture"]


def test_anywhere_and_regions_overrule_where_real_ones_lie(like_real: Make) -> None:
    anywhere = list(compose(like_real(40, Placement(place="anywhere"))))
    assert np.mean([each.mask[:, 0].any() for each in anywhere if each.category == "chip"]) < 0.3
    assert np.mean([np.nonzero(each.mask)[0].mean() < 55 for each in anywhere if each.category == "bar"]) > 0.2
    box = Region(box=Box(40, 10, 30, 40), name="40,10,30,40")
    for sample in compose(like_real(12, Placement(region=box))):
        rows, columns = np.nonzero(sample.mask)
        assert columns.min() >= 40
        assert columns.max() < 70
        assert rows.max() < 50


def test_places_are_learned_from_some_of_very_many(like_real: Make, chips: Path) -> None:
    """600 pores on one image: 64 or fewer are studied, all over the image."""
    mask = np.zeros((240, 400), np.uint8)
    mask[8::12, 8::13] = 255
    (chips / "defects/pore").mkdir()
    (chips / "masks/pore").mkdir()
    (chips / "defects/pore/0.png").write_bytes(encode_png(np.where(mask > 0, 30, 130).astype(np.uint8)))
    (chips / "masks/pore/0.png").write_bytes(encode_png(mask))
    places = compose(like_real(1, categories=("pore",))).metadata["places"]["pore"]
    assert 40 < places["real_defects"] <= 64
    assert np.ptp(np.array(places["boxes"])[:, :2], axis=0).min() > 0.8


def test_a_manifest_row_has_what_replays_a_variation(like_real: Make) -> None:
    for sample in compose(like_real(4)):
        (defect,) = record(sample)["parameters"]["defects"]
        again = Variation(**defect["variation"])
        assert isinstance(again.key, int)
        assert varied(disc(), again, 0.0).defect_mask.any()


def test_some_are_two_end_to_end_and_the_row_says_which(like_real: Make, chips: Path) -> None:
    """Longer bars than there are; chips, which reach an edge, are never joined; nothing is, without variation."""
    found = list(compose(like_real(80)))
    rows = [record(each)["parameters"]["defects"][0] for each in found]
    second = {i: row["joined"] for i, row in enumerate(rows) if row.get("joined")}
    assert 1 <= len(second) <= 12
    for i, part in second.items():
        assert found[i].category == "bar"
        assert Path(part["content"]).parent == chips / "defects/bar"
        assert set(part["box"]) == {"x", "y", "width", "height"}
        row = Row(index=i, image="i.png", mask="m.png", category="bar", **record(found[i]))
        assert {part["content_sha256"], rows[i]["content_sha256"]} < row.used_photographs
    lengths = [np.ptp(np.nonzero(each.mask)[0]) / row["scale"] for each, row in zip(found, rows, strict=True)]
    alone = [length for i, length in enumerate(lengths) if found[i].category == "bar" and i not in second]
    assert np.mean([lengths[i] for i in second]) > 1.4 * np.mean(alone)
    plain = compose(like_real(80, Placement(vary=0)))
    assert not any(record(each)["parameters"]["defects"][0].get("joined") for each in plain)


def test_numbers_overrule_turns_and_scales(like_real: Make) -> None:
    for sample in compose(like_real(8, Placement(scale=(0.7, 0.7), rotation=(90, 90)))):
        (defect,) = record(sample)["parameters"]["defects"]
        assert (defect["scale"], defect["degrees"]) == (0.7, 90)


@pytest.mark.parametrize("changes", [{"num": 11}, {"workers": 4}, {"skip": frozenset({0, 1, 2, 4})}])
def test_sample_k_is_the_same_in_any_run(request_for: Make, changes: dict[str, Any]) -> None:
    one = {sample.index: sample for sample in compose(request_for(8))}
    other = {sample.index: sample for sample in compose(request_for(**{"num": 8, **changes}))}
    assert set(other) == set(range(changes.get("num", 8))) - changes.get("skip", frozenset())
    assert all(same(one[index], sample) for index, sample in other.items() if index in one)
    assert not same(one[5], next(s for s in compose(request_for(8, seed=1)) if s.index == 5))


def test_random_choices_are_in_the_provenance(request_for: Make, folder: Path) -> None:
    placement = Placement(scale=(0.5, 0.7), rotation=(-20, 20), per_image=(2, 3))
    for sample in compose(request_for(10, placement, normals="normals")):
        assert record(sample)["placement"]["per_image"] == [2, 3]
        assert record(sample)["method"] == "cut-outs"
        defects = record(sample)["parameters"]["defects"]
        assert 1 <= len(defects) <= 3
        for each in defects:
            assert 0.5 <= each["scale"] <= 0.7
            assert -20 <= each["degrees"] <= 20
            assert Path(each["content"]).parent == folder / "defects" / sample.category


def test_several_defects_do_not_overlap(request_for: Make) -> None:
    counts = []
    for sample in compose(request_for(12, Placement(per_image=(3, 3), scale=(0.5, 0.6)), categories=("disc",))):
        pieces, _ = cv2.connectedComponents(sample.mask.astype(np.uint8))
        counts.append((pieces - 1, len(record(sample)["parameters"]["defects"])))
    assert all(pieces == placed for pieces, placed in counts)
    assert max(placed for _, placed in counts) == 3


def test_defects_stay_in_the_region(request_for: Make) -> None:
    box = Region(box=Box(10, 5, 30, 12), name="10,5,30,12")
    inside = 0
    for sample in compose(request_for(12, Placement(region=box), categories=("disc",))):
        rows, columns = np.nonzero(sample.mask)
        assert columns.min() >= 10
        assert columns.max() < 40
        assert rows.min() >= 5
        assert rows.max() < 17
        changed = np.nonzero((sample.image != source(sample).pixels).reshape(*sample.mask.shape, -1).any(axis=2))
        assert changed[0].max() < 17
        inside += 1
    assert inside > 8


def test_regions_that_do_not_fit_are_rejected(request_for: Make) -> None:
    outside = Region(box=Box(500, 5, 30, 12), name="500,5,30,12")
    with pytest.raises(BadInputError, match="--region 500,5,30,12: lies outside a normal of"):
        list(compose(request_for(2, Placement(region=outside))))
    other = Region(mask=np.ones((5, 5), np.bool_), name="roi.png")
    with pytest.raises(BadInputError, match=r"--region roi\.png: is 5x5, but a normal is"):
        list(compose(request_for(2, Placement(region=other))))


def test_defects_lie_on_the_object_and_not_on_the_backdrop(request_for: Make, folder: Path) -> None:
    rng = np.random.default_rng(1)
    (folder / "parts").mkdir(exist_ok=True)
    part = cv2.circle(np.zeros((160, 200), np.uint8), (120, 80), 55, 1, -1) > 0
    pixels = np.where(part, rng.integers(120, 140, part.shape), rng.integers(10, 20, part.shape)).astype(np.uint8)
    (folder / "parts/0.png").write_bytes(encode_png(pixels))
    for sample in compose(request_for(12, Placement(region=Region(name="object")), normals="parts")):
        assert part[sample.mask].mean() > 0.97


def test_invisible_defects_fail(request_for: Make, folder: Path) -> None:
    (folder / "black").mkdir(exist_ok=True)
    (folder / "black/0.png").write_bytes(encode_png(np.zeros((60, 60), np.uint8)))
    samples = compose(request_for(3, categories=("disc",), normals="black"))
    assert list(samples) == []  # nothing is darker than black
    assert samples.failed == [0, 1, 2]


def test_a_defect_that_covers_the_whole_image_fails(request_for: Make, folder: Path) -> None:
    (folder / "tiny").mkdir(exist_ok=True)
    (folder / "tiny/0.png").write_bytes(encode_png(np.full((5, 5), 140, np.uint8)))
    samples = compose(request_for(2, Placement(scale=(4, 4)), categories=("disc",), normals="tiny"))
    assert all(not sample.mask.all() for sample in samples)


def test_unknown_category_error_lists_the_available_ones(request_for: Make) -> None:
    with pytest.raises(UsageError, match="--category rust: choose from bar, disc"):
        compose(request_for(categories=("rust",)))


def disc(radius: int = 10) -> DefectPatch:
    side = 2 * radius + 12
    defect_mask = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), radius, 1, -1)
    blend_mask = cv2.dilate(defect_mask, np.ones((9, 9), np.uint8)) > 0
    pixels = np.where(defect_mask[..., None] > 0, np.float32(-0.8), np.float32(0.0)).astype(np.float32)
    return DefectPatch(pixels, blend_mask, defect_mask > 0)


@pytest.mark.parametrize(("scale", "degrees"), [(0.5, 0), (1, 37), (2.5, 190)])
def test_moving_keeps_shape_and_values(scale: float, degrees: float) -> None:
    moved = move(disc(), scale, degrees)
    assert moved.defect_mask.sum() == pytest.approx(disc().defect_mask.sum() * scale**2, rel=0.1)
    rows, columns = np.nonzero(moved.defect_mask)
    middle = (np.array(moved.defect_mask.shape) - 1) / 2
    np.testing.assert_allclose((rows.mean(), columns.mean()), middle, atol=1.5)
    assert np.median(moved.pixels[moved.defect_mask]) == pytest.approx(-0.8, abs=0.02)
    edge = np.concatenate([moved.blend_mask[0], moved.blend_mask[-1], moved.blend_mask[:, 0], moved.blend_mask[:, -1]])
    assert not edge.any()


def test_rotation_is_counter_clockwise() -> None:
    defect_mask = np.zeros((21, 21), np.bool_)
    defect_mask[10, 10:] = True  # a hand to the right
    patch = DefectPatch(np.zeros((21, 21, 1), np.float32), defect_mask, defect_mask)
    rows, columns = np.nonzero(move(patch, 1.0, 90).defect_mask)
    assert np.ptp(rows) > 8
    assert np.ptp(columns) <= 1
    assert rows.mean() < 12  # now upwards


def test_patches_lie_inside_the_image_if_they_fit() -> None:
    rng = np.random.default_rng(0)
    patch = disc()
    for _ in range(50):
        x, y = place(rng, patch, (60, 90), None) or (0, 0)
        rows, columns = np.nonzero(patch.blend_mask)
        assert columns.min() + x >= 0
        assert columns.max() + x < 90
        assert rows.min() + y >= 0
        assert rows.max() + y < 60
    assert place(rng, patch, (60, 90), np.zeros((60, 90), np.bool_)) is None
    for _ in range(20):  # larger than the image: it covers all of it
        x, y = place(rng, disc(40), (30, 30), None) or (0, 0)
        assert x < 0
        assert y < 0


@pytest.mark.parametrize("shape", [(60, 80), (60, 80, 2), (60, 80, 3), (60, 80, 4)])
def test_lay_returns_the_mask_of_the_visible_defect(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    pixels: NDArray[np.uint8] = rng.integers(120, 130, shape, np.uint8)
    patch, at = disc(), (30, 20)
    image, shown = lay(DecodedImage(pixels), pixels, patch, at, "improved")
    expected = np.zeros((60, 80), np.bool_)
    expected[20:52, 30:62] = patch.defect_mask
    assert (shown & expected).sum() / (shown | expected).sum() > 0.85
    if shape[-1] in (2, 4):
        np.testing.assert_array_equal(image[..., -1], pixels[..., -1])
    _, clipped = lay(DecodedImage(pixels), pixels, patch, (70, -8), "improved")
    assert 0 < clipped.sum() < shown.sum()


def test_a_coarse_patch_gets_the_grain_of_its_surroundings() -> None:
    rng = np.random.default_rng(0)
    pixels: NDArray[np.uint8] = rng.integers(100, 140, (120, 160), np.uint8)
    grain = []
    for patch in (disc(6), resize(disc(6), 6.0)):
        image, _ = lay(DecodedImage(pixels), pixels, move(patch, 6.0 / patch.coarseness, 0), (20, 5), "improved")
        grain.append(image[70:85, 85:100].astype(float).std())
    assert grain[0] == pytest.approx(grain[1], rel=0.05)  # both are enlarged
    assert grain[0] == pytest.approx(pixels.std(), rel=0.15)


@pytest.mark.parametrize("degrees", [7, 20, 45])
def test_turning_keeps_what_is_fine(degrees: float) -> None:
    """Details of a pixel and a half stay as strong as they were, within a twentieth."""
    fine = np.clip(noise(np.random.default_rng(0), 80, 0.25, 0.8), -1, 1)[..., None]
    whole = np.ones((80, 80), np.bool_)
    turned = move(DefectPatch(fine, whole, whole), 1.0, degrees).pixels
    (row, column), middle = (length // 2 for length in turned.shape[:2]), fine[20:60, 20:60]
    assert turned[row - 20 : row + 20, column - 20 : column + 20].std() == pytest.approx(middle.std(), rel=0.05)


def noise(rng: np.random.Generator, side: int, strength: float, width: float) -> NDArray[np.float32]:
    rough = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), width)
    return np.asarray(rough * strength / rough.std(), np.float32)


def grainy_disc(rng: np.random.Generator, strength: float, width: float) -> DefectPatch:
    """A disc 40 levels darker than its surroundings of 120."""
    mask = cv2.circle(np.zeros((160, 160), np.uint8), (80, 80), 60, 1, -1) > 0
    pixels = 120 + noise(rng, 160, strength, width) - 40 * mask
    blended = cv2.dilate(mask.astype(np.uint8), np.ones((11, 11))) > 0
    return DefectPatch((pixels[..., None] / 127.5 - 1).astype(np.float32), blended, mask)


@pytest.mark.parametrize(
    ("own", "ground", "within"),
    [
        ((3.0, 0.7), (12.0, 0.7), 0.15), ((9.0, 0.7), (3.0, 0.7), 0.15), ((6.0, 0.7), (6.0, 0.7), 0.15),
        ((6.0, 1.3), (6.0, 0.5), 0.15), ((3.0, 1.3), (12.0, 0.5), 0.15),
        ((6.0, 0.5), (6.0, 1.3), 0.25), ((9.0, 0.5), (3.0, 1.3), 0.25), ((3.0, 0.5), (9.0, 1.3), 0.25),
    ],
)  # fmt: skip
def test_a_patch_has_the_grain_of_its_ground(
    own: tuple[float, float], ground: tuple[float, float], within: float
) -> None:
    """Inside a defect and outside, the noise has the same variance within 15%, and nearly the same spectrum.

    On a ground that is out of focus, within 25% in the finest bands, where it has next to none.
    """
    rng = np.random.default_rng(2)
    surface = np.clip(120 + noise(rng, 300, *ground), 0, 255).astype(np.uint8)
    after, _ = lay(DecodedImage(surface), surface, grainy_disc(rng, *own), (70, 70), "improved")
    inside, outside = after[110:190, 110:190].astype(np.float32), surface[:80, :80].astype(np.float32)
    bands = []
    for each in (inside, outside):
        blurred = [each, *(cv2.GaussianBlur(each, (0, 0), sigma) for sigma in (0.7, 1.2, 2.0))]
        bands.append([float((a - b)[8:-8, 8:-8].var()) for a, b in pairwise(blurred)])
    assert inside.mean() == pytest.approx(80, abs=2)
    assert inside[8:-8, 8:-8].var() == pytest.approx(outside.var(), rel=0.15)
    assert np.array(bands[0]) / bands[1] == pytest.approx(1, abs=within)


def test_a_defect_is_as_sharp_as_its_ground() -> None:
    """Its edge is as steep as the same edge photographed with the ground; on a sharp ground, it stays as it is."""
    for own, ground in ((0.5, 1.6), (0.5, 0.5)):
        rng = np.random.default_rng(4)
        surface = np.clip(120 + noise(rng, 300, 2, ground), 0, 255).astype(np.uint8)
        after, _ = lay(DecodedImage(surface), surface, grainy_disc(rng, 2, own), (70, 70), "improved")
        sharp = cv2.circle(np.full((300, 300), 120, np.float32), (150, 150), 60, 80, -1)
        wanted = sharp if ground == own else cv2.GaussianBlur(sharp, (0, 0), math.sqrt(ground**2 - own**2))
        steepness = []
        for each in (after.astype(np.float32), np.asarray(wanted)):
            across = each[145:156, 200:221].mean(axis=0)
            steepness.append(float(np.abs(np.diff(across)).max()))
        assert steepness[0] == pytest.approx(steepness[1], rel=0.35)  # unblurred, it would be 4 times as steep


def test_grain_of_another_direction_is_left_behind() -> None:
    """Around a disc that was turned by 90 degrees, the lines run as on its new ground, not as on its own."""
    rng = np.random.default_rng(5)
    lines = np.repeat(rng.normal(0, 8, (200, 1)), 200, axis=1)
    surface = np.clip(120 + lines, 0, 255).astype(np.uint8)
    mask = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 12, 1, -1) > 0
    blended = cv2.dilate(mask.astype(np.uint8), np.ones((11, 11))) > 0
    values = (np.where(mask, 40, 120 + lines[:60, :60].T) / 127.5 - 1).astype(np.float32)
    after, _ = lay(DecodedImage(surface), surface, DefectPatch(values[..., None], blended, mask), (70, 70), "improved")
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    rim = ((away > 3) & (away <= 5))[:, 1:]
    across_lines = np.diff(after[70:130, 70:130].astype(float), axis=1)[rim]
    assert across_lines.std() < 2  # of 11 with the lines of the patch


def test_a_lit_edge_stays_whole_and_a_pit_shows_no_grain() -> None:
    """Grain is taken from a patch that comes to a ground without any, and added to one that comes to a rough ground."""
    y, x = np.indices((80, 80)) - 40.0
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    ring = (25 + 10 * np.cos(angle)) * np.exp(-(((radius - 20) / 1.5) ** 2))
    pixels = 120 + ring - 108 * (radius < 18) + noise(np.random.default_rng(6), 80, 6, 1.0)
    patch = DefectPatch((pixels[..., None] / 127.5 - 1).astype(np.float32), radius < 26, radius < 21)
    plain = np.full((140, 140), 120, np.uint8)
    after, _ = lay(DecodedImage(plain), plain, patch, (30, 30), "improved")
    left = after[30:110, 30:110] - 120.0
    for sector in range(12):  # no gaps, where the ring was taken for grain
        here = (np.abs(radius - 20) < 1) & ((6 * (angle / np.pi + 1)).astype(int) % 12 == sector)
        assert left[here].mean() > 0.3 * ring[here].mean()
    rough = np.clip(120 + noise(np.random.default_rng(7), 140, 24, 1.0), 0, 255).astype(np.uint8)
    after, _ = lay(DecodedImage(rough), rough, patch, (30, 30), "improved")
    assert after[30:110, 30:110][radius < 14].std() < 10


def test_edges_of_a_defect_stay_where_noise_is_taken() -> None:
    after, shown = lay(
        DecodedImage(np.full((60, 100, 3), 120, np.uint8)), np.full((60, 100, 3), 120, np.uint8), line(60), (20, 20),
        "improved",
    )  # fmt: skip
    assert after[shown].mean(axis=0) == pytest.approx([120 - 90, 120 - 60, 120 - 30], abs=6)
    assert after[23:26, 30:70].std() < 6  # of 12


def test_mixtures() -> None:
    assert mixture("crack") == {"crack": 1.0}
    assert mixture("crack:1, hole:3") == {"crack": 0.25, "hole": 0.75}
    assert mixture_name({"crack": 0.25, "hole": 0.75}) == "crack0.25+hole0.75"
    for text in ("crack:x", "crack:0.3,hole", "a:-1,b:2", ":1,a:2"):
        with pytest.raises(UsageError, match="--category"):
            mixture(text)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a+b", {"a+b": 1.0}),
        ("a+b+c", {"a+b": 1.0, "c": 1.0}),
        ("c+a+b", {"c": 1.0, "a+b": 1.0}),
        ("b+a", {"b": 1.0, "a": 1.0}),
        ("x:1", {"x:1": 1.0}),
        ("x:1+c", {"x:1": 1.0, "c": 1.0}),
        ("x:1:1,c:3", {"x:1": 0.25, "c": 0.75}),
        ("p,q:1, a+b:3", {"p,q": 0.25, "a+b": 0.75}),
        ("d+e", {"d": 1.0, "e": 1.0}),
    ],
)
def test_names_with_the_signs_of_mixtures_win(text: str, weights: dict[str, float]) -> None:
    assert mixture(text, ("a", "b", "c", "a+b", "x:1", "p,q")) == weights


def test_cut_outs_need_no_pytorch() -> None:
    program = "import sys, defectgen.synthesis.pasted, defectgen.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def line(contrast: float = 40.0, channels: int = 3) -> DefectPatch:
    """A line darker than the noise around it by `contrast` levels, more in red."""
    rng = np.random.default_rng(0)
    defect_mask = np.zeros((21, 60), np.bool_)
    defect_mask[9:12, 5:55] = True
    levels = rng.normal(120, 12, (21, 60, channels))
    levels[defect_mask] -= contrast * np.linspace(1.5, 0.5, channels)
    return DefectPatch(
        (levels / 127.5 - 1).astype(np.float32),
        cv2.dilate(defect_mask.view(np.uint8), np.ones((11, 11))) > 0,
        defect_mask,
    )


def test_a_crop_is_a_part_of_the_longer_side_that_contains_the_defect() -> None:
    whole = line()
    for seed in range(5):
        part = crop(np.random.default_rng(seed), whole, 0.4)
        assert part.blend_mask.shape == part.defect_mask.shape == part.pixels.shape[:2] == (21, 24)
        assert part.defect_mask.any()
        assert (part.blend_mask & ~part.defect_mask).any()  # some of its own background remains
    assert np.array_equal(crop(np.random.default_rng(0), whole, 1.0).defect_mask, whole.defect_mask)


def test_colors_are_kept_matched_or_made_gray() -> None:
    """The background is 1.25 times as bright as the line's own, and so is the line's contrast. It has half the noise,
    so the contrast of a matched line is half as strong."""
    background = np.clip(np.random.default_rng(1).normal(150, 6, (60, 100, 3)), 0, 255).astype(np.uint8)
    patch, photograph = line(), DecodedImage(background)
    changes = {}
    for colour in ("keep", "match", "gray"):
        after, shown = lay(photograph, background, patch, (20, 20), "improved", colour)
        changes[colour] = (after.astype(float) - background)[shown].mean(axis=0)
        assert shown.any()
    assert changes["keep"] == pytest.approx([-75, -50, -25], abs=4)
    assert changes["match"] == pytest.approx([-30, -20, -10], abs=4)
    assert changes["gray"] == pytest.approx([-50, -50, -50], abs=4)


@pytest.mark.parametrize(("level", "strength"), [(1000, 2000), (1000, 300), (30_000, 9000)])
def test_a_16_bit_defect_keeps_its_levels(tmp_path: Path, level: int, strength: int) -> None:
    """The images' own ranges are their noise, or their noise and the defect."""
    rng = np.random.default_rng(0)
    mask = np.zeros((160, 160), np.uint8)
    cv2.ellipse(mask, (80, 80), (14, 10), 30, 0, 360, 255, -1)
    for i in range(3):
        for folder, extra in (("normals", 0), ("defects/void", strength)):
            pixels = rng.normal(level, 8, (160, 160)) + extra * (mask > 0)
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{folder}/{i}.png").write_bytes(encode_png(pixels.astype(np.uint16)))
        (tmp_path / "masks/void").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"masks/void/{i}.png").write_bytes(encode_png(mask))
    wanted = SampleSpec(categories=("void",), num=4, normals=read_normals(tmp_path / "normals"))
    request = ComposeRequest(wanted, read_defects(tmp_path / "defects"), "defects", Placement(vary=0.0, scale=(1, 1)))
    for sample in compose(request):
        change = sample.image.astype(float) - source(sample).pixels
        inner = cv2.erode(sample.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert np.median(change[inner]) == pytest.approx(strength, rel=0.15)  # turning mixes some of it into the rim


def test_in_place_of_rejected_samples_come_others_of_their_category(request_for: Make) -> None:
    """Those that a larger dataset would have, so that each depends on its seed and number alone."""
    spec = request_for(6).wanted
    rejected = frozenset({1, 2, 6})
    assert replace(spec, rejected=rejected).indices == [0, 3, 4, 5, 7, 8]
    assert replace(spec, rejected=rejected, skip=frozenset({0, 3, 4, 5, 7})).indices == [8]
    assert replace(spec, rejected=frozenset({40})).indices == list(range(6))  # of a larger dataset
    larger = {made.index: made for made in compose(request_for(12))}
    others = compose(replace(request_for(6), wanted=replace(spec, rejected=rejected)))
    assert len(others) == 6
    for made in others:
        np.testing.assert_array_equal(made.image, larger[made.index].image)
        assert made.category == larger[made.index].category
    categories = sorted(larger[index].category for index in (0, 3, 4, 5, 7, 8))
    assert categories == sorted(larger[index].category for index in range(6))
