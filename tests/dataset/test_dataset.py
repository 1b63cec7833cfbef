import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import Dataset, Layout, Sample, ascii_name, boxes, folder_name, open_folder
from defectgen.dataset.manifest import Provenance
from defectgen.errors import BadInputError, DiskFullError, StoppedError, UsageError
from defectgen.imaging.images import read_image, read_mask

Samples = Callable[..., Iterator[Sample]]


def sample(index: int, category: str = "crack", product: str = "tile", **record: Any) -> Sample:
    """A noise image with two squares as defects, determined by the index."""
    rng = np.random.default_rng(index)
    image: NDArray[np.uint8] = rng.integers(80, 120, (60, 80, 3), np.uint8)
    mask = np.zeros((60, 80), np.bool_)
    x = 5 + index % 40
    mask[10:20, x : x + 12] = True
    mask[40:44, 60:64] = True
    image[mask] = 0
    base = {"source": "a.png", "model": "m", "model_sha256": "f" * 64, "method": "dt-gan", "seed": 0}
    return Sample(index, category, product, image, mask, Provenance(**{**base, **record}))


def several(count: int, start: int = 0) -> Iterator[Sample]:
    return (sample(i, ("crack", "pit hole")[i % 2]) for i in range(start, count))


def fresh(out: Path, layout: Layout = Layout.PLAIN, *, resume: bool = False, overwrite: bool = False) -> Dataset:
    return open_folder(out, layout=layout, command="defectgen synthesize", resume=resume, overwrite=overwrite)


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_the_sheet_shows_where_defects_lie(tmp_path: Path) -> None:
    """Real ones, if they are known, as red boxes, and the samples' as blue dots, in a square for each category."""
    places = {"crack": {"boxes": [[0.5, 0.0, 0.25, 0.5]]}, "pit hole": {"boxes": []}}
    shapes = {}
    for name, metadata in (("without", {}), ("with", {"places": places})):
        summary = fresh(tmp_path / name).write(several(6), metadata=metadata)
        shapes[name] = read_image(summary.sheet).as_rgb().astype(int)
    assert shapes["without"].shape[1] == shapes["with"].shape[1]
    strip = shapes["with"][shapes["without"].shape[0] :]
    assert strip.shape[0] == 178
    first, second = strip[:160, :160], strip[:160, 166:326]
    red, blue = (
        [np.argwhere(each[..., a] - each[..., b] > 80) for each in (first, second)] for a, b in ((0, 2), (2, 0))
    )
    assert red[0].min(axis=0) == pytest.approx([0, 80], abs=2)
    assert red[0].max(axis=0) == pytest.approx([80, 119], abs=2)
    assert len(red[1]) == 0
    assert np.abs(blue[0] - [42 / 60 * 160, 62 / 80 * 160]).sum(axis=1).min() < 4  # the lower square of each sample
    assert len(blue[1]) > 0


