"""Training data."""

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defectgen.errors import BadInputError, UsageError
from defectgen.folders import NORMAL, Catalog, ProductFolders, SourceImage, read_catalog, read_defects
from defectgen.imaging import control_maps
from defectgen.imaging.control_maps import tones_of
from defectgen.imaging.images import DecodedImage, encode_png, read_mask
from defectgen.imaging.places import from_text, to_text
from defectgen.imaging.windows import (
    Box,
    FloatArray,
    Window,
)
from defectgen.methods import info
from defectgen.nn.tones import tone_loss
from defectgen.training.data import (
    LevelPatches,
    TrainingLabels,
    TrainingMasks,
    TrainingPairs,
    TrainingPatches,
    TrainingRequests,
    TrainingSample,
    TrainingWindows,
    _View,
    _warped,
    find_scale,
    hold_out,
    make_task,
    training_data,
)


def test_every_tenth_normal_of_each_product_is_held_out() -> None:
    samples = tuple(
        SourceImage(path=Path(f"{product}/{category}{i}"), mask=None, category=category, product=product,
               height=9, width=9, channels=1, depth=8)
        for product in ("a", "b") for category in ("normal", "d") for i in range(27)
    )  # fmt: skip
    rest, held = hold_out(Catalog(images=samples, skipped=()))
    assert held == [Path(f"{product}/normal{i}") for product in ("a", "b") for i in (4, 14, 24)]
    assert len(rest.images) == len(samples) - 6
    assert not set(held) & {sample.path for sample in rest.images}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def example_image(height: int = 40, width: int = 60, channels: int = 1, depth: int = 8) -> DecodedImage:
    shape = (height, width) if channels == 1 else (height, width, channels)
    dtype: Any = np.uint8 if depth == 8 else np.uint16
    return DecodedImage(rng().integers(0, np.iinfo(dtype).max, shape, dtype))


def sample(width: int, height: int, *, masked: bool) -> SourceImage:
    return SourceImage(
        path=Path("a.png"), mask=Path("m.png") if masked else None, category="crack", product="p",
        height=height, width=width, channels=1, depth=8,
    )  # fmt: skip


class TestFindScale:
    def test_small_defects_are_shown_at_native_resolution(self) -> None:
        assert find_scale([sample(400, 300, masked=True)], [[Box(0, 0, 30, 12)]], 64) == 1.0

    def test_large_defects_scale_the_image_down_as_far_as_needed(self) -> None:
        scale = find_scale([sample(4000, 3000, masked=True)], [[Box(0, 0, 200, 12)]], 64)
        assert scale == pytest.approx(64 / 230)
        assert 200 * scale < 64

    def test_no_window_is_larger_than_the_image(self) -> None:
        assert find_scale([sample(200, 100, masked=True)], [[Box(0, 0, 200, 90)]], 64) == pytest.approx(64 / 200)

    def test_without_masks_the_window_spans_the_image(self) -> None:
        assert find_scale([sample(640, 480, masked=False)], [[]], 64) == pytest.approx(0.1)

    def test_an_image_without_a_mask_has_no_say_where_others_have_one(self) -> None:
        images = [sample(640, 480, masked=False), sample(640, 480, masked=True), sample(640, 480, masked=False)]
        assert find_scale(images, [[], [Box(0, 0, 100, 12)], []], 64) == pytest.approx(64 / 115)


