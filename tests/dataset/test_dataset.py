import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import Dataset, Layout, LayoutOptions, Normal, Sample, boxes, open_folder
from defectgen.dataset.manifest import Provenance
from defectgen.dataset.names import ascii_name, folder_name
from defectgen.errors import BadInputError, DiskFullError, StoppedError, UsageError
from defectgen.folders import Catalog
from defectgen.imaging.images import read_image, read_mask
from defectgen.synthesis.stream import SampleSpec

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


def goods(count: int, product: str = "tile", *, validates: bool = False) -> list[Normal]:
    return [Normal(product, validates, lambda: sample(0).image)] * count


def fresh(
    out: Path, layout: Layout = Layout.PLAIN, *, resume: bool = False, overwrite: bool = False, **options: Any
) -> Dataset:
    return open_folder(
        out, layout=layout, command="defectgen synthesize", resume=resume, overwrite=overwrite,
        options=LayoutOptions(**options),
    )  # fmt: skip


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
        fresh(out, layout).write(several(6), normals=goods(1))
        (out / "notes.txt").write_text("mine")
        fresh(out, Layout.PLAIN, overwrite=True).write([sample(0)])
        assert set(contents(out)) == {
            "dataset.json",
            "images/crack/000000.png",
            "manifest.jsonl",
            "masks/crack/000000.png",
            "metadata.jsonl",
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


def listed(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rejected.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def replaced(out: Path, layout: Layout, listed: Path) -> None:
    """Reject samples of a dataset of six and let others take their places, as the commands do."""
    again = fresh(out, layout, resume=True)
    again.reject(listed)
    spec = SampleSpec(
        ("crack", "pit hole"), 6, Catalog(images=(), skipped=()), skip=again.done, rejected=again.rejected
    )
    again.write(sample(index, ("crack", "pit hole")[index % 2]) for index in spec.indices)


class TestReject:
    @pytest.mark.parametrize("layout", list(Layout))
    def test_rejected_samples_are_replaced_by_others_everywhere(self, tmp_path: Path, layout: Layout) -> None:
        """As if they had never been made: in images, masks, labels, annotations, manifest, counts and overview."""
        out = tmp_path / "d"
        fresh(out, layout).write(several(6))
        images = [row["image"] for row in manifest(out)]
        replaced(out, layout, listed(tmp_path, images[1], images[4]))
        fresh(tmp_path / "e", layout).write(sample(i, ("crack", "pit hole")[i % 2]) for i in (0, 2, 3, 5, 6, 7))
        record, other = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in "de")
        assert record.pop("rejected") == {"1": images[1], "4": images[4]}
        assert record == other
        assert record["categories"] == {"crack": 3, "pit hole": 3}
        ours, theirs = contents(out), contents(tmp_path / "e")
        del ours["dataset.json"], theirs["dataset.json"]
        assert ours == theirs

    def test_rejecting_again_takes_those_that_came_instead(self, tmp_path: Path) -> None:
        out = tmp_path / "d"
        fresh(out).write(several(6))
        replaced(out, Layout.PLAIN, listed(tmp_path, "images/pit hole/000001.png"))
        assert [row["index"] for row in manifest(out)] == [0, 2, 3, 4, 5, 7]
        before = contents(out)
        replaced(out, Layout.PLAIN, listed(tmp_path, "images/pit hole/000001.png"))
        assert contents(out) == before
        replaced(out, Layout.PLAIN, listed(tmp_path, "images/pit hole/000007.png", "images/crack/000000.png"))
        assert [row["index"] for row in manifest(out)] == [2, 3, 4, 5, 6, 9]
        assert {row["category"] for row in manifest(out) if row["index"] % 2} == {"pit hole"}

    @pytest.mark.parametrize(
        "name", ["images/crack/000002.png", "masks/crack/000002.png", "000002.png", "000002", "  000002  ", "000002\r",
                 "images\\crack\\000002.png", "d/images/crack/000002.png", "./d/../d/images/crack/000002.png"],
    )  # fmt: skip
    def test_names_as_people_write_them(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        fresh(Path("d")).write(several(4))
        again = fresh(Path("d"), resume=True)
        again.reject(listed(tmp_path, name, "", name))
        assert [again.done, again.rejected] == [{0, 1, 3}, {2}]

    def test_names_that_are_not_there_are_one_line_and_change_nothing(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(4))
        before, again = contents(tmp_path / "d"), fresh(tmp_path / "d", resume=True)
        for lines, words in (
            (("000001.png", "images/pit hole/000002.png"), r"has no sample images/pit hole/000002\.png; give"),
            (tuple("abcdefgh"), r"has no sample a, b, c, d, e and 3 more; give one image a line"),
            (("../../etc/passwd",), r"has no sample \.\./\.\./etc/passwd"),
        ):
            with pytest.raises(BadInputError, match=words):
                again.reject(listed(tmp_path, *lines))
            assert again.done == {0, 1, 2, 3}
        with pytest.raises(BadInputError, match=r"none\.txt: No such file or directory; give a text file"):
            again.reject(tmp_path / "none.txt")
        (tmp_path / "rejected.txt").write_bytes(b"\xff\xfe0\x00")
        with pytest.raises(BadInputError, match="is not UTF-8 text"):
            again.reject(tmp_path / "rejected.txt")
        assert contents(tmp_path / "d") == before

    @pytest.mark.parametrize("layout", [Layout.COCO, Layout.YOLO])
    def test_without_others_nothing_of_them_stays(self, tmp_path: Path, layout: Layout) -> None:
        """Nor annotations that name what is gone, nor images without defects."""
        fresh(tmp_path / "d", layout, normals_share=1.0).write(several(3), normals=goods(3))
        again = fresh(tmp_path / "d", layout, resume=True)
        again.reject(listed(tmp_path, "000000", "000001", "000002"))
        again.write([])
        assert set(contents(tmp_path / "d")) <= {"dataset.json", "manifest.jsonl"}
        assert fresh(tmp_path / "d", layout, resume=True).rejected == {0, 1, 2}

    @pytest.mark.parametrize("layout", [Layout.COCO, Layout.YOLO])
    @pytest.mark.parametrize("moment", [1, 6, 14, 17])
    def test_killed_at_any_moment_it_is_completed_by_resuming(
        self, tmp_path: Path, layout: Layout, moment: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Annotations name files that are there whenever it is, and no file stays that no row names."""
        out, names = tmp_path / "d", listed(tmp_path, "000001", "000004")
        fresh(out, layout).write(several(6))
        shutil.copytree(out, tmp_path / "whole")
        replaced(tmp_path / "whole", layout, names)
        with monkeypatch.context() as patch:
            _kill_at(patch, moment)
            with pytest.raises(_Killed):
                replaced(out, layout, names)
        if (out / "annotations.json").is_file():
            named = [each["file_name"] for each in json.loads((out / "annotations.json").read_text())["images"]]
            assert all((out / "images" / name).is_file() for name in named)
        replaced(out, layout, names)
        assert contents(out) == contents(tmp_path / "whole")


class _Killed(BaseException):
    pass


def _kill_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Let so many changes of the disk pass; at the next one, and ever after, the process is as good as dead."""
    left = moment

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            return change(*given, **named)

        return changed

    for owner, name in ((Path, "unlink"), (Path, "replace"), (Dataset, "_append")):
        patch.setattr(owner, name, counted(getattr(owner, name)))


def filled(out: Path, layout: Layout, count: int = 6) -> None:
    fresh(out, layout).write(several(count), normals=goods(2))


class TestPeoplesFiles:
    @pytest.mark.parametrize("layout", list(Layout))
    @pytest.mark.parametrize("after", list(Layout))
    def test_overwriting_keeps_them_in_every_folder(self, tmp_path: Path, layout: Layout, after: Layout) -> None:
        """Also those that are named like ours, and those that another layout would have."""
        out = tmp_path / "d"
        filled(out, layout)
        folders = [out, *(path for path in out.rglob("*") if path.is_dir())]
        names = ["real_001.png", "real_001.txt", "900001.png", "900001.txt", ".a.png.x7_k2mfq.tmp", ".hidden"]
        mine = {folder / name for folder in folders for name in names}
        mine |= {out / name for name in ("labels/train/000001.txt", "tile/train/good/000001.png")} - set(out.rglob("*"))
        for path in mine:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"mine: {path.name}")
        (out / "empty/mine").mkdir(parents=True)
        if after is Layout.MVTEC and layout is not after:  # a person's normal is where one of ours would go
            with pytest.raises(UsageError, match=r"000001\.png: is in the way, and not of this dataset"):
                fresh(out, after, overwrite=True).write(several(2), normals=goods(2))
        else:
            fresh(out, after, overwrite=True).write(several(2), normals=goods(1))
        kept = [path for path in mine if path.is_file() and path.read_text(errors="ignore") == f"mine: {path.name}"]
        # A label of the new dataset's own image is not a person's.
        assert mine - set(kept) <= {out / "labels/train/000001.txt"}
        assert (out / "empty/mine").is_dir()

    @pytest.mark.parametrize(
        ("layout", "name"), [(Layout.COCO, "annotations/instances_val.json"), (Layout.YOLO, "data.yaml")]
    )
    def test_another_layout_does_not_replace_them(self, tmp_path: Path, layout: Layout, name: str) -> None:
        filled(tmp_path / "d", Layout.PLAIN)
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text("mine")
        before = contents(tmp_path / "d")
        with pytest.raises(UsageError, match=f"{name}: is in the way"):
            fresh(tmp_path / "d", layout, overwrite=True)
        assert contents(tmp_path / "d") == before

    @pytest.mark.parametrize("layout", list(Layout))
    def test_a_sample_does_not_replace_one(self, tmp_path: Path, layout: Layout) -> None:
        filled(tmp_path / "whole", layout)
        filled(tmp_path / "d", layout, 3)
        theirs = next(path for path in contents(tmp_path / "whole") if path.endswith("000004.png"))
        (tmp_path / "d" / theirs).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / theirs).write_text("mine")
        with pytest.raises(UsageError, match=r"000004\.png: is in the way, and not of this dataset; move it away"):
            fresh(tmp_path / "d", layout, resume=True).write(several(6, start=3))
        assert (tmp_path / "d" / theirs).read_text() == "mine"
        assert [row["index"] for row in manifest(tmp_path / "d")] == [0, 1, 2, 3]
        (tmp_path / "d" / theirs).unlink()
        again = fresh(tmp_path / "d", layout, resume=True)
        again.write(several(6, start=4), normals=goods(2))
        assert contents(tmp_path / "d") == contents(tmp_path / "whole")

    def test_normals_of_a_dataset_without_their_list_stay(self, tmp_path: Path) -> None:
        """As older versions wrote them."""
        filled(tmp_path / "d", Layout.MVTEC)
        record = json.loads((tmp_path / "d/dataset.json").read_text())
        assert record.pop("normals") == ["tile/train/good/000000.png", "tile/train/good/000001.png"]
        (tmp_path / "d/dataset.json").write_text(json.dumps(record))
        fresh(tmp_path / "d", overwrite=True).write(several(2))
        assert len(list((tmp_path / "d/tile/train/good").iterdir())) == 2
        assert not (tmp_path / "d/tile/test").exists()

    def test_normals_are_named_before_they_are_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        replace_file = Path.replace

        def watched(self: Path, target: Path) -> Path:
            if "good" in target.parts:
                named = json.loads((tmp_path / "d/dataset.json").read_text())["normals"]
                assert str(target.relative_to(tmp_path / "d")) in named
            return replace_file(self, target)

        monkeypatch.setattr(Path, "replace", watched)
        filled(tmp_path / "d", Layout.MVTEC)
        assert len(list((tmp_path / "d/tile/train/good").iterdir())) == 2


class TestLinks:
    @pytest.mark.parametrize("flag", ["resume", "overwrite"])
    @pytest.mark.parametrize(
        ("layout", "link"),
        [
            (Layout.PLAIN, "images"), (Layout.PLAIN, "masks/crack"), (Layout.YOLO, "labels/train"),
            (Layout.MVTEC, "tile"), (Layout.MVTEC, "tile/train/good"), (Layout.COCO, "images"),
            (Layout.PLAIN, "manifest.jsonl"), (Layout.PLAIN, "images/crack/000000.png"),
        ],
    )  # fmt: skip
    def test_nothing_is_deleted_or_written_behind_them(
        self, tmp_path: Path, layout: Layout, link: str, flag: str
    ) -> None:
        out, other = tmp_path / "d", tmp_path / "other"
        filled(out, layout)
        (out / link).rename(other)
        (out / link).symlink_to(other)
        before = contents(tmp_path)
        with pytest.raises(BadInputError, match=f"{link}: is a link"):
            fresh(out, layout, resume=flag == "resume", overwrite=flag == "overwrite").write(
                several(9, start=6), normals=goods(3)
            )
        if flag == "overwrite" or link in (
            "images",
            "masks/crack",
            "tile",
            "manifest.jsonl",
            "images/crack/000000.png",
        ):
            assert contents(tmp_path) == before
        assert {name: data for name, data in contents(tmp_path).items() if name.startswith("other")} == {
            name: data for name, data in before.items() if name.startswith("other")
        }

    @pytest.mark.parametrize("layout", list(Layout))
    def test_the_folder_itself_may_be_one(self, tmp_path: Path, layout: Layout) -> None:
        (tmp_path / "large").mkdir()
        (tmp_path / "d").symlink_to(tmp_path / "large")
        filled(tmp_path / "d", layout, 3)
        fresh(tmp_path / "d", layout, resume=True).write(several(6, start=3))
        fresh(tmp_path / "d", layout, overwrite=True).write([sample(0)])
        assert [row["index"] for row in manifest(tmp_path / "large")] == [0]

    def test_a_folder_where_a_row_names_a_file(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(1))
        row = {**manifest(tmp_path / "d")[0], "image": "images/crack"}
        (tmp_path / "d/manifest.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(BadInputError, match="images/crack: is a folder"):
            fresh(tmp_path / "d", overwrite=True)


class TestKilled:
    @pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
    def test_in_the_first_moments(self, tmp_path: Path, resume: bool, overwrite: bool) -> None:
        out = tmp_path / "d"
        (out / "images").mkdir(parents=True)
        (out / ".dataset.json.a8k2j1x9.defectgen-tmp").write_text("half")
        fresh(out, resume=resume, overwrite=overwrite).write(several(2))
        fresh(tmp_path / "whole").write(several(2))
        assert contents(out) == contents(tmp_path / "whole")

    def test_a_row_is_there_before_its_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """So a killed run leaves no image without a row, which would look like one without a defect."""
        write = files.write

        def watched(path: Path, data: bytes | str) -> None:
            if path.suffix == ".png":
                assert str(path.relative_to(tmp_path / "d")) in (tmp_path / "d/manifest.jsonl").read_text()
            write(path, data)

        monkeypatch.setattr(files, "write", watched)
        assert fresh(tmp_path / "d").write(several(5)).written == 5

    @pytest.mark.parametrize("layout", list(Layout))
    def test_a_sample_that_is_not_made_again_leaves_nothing(self, tmp_path: Path, layout: Layout) -> None:
        filled(tmp_path / "whole", layout, 3)
        filled(tmp_path / "d", layout, 4)
        (tmp_path / "d" / manifest(tmp_path / "d")[3]["mask"]).unlink()
        again = fresh(tmp_path / "d", layout, resume=True)
        assert again.done == {0, 1, 2}
        again.write([], normals=goods(2))
        assert contents(tmp_path / "d") == contents(tmp_path / "whole")

    @pytest.mark.parametrize("after", [0, 1, 5, 9, 13])
    @pytest.mark.parametrize("flag", ["resume", "overwrite"])
    def test_while_it_replaces_a_dataset(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, flag: str
    ) -> None:
        filled(tmp_path / "whole", Layout.YOLO)
        filled(tmp_path / "d", Layout.YOLO)
        unlink, deleted = Path.unlink, 0

        def killed(self: Path, missing_ok: bool = False) -> None:
            nonlocal deleted
            if self.suffix != ".defectgen-tmp":
                if deleted == after:
                    raise KeyboardInterrupt
                deleted += 1
            unlink(self, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            fresh(tmp_path / "d", Layout.YOLO, overwrite=True).write(several(6), normals=goods(2))
        monkeypatch.undo()
        again = fresh(tmp_path / "d", Layout.YOLO, resume=flag == "resume", overwrite=flag == "overwrite")
        again.write((made for made in several(6) if made.index not in again.done), normals=goods(2))
        assert contents(tmp_path / "d") == contents(tmp_path / "whole")


class TestInputs:
    @pytest.fixture(autouse=True)
    def _made(self, tmp_path: Path) -> None:
        """A dataset in `d`, made from three files."""
        for name in ("normal.png", "defect.png", "style.png"):
            (tmp_path / name).write_bytes(name.encode())
        sha256 = {name: files.sha256(tmp_path / name) for name in ("normal.png", "defect.png", "style.png")}
        named: dict[str, Any] = {
            "source": str(tmp_path / "normal.png"), "source_sha256": sha256["normal.png"],
            "style": {"file": str(tmp_path / "style.png"), "sha256": sha256["style.png"]},
            "parameters": {
                "defects": [{"content": str(tmp_path / "defect.png"), "content_sha256": sha256["defect.png"]}]
            },
        }  # fmt: skip
        fresh(tmp_path / "d").write([sample(0, **named)])

    @pytest.mark.parametrize("name", ["normal.png", "defect.png", "style.png"])
    @pytest.mark.parametrize("how", ["changed", "missing"])
    def test_one_that_changed_is_named(self, tmp_path: Path, name: str, how: str) -> None:
        assert fresh(tmp_path / "d", resume=True).done == {0}
        if how == "changed":
            (tmp_path / name).write_bytes(b"another")
        else:
            (tmp_path / name).unlink()
        with pytest.raises(UsageError, match=rf"{name}: (has changed|cannot be read) since .*--overwrite"):
            fresh(tmp_path / "d", resume=True)
        fresh(tmp_path / "d", overwrite=True)

    @pytest.mark.parametrize("layout", list(Layout))
    def test_names_that_are_not_utf_8(self, tmp_path: Path, layout: Layout) -> None:
        """As of an archive in Latin-1; Python keeps their bytes as surrogates."""
        name = os.fsdecode(b"Geh\xe4use")
        try:
            (tmp_path / name).write_bytes(b"normal")
        except OSError:
            pytest.skip("the file system takes only UTF-8")
        named = {"source": str(tmp_path / name), "source_sha256": files.sha256(tmp_path / name), "contents": name}
        made = [sample(i, category=name, product=name, **named) for i in range(3)]
        fresh(tmp_path / "n", layout).write(made[:2], metadata={"places": {name: {"boxes": []}}})
        again = fresh(tmp_path / "n", layout, resume=True)
        assert again.done == {0, 1}
        again.write(made[2:])
        assert {row["category"] for row in manifest(tmp_path / "n")} == {"Geh\\xe4use"}
        assert len(list((tmp_path / "n").rglob("000002*.png"))) == 2
        (tmp_path / name).write_bytes(b"another")
        with pytest.raises(UsageError, match="has changed"):
            fresh(tmp_path / "n", layout, resume=True)


class TestDamaged:
    @pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{", b'{"layout": 3}', b'{"normals": [1]}', b"[" * 100_000])
    def test_a_damaged_record_is_named_and_can_be_replaced(self, tmp_path: Path, text: bytes) -> None:
        filled(tmp_path / "d", Layout.COCO)
        (tmp_path / "d/dataset.json").write_bytes(text)
        with pytest.raises(BadInputError, match=r"d/dataset\.json: damaged: .*--overwrite"):
            fresh(tmp_path / "d", Layout.COCO, resume=True)
        again = fresh(tmp_path / "d", Layout.COCO, overwrite=True)
        assert "dataset.json: damaged" in again.warnings[0]
        again.write(several(2))
        fresh(tmp_path / "whole", Layout.COCO).write(several(2))
        assert contents(tmp_path / "d") == contents(tmp_path / "whole")

    def test_what_only_damaged_rows_name_stays(self, tmp_path: Path) -> None:
        fresh(tmp_path / "d").write(several(3))
        lines = (tmp_path / "d/manifest.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "d/manifest.jsonl").write_bytes(lines[0] + b"\xff\n" + lines[2])
        with pytest.raises(BadInputError, match="line 2 cannot be read"):
            fresh(tmp_path / "d", resume=True)
        again = fresh(tmp_path / "d", overwrite=True)
        (warning,) = again.warnings
        assert "line 2 cannot be read" in warning
        assert "stay" in warning
        again.write([sample(0)])
        assert {name for name in contents(tmp_path / "d") if name.endswith(".png")} == {
            "images/crack/000000.png", "masks/crack/000000.png",
            "images/pit hole/000001.png", "masks/pit hole/000001.png",
        }  # fmt: skip

    @pytest.mark.parametrize("text", ['{"name": "photos"}', '{"trained_on": []}', "", "{"])
    def test_a_dataset_of_someone_else_is_not_replaced(self, tmp_path: Path, text: str) -> None:
        for name in ("dataset.json", "sheet.jpg", "data.yaml", "annotations.json"):
            (tmp_path / name).write_text(text)
        before = contents(tmp_path)
        for flag in ("resume", "overwrite"):
            with pytest.raises(BadInputError, match="not (a|of a) defectgen dataset|damaged"):
                fresh(tmp_path, resume=flag == "resume", overwrite=flag == "overwrite")
        assert contents(tmp_path) == before


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
        fresh(out, Layout.MVTEC).write(made, normals=[*goods(1, "other"), *goods(3, "Fliese ß")])
        (category,) = [path for path in out.iterdir() if path.is_dir()]
        self.load(category)
        assert len(list((category / "train/good").iterdir())) == 3
        assert {path.name for path in (category / "test").iterdir()} == {"crack", "Locher"}
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

    def test_all_normals_are_there_those_for_testing_apart(self, tmp_path: Path) -> None:
        normals = [*goods(60), *goods(7, validates=True)]
        fresh(tmp_path, Layout.MVTEC).write(several(4), normals=normals)
        assert len(list((tmp_path / "tile/train/good").iterdir())) == 60
        assert len(list((tmp_path / "tile/test/good").iterdir())) == 7
        assert not (tmp_path / "tile/ground_truth/good").exists()

    def test_names_are_readable(self, tmp_path: Path) -> None:
        names = ['Riß\'s: "x"', "blow hole", "blow-hole", "blow_hole", "Löcher", "good", "ひび", "con"]
        fresh(tmp_path / "d", Layout.MVTEC, product="Gehäuse 7").write(sample(i, name) for i, name in enumerate(names))
        folders = [Path(row["image"]).parent.name for row in manifest(tmp_path / "d")]
        assert folders[:3] == ["Riss_s_x", "blow_hole", "blow-hole"]
        assert folders[3].startswith("blow_hole_")
        assert folders[4] == "Locher"
        assert len({folder.lower() for folder in folders} | {"good"}) == len(names) + 1
        assert {(row["product"], Path(row["image"]).parts[0]) for row in manifest(tmp_path / "d")} == {
            ("Gehäuse 7", "Gehause_7")
        }
        again = fresh(tmp_path / "d", Layout.MVTEC, resume=True, product="Gehäuse 7")
        again.write([sample(8, "blow_hole"), sample(9, "blow hole")])
        later = [Path(row["image"]).parent.name for row in manifest(tmp_path / "d")[8:]]
        assert later == [folders[3], folders[1]]


class TestSplit:
    @pytest.mark.parametrize("layout", [Layout.COCO, Layout.YOLO])
    def test_normals_are_a_share_of_the_samples_of_their_side(self, tmp_path: Path, layout: Layout) -> None:
        def made(count: int) -> Iterator[Sample]:
            return (replace(sample(i), validates=i % 5 == 4) for i in range(count))

        normals = [*goods(9), *goods(3, validates=True)]
        fresh(tmp_path / "d", layout, normals_share=0.5).write(made(10), normals=normals)
        pictures = list((tmp_path / "d/images").rglob("normal_*.png"))
        assert len(pictures) == 5  # half of 8 and of 2
        if layout is Layout.YOLO:
            assert sorted(path.parent.name for path in pictures) == ["train"] * 4 + ["val"]
        fresh(tmp_path / "d", layout, resume=True, normals_share=0.1).write([], normals=normals)
        assert len(list((tmp_path / "d/images").rglob("normal_*.png"))) == 1
        assert len(list((tmp_path / "d").rglob("normal_*.txt"))) == (layout is Layout.YOLO)
        fresh(tmp_path / "d", Layout.PLAIN, overwrite=True).write([sample(0)])
        assert not list((tmp_path / "d").rglob("normal_*"))

    def test_the_default_for_yolo_is_a_tenth(self, tmp_path: Path) -> None:
        for layout, count in ((Layout.YOLO, 1), (Layout.COCO, 0), (Layout.PLAIN, 0)):
            fresh(tmp_path / layout.value, layout).write(several(10), normals=goods(20))
            assert len(list((tmp_path / layout.value).rglob("normal_*.png"))) == count

    @pytest.mark.parametrize("layout", [Layout.COCO, Layout.YOLO, Layout.MVTEC])
    def test_it_stays_when_a_dataset_is_resumed(self, tmp_path: Path, layout: Layout) -> None:
        fresh(tmp_path, layout, val=0.2).write(several(3))
        assert fresh(tmp_path, layout, resume=True, val=0.2).done == {0, 1, 2}
        with pytest.raises(UsageError, match=r"the split was --val 0\.2 and is now --val 0\.3; repeat"):
            fresh(tmp_path, layout, resume=True, val=0.3)
        record = json.loads((tmp_path / "dataset.json").read_text())
        del record["val"], record["derived"]
        (tmp_path / "dataset.json").write_text(json.dumps(record))
        with pytest.raises(UsageError, match="that of an older version"):
            fresh(tmp_path, layout, resume=True)

    def test_a_dataset_of_an_older_version_is_replaced(self, tmp_path: Path) -> None:
        """It had one file of annotations, and did not name it; a person's file has another name."""
        fresh(tmp_path, Layout.COCO).write(several(3))
        record = json.loads((tmp_path / "dataset.json").read_text())
        del record["val"], record["derived"]
        (tmp_path / "dataset.json").write_text(json.dumps(record))
        (tmp_path / "annotations/instances_train.json").rename(tmp_path / "annotations.json")
        (tmp_path / "metadata.jsonl").write_text("mine")
        fresh(tmp_path, Layout.COCO, overwrite=True).write(several(3))
        assert not (tmp_path / "annotations.json").exists()
        with pytest.raises(UsageError, match=r"metadata\.jsonl: is in the way"):
            fresh(tmp_path, Layout.PLAIN, overwrite=True)
        assert (tmp_path / "metadata.jsonl").read_text() == "mine"


def test_hugging_face_reads_image_mask_and_category(tmp_path: Path) -> None:
    """The rules of its imagefolder: one metadata.jsonl, the same keys in each line, files relative to it."""
    made = [replace(each, restored=each.image) for each in several(4)]
    fresh(tmp_path).write(made)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {tuple(line) for line in lines} == {
        ("file_name", "mask_file_name", "restored_file_name", "category", "product")
    }
    assert [line["category"] for line in lines] == ["crack", "pit hole"] * 2
    for line, each in zip(lines, made, strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / line["file_name"]).pixels, each.image)
        np.testing.assert_array_equal(read_mask(tmp_path / line["mask_file_name"]), each.mask)


class TestNames:
    @pytest.mark.parametrize("name", ["crack", "pit hole", "Löcher", "ひび"])
    def test_valid_names_are_unchanged(self, name: str) -> None:
        assert folder_name(name) == name

    @pytest.mark.parametrize(
        ("name", "safe"), [("a/b", "a_b"), ("..", "_"), ("CON", "_CON"), ("x. ", "x"), ("nul.a", "_nul.a")]
    )
    def test_invalid_names_are_changed(self, name: str, safe: str) -> None:
        assert folder_name(name) == safe

    def test_names_of_any_length_are_valid(self) -> None:
        """The name of a mixture joins those of its categories."""
        names = ["crack+" * 60 + str(i) for i in range(2)] + ["ひび+" * 60 + str(i) for i in range(2)]
        for short in (folder_name, ascii_name):
            assert len({short(name) for name in names}) == 4
            assert all(len(short(name).encode()) <= 255 for name in names)

    def test_ascii_names_stay_distinct(self) -> None:
        taken: list[str] = []
        for name in ("Löcher", "Locher", "LÖCHER", "ひび", "亀裂", "", "..", "nul"):
            taken.append(ascii_name(name, taken))
        assert taken[0] == "Locher"
        assert len({name.lower() for name in taken}) == len(taken)
        assert all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in taken)


def test_boxes_of_components() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[1, 2:5] = True
    mask[2, 5] = True  # touches at a corner
    mask[8, 8] = True
    assert boxes(mask) == [[2, 1, 4, 2], [8, 8, 1, 1]]