class TestPlain:
    def test_files_and_rows_agree(self, tmp_path: Path) -> None:
        seen: list[int] = []
        summary = fresh(tmp_path / "d").write(several(5), on_sample=lambda made: seen.append(made.index))
        assert (summary.written, summary.kept) == (5, 0)
        assert seen == [0, 1, 2, 3, 4]
        rows = manifest(tmp_path / "d")
        assert [row["index"] for row in rows] == seen
        for row, made in zip(rows, several(5), strict=True):
            assert row["image"] == f"images/{made.category}/{made.index:06}.png"
            np.testing.assert_array_equal(read_image(tmp_path / "d" / row["image"]).pixels, made.image)
            np.testing.assert_array_equal(read_mask(tmp_path / "d" / row["mask"]), made.mask)
            assert row["boxes"] == [[5 + made.index, 10, 12, 10], [60, 40, 4, 4]]
            assert row["area"] == 136
            assert row["seed"] == 0
        record = json.loads((tmp_path / "d/dataset.json").read_text())
        assert record["samples"] == 5
        assert record["categories"] == {"crack": 3, "pit hole": 2}
        assert record["versions"]["numpy"] == np.__version__
        assert summary.sheet.is_file()

    def test_masks_are_0_and_255(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(1))
        pixels = read_image(tmp_path / "d/masks/crack/000000.png").pixels
        assert set(np.unique(pixels)) == {0, 255}
        assert pixels.ndim == 2

    def test_restored_images_are_written_kept_and_removed_with_the_others(self, tmp_path: Path) -> None:
        whole = replace(sample(0), restored=np.full((60, 80, 3), 100, np.uint8))
        fresh(tmp_path / "d").write([whole])
        assert manifest(tmp_path / "d")[0]["restored"] == "restored/000000.png"
        restored = tmp_path / "d/restored/000000.png"
        np.testing.assert_array_equal(read_image(restored).pixels, whole.restored)
        restored.unlink()
        assert fresh(tmp_path / "d", resume=True).done == frozenset()
        fresh(tmp_path / "d", overwrite=True).write([sample(0)])
        assert not restored.parent.exists()

    def test_16_bit_images_stay_16_bit(self, tmp_path: Path) -> None:
        one = sample(0)
        deep = one.image.astype(np.uint16) * 250
        fresh(tmp_path / "d").write([Sample(0, "crack", "tile", deep, one.mask, one.provenance)])
        np.testing.assert_array_equal(read_image(tmp_path / "d/images/crack/000000.png").pixels, deep)

    def test_same_bytes_for_any_number_of_workers(self, tmp_path: Path) -> None:
        fresh(tmp_path / "a").write(several(9), workers=1)
        fresh(tmp_path / "b").write(several(9), workers=4)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_the_iterator_is_read_only_a_few_samples_ahead(self, tmp_path: Path) -> None:
        ahead: list[int] = []
        recorded: list[int] = []

        def watched() -> Iterator[Sample]:
            for made in several(40):
                ahead.append(made.index - len(recorded))
                yield made

        fresh(tmp_path / "d").write(watched(), workers=2, on_sample=lambda made: recorded.append(made.index))
        assert max(ahead) <= 5


class TestResume:
    @pytest.mark.parametrize("layout", list(Layout))
    def test_a_resumed_dataset_equals_an_uninterrupted_one(self, tmp_path: Path, layout: Layout) -> None:
        def broken() -> Iterator[Sample]:
            yield from several(4)
            raise StoppedError("stopped")

        fresh(tmp_path / "whole", layout).write(several(9))
        with pytest.raises(StoppedError):
            fresh(tmp_path / "broken", layout).write(broken())
        assert len(manifest(tmp_path / "broken")) == 4
        again = fresh(tmp_path / "broken", layout, resume=True)
        assert again.done == {0, 1, 2, 3}
        summary = again.write(several(9, start=4))
        assert (summary.written, summary.kept) == (5, 4)
        assert contents(tmp_path / "broken") == contents(tmp_path / "whole")

    def test_missing_samples_are_filled_in_order(self, tmp_path: Path) -> None:
        fresh(tmp_path / "whole").write(several(6))
        fresh(tmp_path / "d").write(several(6))
        (tmp_path / "d/images/crack/000002.png").unlink()
        again = fresh(tmp_path / "d", resume=True)
        assert again.done == {0, 1, 3, 4, 5}
        again.write([sample(2)])
        assert contents(tmp_path / "d") == contents(tmp_path / "whole")

    def test_an_incomplete_row_or_file_is_repaired(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(3))
        rows = (tmp_path / "d/manifest.jsonl").read_bytes()
        (tmp_path / "d/manifest.jsonl").write_bytes(rows[:-20])
        (tmp_path / "d/images/crack/.000002.png.x.defectgen-tmp").write_bytes(b"half")
        again = fresh(tmp_path / "d", resume=True)
        assert again.done == {0, 1}
        again.write(several(3, start=2))
        assert (tmp_path / "d/manifest.jsonl").read_bytes() == rows
        assert not list((tmp_path / "d").rglob(".*"))

    def test_another_seed_or_layout_is_refused(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(2))
        with pytest.raises(UsageError, match="cannot resume: seed was 0 and is now 7"):
            fresh(tmp_path / "d", resume=True).write([sample(2, seed=7)])
        with pytest.raises(UsageError, match="--format plain"):
            fresh(tmp_path / "d", Layout.COCO, resume=True)
        assert len(manifest(tmp_path / "d")) == 2