class TestTrainingWindows:
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Catalog:
        """Normals are dark; cracks carry a bright square of 10 pixels, dents one of 100."""
        samples = []
        for category, side, level in ((NORMAL, 0, 0), ("crack", 10, 200), ("dent", 100, 250)):
            for i in range(2):
                pixels = np.full((200, 300), 20, np.uint8)
                mask = np.zeros((200, 300), np.uint8)
                mask[50 : 50 + side, 60 + 30 * i : 60 + 30 * i + side] = 255
                pixels[mask > 0] = level
                path, mask_path = tmp_path / f"{category}{i}.png", tmp_path / f"{category}{i}_mask.png"
                path.write_bytes(encode_png(pixels))
                mask_path.write_bytes(encode_png(mask))
                samples.append(
                    SourceImage(
                        path=path,
                        mask=mask_path if side else None,
                        category=category,
                        product="p",
                        height=200,
                        width=300,
                        channels=1,
                        depth=8,
                    )
                )
        return Catalog(images=tuple(samples), skipped=())

    @pytest.fixture
    def windows(self, catalog: Catalog) -> TrainingWindows:
        return TrainingWindows(catalog, 64, ["p"], [NORMAL, "crack", "dent"])

    def test_each_category_has_its_own_scale(self, windows: TrainingWindows) -> None:
        assert windows.scales == {"p": {"crack": 1.0, "dent": pytest.approx(64 / 115)}}

    def test_a_long_thin_defect_stays_thick_enough(self, catalog: Catalog) -> None:
        """A whole line of 280 by 5 pixels would be one pixel thick in the window: windows show parts of it."""
        mask = np.zeros((200, 300), np.uint8)
        mask[90:95, 10:290] = 255
        for sample in catalog.images:
            if sample.category == "crack" and isinstance(sample.mask, Path):
                sample.mask.write_bytes(encode_png(mask))
        scale = TrainingWindows(catalog, 64, ["p"], [NORMAL, "crack", "dent"]).scales["p"]["crack"]
        assert scale == pytest.approx(4 / 6, abs=0.02)  # four pixels, of six as its depth counts them
        assert scale > 64 / 280

    def test_the_defect_is_inside_its_window_at_its_scale(self, windows: TrainingWindows) -> None:
        shown = {"crack": 10.0**2, "dent": (100 * 64 / 115) ** 2}
        for seed in range(60):
            reference = windows.row(rng(seed)).reference
            category = windows.domains[reference.y]
            bright = (reference.x > 0.3).sum()
            assert bright == pytest.approx(shown.get(category, 0.0), rel=0.08)

    def test_with_exposure_a_reference_is_as_bright_as_its_source(self, catalog: Catalog) -> None:
        """The normals are half as bright as the defect images: so are references, their defects and their twins."""
        bright = []
        for image in catalog.images:
            if image.category == "crack":
                pixels = np.full((200, 300), 40, np.uint8)
                assert isinstance(image.mask, Path)
                pixels[read_mask(image.mask)] = 10
                image.path.write_bytes(encode_png(pixels))
                bright.append(image)
        normals = [image for image in catalog.images if image.category == NORMAL]
        given = Catalog(images=(*normals, *bright), skipped=())
        plain, exposed = (
            TrainingPairs(given, 64, ["p"], [NORMAL, "crack"], exposure=exposure) for exposure in (False, True)
        )
        for seed in range(10):
            before, after = plain.row(rng(seed)), exposed.row(rng(seed))
            np.testing.assert_array_equal(before.source.x, after.source.x)
            assert (before.source.x + 1) * 127.5 == pytest.approx(20, abs=0.1)
            assert np.median(before.reference.x + 1) * 127.5 == pytest.approx(40, abs=0.1)
            for name in ("x", "twin"):
                was, now = (getattr(row.reference, name) for row in (before, after))
                np.testing.assert_allclose(now + 1, (was + 1) / 2, atol=1e-5)

    def test_a_window_knows_whether_its_defect_goes_on_beyond_it(self, windows: TrainingWindows) -> None:
        for seed in range(60):
            reference = windows.row(rng(seed)).reference
            assert reference.a is not None
            shown = reference.a.max(axis=0)
            at_edge = max(shown[0].max(), shown[-1].max(), shown[:, 0].max(), shown[:, -1].max())
            assert reference.cut == bool(at_edge)  # no defect of these images reaches the image's edge

    def test_targets_are_balanced_and_sources_mostly_normal(self, windows: TrainingWindows) -> None:
        rows = [windows.row(rng(seed)) for seed in range(300)]
        targets = np.bincount([row.reference.y for row in rows], minlength=3)
        assert targets.min() > 70
        sources = np.bincount([row.source.y for row in rows], minlength=3)
        assert sources[0] > 90

    def test_defects_of_different_scales_are_not_translated_into_each_other(self, windows: TrainingWindows) -> None:
        for seed in range(200):
            row = windows.row(rng(seed))
            assert (row.source.y, row.reference.y) not in {(1, 2), (2, 1)}

    def test_pairs_are_a_normal_and_a_defect(self, catalog: Catalog) -> None:
        as_one = [
            s.model_copy(update={"category": NORMAL if s.category == NORMAL else "defect"}) for s in catalog.images
        ]
        pairs = TrainingPairs(catalog.model_copy(update={"images": tuple(as_one)}), 64, ["p"], [NORMAL, "defect"])
        rows = [pairs.row(rng(seed)) for seed in range(40)]
        assert {(row.source.y, row.reference.y) for row in rows} == {(0, 1)}
        assert all(row.source.x.max() < 0 < row.reference.x.max() for row in rows)

    @pytest.mark.parametrize("lit", [True, False])
    def test_defects_that_are_lit_from_one_side_are_not_mirrored(self, tmp_path: Path, lit: bool) -> None:
        """Six squares whose left half is bright, or the left and the right one by turns: only the former keep it."""
        images = []
        for i in range(8):
            pixels, mask = np.full((120, 120), 100, np.uint8), np.zeros((120, 120), np.uint8)
            if i < 6:
                left = 40 + 4 * i
                mask[50:62, left : left + 12] = 255
                pixels[50:62, left : left + 6], pixels[50:62, left + 6 : left + 12] = (160, 40)[
                    :: 1 if lit or i % 2 else -1
                ]
            image = SourceImage(
                path=tmp_path / f"{i}.png", mask=tmp_path / f"{i}_mask.png" if i < 6 else None,
                category="pit" if i < 6 else NORMAL, product="p", height=120, width=120, channels=1, depth=8,
            )  # fmt: skip
            image.path.write_bytes(encode_png(pixels))
            if isinstance(image.mask, Path):
                image.mask.write_bytes(encode_png(mask))
            images.append(image)
        pairs = TrainingPairs(Catalog(images=tuple(images), skipped=()), 64, ["p"], [NORMAL, "pit"])
        seen = set()
        for known in pairs.kept["pit"]:
            tones = tones_of(known.levels)
            seen.add(bool(np.argwhere(tones > 0.2)[:, 1].mean() < np.argwhere(tones < -0.2)[:, 1].mean()))
        assert seen == ({True} if lit else {True, False})
        upright = {view.flip_y for view in (pairs._view_of(rng(i), images[0], 1.0) for i in range(40))}
        assert upright == {True, False}  # which leaves the light where it is

    def test_masks_are_known_of_all_images_if_there_are_many(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two squares of 10 pixels come before two of 100; the first were known alone."""
        monkeypatch.setattr(TrainingPairs, "_KNOWN", 2)
        as_one = [
            s.model_copy(update={"category": NORMAL if s.category == NORMAL else "defect"}) for s in catalog.images
        ]
        pairs = TrainingPairs(catalog.model_copy(update={"images": tuple(as_one)}), 64, ["p"], [NORMAL, "defect"])
        areas = sorted(np.count_nonzero(known.levels) for known in pairs.masks["defect"])
        assert len(areas) == 2
        assert areas[1] > 9 * areas[0]

    def test_a_row_shows_the_same_place_of_both_images(self, catalog: Catalog) -> None:
        """So that a defect at an edge of its image comes with a normal's window at that edge."""
        windows = TrainingWindows(catalog, 64, ["p"], [NORMAL, "crack", "dent"])
        for seed in range(20):
            row = windows.row(rng(seed))
            if row.source.y == 0 and row.reference.y != 0:
                assert row.source.place == pytest.approx(row.reference.place, abs=0.05)

    def test_patches_are_no_whole_images(self, catalog: Catalog) -> None:
        cracks = [image for image in catalog.images if image.category in (NORMAL, "crack")]
        given = catalog.model_copy(update={"images": tuple(cracks)})
        with pytest.raises(UsageError, match=r"--set whole=true: dcdganc learns defect patches"):
            training_data("dcdganc", given, info("dcdganc").configure("tiny", {"whole": "true"}))
        with pytest.raises(UsageError, match=r"--set exposure=true: dcdganc learns defect patches"):
            training_data("dcdganc", given, info("dcdganc").configure("paper", {"exposure": "true"}))

    def test_small_defects_of_a_category_are_shown_larger(self, tmp_path: Path) -> None:
        """One dent spans its image of 300 pixels, one 40: each fills its window, and normals have the same scale."""
        for kind in ("normals", "defects/dent", "masks/dent"):
            (tmp_path / kind).mkdir(parents=True)
        for name, length in (("large", 280), ("small", 40)):
            mask = np.zeros((300, 300), np.uint8)
            mask[100:130, 10 : 10 + length] = 255
            for kind, pixels in (("normals", 0 * mask + 90), ("defects/dent", mask // 4 + 90), ("masks/dent", mask)):
                (tmp_path / kind / f"{name}.png").write_bytes(encode_png(pixels))
        folders = ProductFolders(product="p", normals=tmp_path / "normals", defects=tmp_path / "defects")
        windows = TrainingPairs(read_catalog([folders]), 64, ["p"], [NORMAL, "dent"])
        base = windows.scales["p"]["dent"]
        zooms = {round(windows.row(rng(seed)).reference.zoom * base, 2) for seed in range(20)}
        assert zooms == {round(base, 2), 1.0}
        assert base < 0.5
        assert {round(known.zoom * base, 2) for known in windows.masks["dent"]} == zooms
        labelled = TrainingMasks(read_catalog([folders]), 64, ["p"], [NORMAL, "dent"])
        assert {labelled.row(rng(seed)).reference.zoom for seed in range(9)} == {1.0}

    def test_a_defect_is_whole_unless_it_goes_on_beyond_the_window(self) -> None:
        image = SourceImage(
            path=Path("x.png"), mask=None, category="dent", product="p", height=64, width=100, channels=1, depth=8
        )
        left, top = np.zeros((64, 64), np.bool_), np.zeros((64, 64), np.bool_)
        left[20:30, :5], top[:5, 20:30] = True, True
        for flip in (False, True):
            first, last = (_View(image, Window(x, 0, 64), False, flip) for x in (0, 36))
            mask = left[:, ::-1] if flip else left
            assert not first.cuts(mask)
            assert last.cuts(mask)
            assert not first.cuts(top)
            assert first.place == ((1.0, 0.5) if flip else (0.0, 0.5))

    def test_whole_images_fit_into_windows(self, catalog: Catalog) -> None:
        largest = max(max(image.width, image.height) for image in catalog.images)
        pairs = TrainingPairs(catalog, 64, ["p"], [NORMAL, "crack", "dent"], whole=True)
        assert set(pairs.scales["p"].values()) == {min(1.0, 64 / largest)}
        assert pairs.row(rng(0)).reference.x.shape[1:] == (64, 64)

    def test_labels_come_with_exact_maps_of_all_categories(self, catalog: Catalog) -> None:
        """On one image a crack, marked by a square of 10 pixels, and rust, without a mask."""
        samples = [s.model_copy(update={"also": (("rust", None),)}) for s in catalog.images if s.category == "crack"]
        normals = [s for s in catalog.images if s.category == NORMAL]
        united = catalog.model_copy(update={"images": (*normals, *samples)})
        labels = TrainingLabels(united, 64, ["p"], [NORMAL, "crack", "rust"])
        assert set(labels.masks) == {"crack"}
        for seed in range(20):
            row = labels.row(rng(seed))
            assert row.reference.a is not None
            crack, rust = row.reference.a
            np.testing.assert_array_equal(crack > 0, row.reference.x[0] > 0.3)
            assert rust.all()
            assert row.reference.twin is None  # nobody marked the rust, so nobody can repair it
            assert row.asked is not None
            assert 0 < row.asked[0].sum() < 300
            assert row.asked[1].all()

    def test_labels_come_with_twins_and_warped_masks(self, catalog: Catalog) -> None:
        labels = TrainingLabels(catalog, 64, ["p"], [NORMAL, "crack", "dent"])
        asked = set()
        for seed in range(30):
            row = labels.row(rng(seed))
            x, twin, a = row.reference.x, row.reference.twin, row.reference.a
            assert twin is not None
            assert a is not None
            inside = a.any(axis=0)
            assert x[0][inside].mean() > 0.4
            assert twin[0][inside].mean() < 0
            far = cv2.dilate(np.asarray(inside, np.uint8), np.ones((25, 25), np.uint8)) == 0
            np.testing.assert_array_equal(x[0][far], twin[0][far])
            assert row.asked is not None
            assert (row.asked.any(axis=(1, 2)) == a.any(axis=(1, 2))).all()  # the same category
            asked.add(row.asked.tobytes())
        assert len(asked) == 30

    def test_half_of_the_defects_are_warped_with_their_masks_on_their_twins(self, catalog: Catalog) -> None:
        labels = TrainingLabels(catalog, 64, ["p"], [NORMAL, "crack", "dent"])
        found = [labels.row(rng(seed)).reference for seed in range(60)]
        areas = []
        for each in found:
            assert each.a is not None
            shown = each.a.max(axis=0) > 0
            bright = each.x[0] > 0.3
            assert (shown != bright).sum() < 0.3 * shown.sum()
            areas.append(int(shown.sum()) if each.y == 1 else 100)
            edges = bool(shown[0].any() or shown[-1].any() or shown[:, 0].any() or shown[:, -1].any())
            assert each.cut == edges
        assert np.mean(np.array(areas) != 100) == pytest.approx(0.25, abs=0.12)  # of cracks, which are half of all

    def test_the_grain_of_the_ground_does_not_run_through_a_warped_defect(self) -> None:
        twin = (0.2 * rng(0).normal(size=(1, 64, 64))).astype(np.float32)
        a = np.zeros((1, 64, 64), np.float32)
        a[:, 20:44, 20:44] = 1
        x = np.where(a > 0, np.float32(0.6), twin)  # smooth
        for seed in range(5):
            found = _warped(rng(seed), TrainingSample(x, 1, 0, a, twin))
            assert found.a is not None
            assert not np.array_equal(found.a, a)
            inside = cv2.erode(found.a[0], np.ones((5, 5))) > 0
            assert np.ptp(found.x[0][inside]) < 0.3  # that of the ground is 1 and more
            np.testing.assert_array_equal(found.x[:, :4], twin[:, :4])

    def test_tones_tell_where_defects_are_bright(self, catalog: Catalog) -> None:
        """All of these are much brighter than their ground: tones of 1. A fifth of the rows do not tell."""
        labels = TrainingLabels(catalog, 64, ["p"], [NORMAL, "crack", "dent"])
        rows = [labels.row(rng(seed)) for seed in range(100)]
        told = 0
        for row in rows:
            assert row.tones is not None
            assert row.asked is not None
            assert row.reference.a is not None
            if not row.tones.any():
                continue
            told += 1
            for tones, a in zip(row.tones, (row.asked, row.reference.a), strict=True):
                inside = a.max(axis=0) > 0
                assert (tones[inside] > 0.9).mean() > 0.6
                assert not tones[cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) == 0].any()
        assert 70 < told < 90

    def test_methods_that_make_whole_images_are_asked_for_masks_and_tones(self, catalog: Catalog) -> None:
        requests = TrainingRequests(catalog, 64, ["p"], [NORMAL, "crack", "dent"])
        for seed in range(20):
            row = requests.row(rng(seed))
            assert row.asked is not None
            assert row.tones is not None
            assert np.flatnonzero(row.asked.any(axis=(1, 2))).tolist() == [row.reference.y - 1]
            inside = row.asked.max(axis=0) > 0
            assert (row.tones[0][inside] > 0.9).mean() > 0.6
            assert not row.tones[0][cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) == 0].any()

    def test_the_tones_of_real_defects_are_those_that_defect_gan_has_to_meet(self, catalog: Catalog) -> None:
        labels = TrainingLabels(catalog, 64, ["p"], [NORMAL, "crack", "dent"])
        found = []
        for seed in range(20):
            row = labels.row(rng(seed))
            each = row.reference
            if row.tones is not None and row.tones.any() and each.a is not None and each.twin is not None:
                maps = (each.x, each.twin, each.a.max(axis=0, keepdims=True), row.tones[1:])
                found.append(float(tone_loss(*(torch.tensor(m)[None] for m in maps))))
        assert len(found) > 10
        assert max(found) < 0.034  # of steps of 1/15

    def test_the_colors_of_defects_are_found(self, catalog: Catalog, tmp_path: Path) -> None:
        def hues(**paint: tuple[int, ...]) -> NDArray[np.float64]:
            images = []
            for image in catalog.images:
                assert isinstance(image.mask, Path | None)
                pixels = np.full((200, 300, 3), (90, 80, 70), np.uint8)
                if image.mask is not None:
                    pixels[read_mask(image.mask)] = paint[image.category]
                path = tmp_path / f"colored-{image.path.name}"
                path.write_bytes(encode_png(pixels))
                images.append(image.model_copy(update={"path": path, "channels": 3}))
            found = make_task(
                TrainingLabels(Catalog(images=tuple(images), skipped=()), 64, ["p"], [NORMAL, "crack", "dent"])
            ).hues
            return np.array(found)

        gray = np.ones(3) / np.sqrt(3)
        one = hues(crack=(60, 50, 40), dent=(20, 10, 0))
        assert np.abs(one @ gray) == pytest.approx([1], abs=1e-3)
        two = hues(crack=(60, 50, 40), dent=(190, 80, 70))  # darker, and redder
        assert two.shape == (2, 3)
        np.testing.assert_allclose(two @ two.T, np.eye(2), atol=1e-6)
        for change in (gray, np.array([1, 0, 0])):
            assert np.linalg.norm(two @ change) > 0.95
        assert make_task(TrainingLabels(catalog, 64, ["p"], [NORMAL, "crack", "dent"])).hues == ()  # gray images

    def test_masks_of_long_defects_show_their_whole_images(self, tmp_path: Path) -> None:
        """A crack through an image of 200 x 120 pixels, and a dent that fits into windows of 64."""
        for i in range(4):
            pixels, mask = np.full((120, 200), 100, np.uint8), np.zeros((120, 200), np.uint8)
            for folder in ("normals", "defects/crack", "defects/dent"):
                mask[:] = 0
                if folder.endswith("crack"):
                    mask[60 + i : 68 + i] = 255
                elif folder.endswith("dent"):
                    mask[50:70, 80:100] = 255
                kinds = [(folder, np.where(mask > 0, 30, pixels)), (folder.replace("defects", "masks"), mask)]
                for name, image in kinds[: 1 if folder == "normals" else 2]:
                    (tmp_path / name).mkdir(parents=True, exist_ok=True)
                    (tmp_path / name / f"{i}.png").write_bytes(encode_png(image.astype(np.uint8)))
        source = ProductFolders(product="p", normals=tmp_path / "normals", defects=tmp_path / "defects")
        plain, labels = (
            TrainingLabels(read_catalog([source]), 64, ["p"], [NORMAL, "crack", "dent"], paints=paints)
            for paints in (False, True)
        )
        assert plain.scales["p"]["crack"] == 0.5  # four pixels thick
        assert labels.scales["p"] == {"crack": 1.0, "dent": 1.0}
        assert {each.levels.shape for of in labels.masks.values() for each in of} == {(64, 64)}
        known = labels.kept
        assert {each.levels.shape for each in known["crack"]} == {(125, 208)}  # 200, in steps of 16
        assert all(each.levels.any(axis=0).all() for each in known["crack"])
        assert known["dent"][0].levels.shape == (64, 64)
        for windows, shape in ((labels, (125, 208)), (plain, (64, 64))):
            texts = make_task(windows).masks["crack"]
            assert {control_maps.from_text(text, 64).levels.shape for text in texts} == {shape}

    def test_a_long_crack_is_not_represented_by_the_speck_beside_it(self, tmp_path: Path) -> None:
        """Two images of cracks, one with a speck, and one of a dot: maps of each are a third of all."""
        for i, (long, dot) in enumerate([(True, False), (True, True), (False, True)]):
            pixels, mask = np.full((160, 160), 100, np.uint8), np.zeros((160, 160), np.uint8)
            mask[:, 40:46] = 255 * long
            cv2.circle(mask, (120, 80), 5, 255 * dot, -1)
            kinds = {"normals": pixels, "defects/crack": np.where(mask > 0, 30, pixels), "masks/crack": mask}
            for name, image in kinds.items():
                (tmp_path / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / name / f"{i}.png").write_bytes(encode_png(image.astype(np.uint8)))
        source = ProductFolders(product="p", normals=tmp_path / "normals", defects=tmp_path / "defects")
        labels = TrainingLabels(read_catalog([source]), 64, ["p"], [NORMAL, "crack"], paints=True)
        for known, shape in ((labels.masks, (64, 64)), (labels.kept, (80, 80))):  # at half the scale
            lines = [each.levels for each in known["crack"] if each.levels.any(axis=1).all()]
            assert len(lines) / len(known["crack"]) == pytest.approx(2 / 3, abs=0.05)
            assert {each.shape for each in lines} == {shape}

    def test_a_sheet_shows_defects_beside_their_twins(self, catalog: Catalog) -> None:
        sheet = TrainingLabels(catalog, 64, ["p"], [NORMAL, "crack", "dent"]).sheet()
        assert sheet is not None
        assert sheet.shape[:2] == (128, 8 * 64)
        assert sheet[:64].max() > 200 > sheet[64:].max()

    def test_a_row_depends_on_its_seed_only(self, windows: TrainingWindows) -> None:
        first, again = windows.row(rng(4)), windows.row(rng(4))
        np.testing.assert_array_equal(first.source.x, again.source.x)
        np.testing.assert_array_equal(first.reference.x, again.reference.x)


def to_unit(gray: float) -> float:
    return gray / 127.5 - 1


def catalog(folder: Path, sizes: tuple[int, ...] = (8, 10, 12)) -> Catalog:
    """Normals, and categories `bar`, long and thin, and `disc`, each patch darker than the 120 around it."""
    rng = np.random.default_rng(0)
    for name in ("normals", "defects/disc", "defects/bar", "masks/disc", "masks/bar"):
        (folder / name).mkdir(parents=True)
    for i, size in enumerate(sizes):
        pixels = rng.integers(110, 130, (90, 200), np.uint8)
        (folder / f"normals/{i}.png").write_bytes(encode_png(pixels))
        for name in ("disc", "bar"):
            mask = np.zeros((90, 200), np.uint8)
            if name == "disc":
                cv2.circle(mask, (100, 45), size, 255, -1)
            else:
                mask[44:48, 10:190] = 255
            (folder / f"masks/{name}/{i}.png").write_bytes(encode_png(mask))
            (folder / f"defects/{name}/{i}.png").write_bytes(encode_png(np.where(mask > 0, 40, pixels)))
    return read_catalog([ProductFolders(product="part", normals=folder / "normals", defects=folder / "defects")])


def windows(data: TrainingPatches, count: int = 60) -> dict[int, list[FloatArray]]:
    rng = np.random.default_rng(1)
    found: dict[int, list[FloatArray]] = {}
    for _ in range(count):
        row = data.row(rng)
        assert row.source is row.reference
        found.setdefault(row.source.y, []).append(row.source.x)
    return found


class TestTrainingContents:
    def test_draws_every_category_on_a_pure_background(self, tmp_path: Path) -> None:
        data = TrainingPatches(catalog(tmp_path), 64, ("part",), ("normal", "bar", "disc"))
        found = windows(data)
        assert set(found) == {1, 2}  # never a normal
        assert min(len(each) for each in found.values()) > 15
        for images in found.values():
            for x in images:
                assert x.shape == (1, 64, 64)
                inside = x[0] > -1
                assert 20 < inside.sum() < 64 * 64 / 2
                assert not inside[:2].any()
                assert not inside[:, -2:].any()

    def test_draws_differ(self, tmp_path: Path) -> None:
        data = TrainingPatches(catalog(tmp_path, (9,)), 64, ("part",), ("normal", "bar", "disc"))
        images = windows(data)[2]
        assert len({x.tobytes() for x in images}) == len(images)

    def test_thin_defects_are_cropped_not_scaled_down(self, tmp_path: Path) -> None:
        data = TrainingPatches(catalog(tmp_path), 64, ("part",), ("normal", "bar", "disc"))
        assert data.scales["part"]["disc"] == 1
        assert data.scales["part"]["bar"] == pytest.approx(1.0)  # 4 pixels thick, though 180 long
        widths = [np.flatnonzero((x[0] > -1).any(axis=0)) for x in windows(data)[1]]
        assert np.median([columns[-1] - columns[0] for columns in widths]) > 45

    def test_the_same_generator_draws_the_same(self, tmp_path: Path) -> None:
        data = TrainingPatches(catalog(tmp_path), 32, ("part",), ("normal", "bar", "disc"))
        one, other = (data.row(np.random.default_rng(7)).source.x for _ in range(2))
        np.testing.assert_array_equal(one, other)

    def test_examples_show_each_category(self, tmp_path: Path) -> None:
        data = TrainingPatches(catalog(tmp_path), 32, ("part",), ("normal", "bar", "disc"))
        rows = data.examples(np.random.default_rng(0), count=2)
        assert [row.reference.y for row in rows] == [1, 1, 2, 2]


class TestLevelPatches:
    """Bars of 180 x 4 pixels, turned by 60 degrees, and at the right edge; and discs at the bottom edge."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> LevelPatches:
        generator = np.random.default_rng(3)
        for name in ("normals", "defects/bar", "defects/disc", "masks/bar", "masks/disc"):
            (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(118, 123, (240, 240), np.uint8)
            (tmp_path / f"normals/{i}.png").write_bytes(encode_png(pixels))
            for name in ("bar", "disc"):
                mask = np.zeros((240, 240), np.uint8)
                if name == "disc":
                    cv2.circle(mask, (60 + 30 * i, 239), 10 + i, 255, -1)
                elif i % 2:
                    mask[100 + i : 106 + i, 140:] = 255
                else:
                    cv2.line(mask, (75, 198), (165, 42), 255, 6)
                (tmp_path / f"masks/{name}/{i}.png").write_bytes(encode_png(mask))
                (tmp_path / f"defects/{name}/{i}.png").write_bytes(encode_png(np.where(mask > 0, 60, pixels)))
        found = read_catalog([ProductFolders(product="p", normals=tmp_path / "normals", defects=tmp_path / "defects")])
        return LevelPatches(found, 64, ("p",), ("normal", "bar", "disc"))

    def test_windows_are_long_and_defects_level(self, data: LevelPatches) -> None:
        assert data.elongated
        assert data.shape == (32, 128)
        cut_off = 0
        rng, ends = np.random.default_rng(0), {1: Counter[tuple[bool, bool]](), 2: Counter[tuple[bool, bool]]()}
        for _ in range(120):
            sample = data.row(rng).source
            x, inside = sample.x, sample.x[-1] > 0
            assert x.shape == (2, 32, 128)
            rows, columns = np.nonzero(inside)
            assert inside.any()
            left, right, top, bottom = columns.min() == 0, columns.max() == 127, rows.min() == 0, rows.max() == 31
            cut_off += bool(right or top)  # or whole, and flipped to the left and the bottom
            ends[sample.y][bool(left), bool(bottom)] += 1
            if sample.y == 1:
                assert np.ptp(columns) > 3 * np.ptp(rows)
            assert np.median(x[0][inside]) == pytest.approx(-0.5, abs=0.2)  # 60 on 120
            assert abs(x[0][~cv2.dilate(inside.astype(np.uint8), np.ones((7, 7))).astype(bool)]).max() < 0.01
        assert cut_off < 12  # some are stretched beyond the window
        assert set(ends[1]) == {(False, False), (True, False)}  # inside, and at an edge
        assert set(ends[2]) == {(False, True)}

    def test_spots_come_with_the_scale_of_each(self, data: LevelPatches) -> None:
        spots = data.spots
        assert {category: len(known) for category, known in spots.items()} == {"bar": 4, "disc": 4}
        for known in spots["disc"]:
            assert known.scale == pytest.approx(min(2, 32 / (1.15 * 15)), abs=0.4)  # enlarged
            assert known.spot.touches == (False, True, False, False)
        inner = [known for known in spots["bar"] if not any(known.spot.touches)]
        assert len(inner) == 2
        for known in inner:
            assert known.scale == pytest.approx(128 / (1.15 * 186), abs=0.05)
            assert known.length == pytest.approx(186 * known.scale, abs=3)
            assert from_text(to_text(known)).spot == known.spot

    def test_the_same_generator_draws_the_same_and_others_others(self, data: LevelPatches) -> None:
        drawn = [data.row(np.random.default_rng(seed)).source.x.tobytes() for seed in (1, 1, 2, 3)]
        assert drawn[0] == drawn[1]
        assert len(set(drawn)) == 3

    def test_each_defect_has_one_window(self, data: LevelPatches) -> None:
        """What a warp can do later, the network need not learn."""
        rng = np.random.default_rng(0)
        assert len({data.row(rng).source.x.tobytes() for _ in range(60)}) == 8

    def test_the_task_says_how_windows_are(self, data: LevelPatches) -> None:
        task = make_task(data)
        assert task.elongated
        assert set(task.spots) == {"bar", "disc"}


def test_defects_without_masks_are_refused_with_what_to_do(tmp_path: Path) -> None:
    catalog(tmp_path)
    (tmp_path / "masks/disc/1.png").unlink()
    with pytest.raises(
        BadInputError, match=r"1 of 6 defect images have no mask \(first: .*disc/1\.png\).*defectgen inspect"
    ):
        read_defects(tmp_path / "defects")
    (tmp_path / "masks/disc").rename(tmp_path / "masks/discs")
    with pytest.raises(BadInputError, match=r"have no mask .*; 1 mask belongs to no image \(.*masks/discs/\); masks"):
        read_defects(tmp_path / "defects")


@pytest.mark.parametrize(("color", "channels"), [((40, 40, 40), 1), ((60, 45, 40), 1), ((200, 90, 40), 3)])
def test_defects_without_color_are_learned_in_gray(tmp_path: Path, color: tuple[int, int, int], channels: int) -> None:
    for name in ("normals", "defects/rust", "masks/rust"):
        (tmp_path / name).mkdir(parents=True)
    pixels = np.full((60, 60, 3), 160, np.uint8)
    mask = np.zeros((60, 60), np.uint8)
    cv2.circle(mask, (30, 30), 9, 255, -1)
    (tmp_path / "normals/0.png").write_bytes(encode_png(pixels))
    pixels[mask > 0] = color
    (tmp_path / "defects/rust/0.png").write_bytes(encode_png(pixels))
    (tmp_path / "masks/rust/0.png").write_bytes(encode_png(mask))
    read = read_catalog([ProductFolders(product="a", normals=tmp_path / "normals", defects=tmp_path / "defects")])
    data = TrainingPatches(read, 32, ("a",), ("normal", "rust"))
    assert data.channels == channels
    assert data.row(np.random.default_rng(0)).source.x.shape == (channels, 32, 32)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """16-bit images of an even part, with a void of 2000 levels in some."""
    noise = np.random.default_rng(0)
    mask = np.zeros((128, 128), np.uint8)
    cv2.circle(mask, (60, 64), 12, 255, -1)
    for i in range(4):
        for folder, strength in (("normals", 0), ("defects/void", 2000)):
            pixels = noise.normal(1000, 8, (128, 128)) + strength * (mask > 0)
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{folder}/{i}.png").write_bytes(encode_png(np.asarray(pixels, np.uint16)))
        (tmp_path / "masks/void").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"masks/void/{i}.png").write_bytes(encode_png(mask))
    return tmp_path


def test_16_bit_images_of_a_product_have_one_range(deep: Path) -> None:
    """By the ranges of their own, a normal would be all noise, and a defect stand on black."""
    source = ProductFolders(product="p", normals=deep / "normals", defects=deep / "defects")
    data = TrainingPairs(read_catalog([source]), 64, ("p",), (NORMAL, "void"))
    for seed in range(6):
        row = data.row(rng(seed))
        assert row.reference.a is not None
        assert row.reference.twin is not None
        ground = row.reference.x[0][row.reference.a[0] == 0]
        assert np.median(ground) == pytest.approx(np.median(row.source.x), abs=0.02)
        assert row.source.x.std() < 0.05
        assert np.median(row.reference.x[0][row.reference.a[0] > 0] - np.median(ground)) == pytest.approx(1.9, abs=0.15)
        assert np.median(row.reference.twin) == pytest.approx(np.median(ground), abs=0.05)
    low, high = make_task(data).ranges["p"]
    assert 950 < low < 1000 < 2900 < high < 3100