class TestOverwrite:
    def test_an_existing_dataset_is_not_replaced_by_default(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(2))
        before = contents(tmp_path / "d")
        with pytest.raises(UsageError, match="--resume.*--overwrite"):
            fresh(tmp_path / "d")
        assert contents(tmp_path / "d") == before

    @pytest.mark.parametrize("layout", list(Layout))
    def test_overwriting_removes_only_files_of_the_dataset(self, tmp_path: Path, layout: Layout) -> None:
        out = tmp_path / "d"
        fresh(out, layout).write(several(6), normals=[("tile", sample(0).image)])
        (out / "notes.txt").write_text("mine")
        fresh(out, Layout.PLAIN, overwrite=True).write([sample(0)])
        assert set(contents(out)) == {
            "dataset.json",
            "images/crack/000000.png",
            "manifest.jsonl",
            "masks/crack/000000.png",
            "notes.txt",
            "sheet.jpg",
        }

    def test_a_folder_without_a_dataset_is_not_touched(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/a.png").write_bytes(b"precious")
        with pytest.raises(BadInputError, match="not a defectgen dataset"):
            fresh(tmp_path / "photos", overwrite=True)
        assert contents(tmp_path / "photos") == {"a.png": b"precious"}

    @pytest.mark.parametrize("path", ["/etc/passwd", "../outside.png"])
    def test_a_manifest_with_paths_outside_the_dataset_is_refused(self, tmp_path: Path, path: str) -> None:
        fresh(tmp_path / "d").write(several(1))
        row = {**manifest(tmp_path / "d")[0], "image": path}
        (tmp_path / "d/manifest.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(BadInputError, match="line 1.*is outside the dataset"):
            fresh(tmp_path / "d", overwrite=True)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write

    def full(path: Path, data: bytes | str) -> None:
        if path.name == "000003.png":
            with files.disk_errors(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(DiskFullError, match=r"000003\.png.*--resume"):
        fresh(tmp_path / "d").write(several(9))
    monkeypatch.undo()
    again = fresh(tmp_path / "d", resume=True)
    assert again.done >= {0, 1, 2}
    assert 3 not in again.done
    again.write(made for made in several(9) if made.index not in again.done)
    assert [row["index"] for row in manifest(tmp_path / "d")] == list(range(9))


class TestMvtec:
    def test_follows_the_rules_of_anomalib(self, tmp_path: Path) -> None:
        out = tmp_path / "d"
        made = [sample(i, ("crack", "Löcher")[i % 2], "Fliese ß") for i in range(12)]
        fresh(out, Layout.MVTEC).write(made, normals=[("other", made[0].image)] + [("Fliese ß", made[0].image)] * 3)
        (category,) = [path for path in out.iterdir() if path.is_dir()]
        self.load(category)
        assert len(list((category / "train/good").iterdir())) == 3
        assert {path.name for path in (category / "test").iterdir()} == {"crack", ascii_name("Löcher")}
        assert manifest(out)[1]["category"] == "Löcher"

    @staticmethod
    def load(root: Path) -> None:
        """The checks of anomalib's MVTec AD reader for a category, after its documentation."""
        assert str(root.name).isascii()
        assert str(root.name).isprintable()
        images = sorted(root.rglob("*.png"))
        parts = [path.relative_to(root).parts for path in images]
        assert all(len(each) == 3 for each in parts)
        assert {each[0] for each in parts} == {"train", "test", "ground_truth"}
        assert {each[1] for each in parts if each[0] == "train"} == {"good"}
        tests = sorted(path for path in images if path.parent.parent.name == "test")
        masks = sorted(path for path in images if path.parent.parent.name == "ground_truth")
        assert len(tests) == len(masks) > 0
        for image, mask in zip(tests, masks, strict=True):
            assert image.stem in mask.stem
            assert image.parent.name == mask.parent.name
            assert read_image(image).pixels.shape[:2] == read_mask(mask).shape


class TestNames:
    @pytest.mark.parametrize("name", ["crack", "pit hole", "Löcher", "ひび"])
    def test_valid_names_are_unchanged(self, name: str) -> None:
        assert folder_name(name) == name

    @pytest.mark.parametrize(
        ("name", "safe"), [("a/b", "a_b"), ("..", "_"), ("CON", "_CON"), ("x. ", "x"), ("nul.a", "_nul.a")]
    )
    def test_invalid_names_are_changed(self, name: str, safe: str) -> None:
        assert folder_name(name) == safe

    def test_ascii_names_stay_distinct(self) -> None:
        names = {ascii_name(name) for name in ("Löcher", "Lücher", "L_cher")}
        assert len(names) == 3
        assert all(name.isascii() for name in names)


def test_boxes_of_components() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[1, 2:5] = True
    mask[2, 5] = True  # touches at a corner
    mask[8, 8] = True
    assert boxes(mask) == [[2, 1, 4, 2], [8, 8, 1, 1]]
