import errno
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectgen.dataset import Layout, Sample, open_folder
from defectgen.dataset.manifest import Provenance
from defectgen.errors import BadInputError, UsageError
from defectgen.folders import (
    NORMAL,
    Catalog,
    ProductFolders,
    parse_product,
    read_catalog,
    read_defects,
    read_normals,
    unite,
)
from defectgen.imaging.mask_files import read_masks
from defectgen.marking import Marking

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes an image, or a mask if the path says so."""

    def write(name: str, size: tuple[int, int] = (24, 16), value: int = 100) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full(size[::-1], value, np.uint8)
        if "mask" in name or "ground_truth" in name:
            pixels[:] = 0
            pixels[4:8, 4:10] = 255
        Image.fromarray(pixels).save(path)
        return path

    return write


def catalog(root: Path, normals: str = "normals", defects: str | None = "defects", **options: object) -> Catalog:
    masks = options.pop("masks", None)
    source = ProductFolders(
        product="part",
        normals=root / normals,
        defects=root / defects if defects else None,
        masks=root / str(masks) if masks else None,
    )
    return read_catalog([source], **options)  # type: ignore[arg-type]


def described(found: Catalog, root: Path) -> set[tuple[str, str, str | None]]:
    """Category, image and mask of each defect."""
    return {
        (s.category, str(s.path.relative_to(root)), str(s.mask.relative_to(root)) if isinstance(s.mask, Path) else None)
        for s in found.images
        if s.category != NORMAL
    }


def test_a_dataset_of_our_own_is_a_folder_of_defects_in_any_layout(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.bool_)
    mask[5:12, 8:20] = True
    provenance = Provenance(source="a.png", method="cut-outs")
    pixels = np.full((30, 40), 90, np.uint8)
    samples = [Sample(i, ("crack", "blow hole: 2")[i % 2], "part", pixels, mask, provenance) for i in range(6)]
    for layout in Layout:
        folder = tmp_path / layout.value
        open_folder(folder, layout=layout, command="x", resume=False, overwrite=False).write(samples)
        found = read_defects(folder)
        assert [image.category for image in found.images].count("blow hole: 2") == 3
        assert all(image.mask is not None and read_masks(image.mask).sum() == 84 for image in found.images)
        assert not found.warnings
        only = read_defects(folder, categories=["crack"])
        assert len(only.images) == 3
        first = only.images[0].path
        first.unlink()
        assert any("1 of 6 samples are missing" in line for line in read_defects(folder).warnings)
    for layout in (Layout.COCO, Layout.YOLO):
        folder = tmp_path / layout.value
        by_manifest = {(image.path, image.category) for image in read_defects(folder).images}
        annotated = read_defects(folder, marking=Marking(folder))
        assert {(image.path, image.category) for image in annotated.images} == by_manifest
        assert all(image.mask is not None and (read_masks(image.mask) == mask).all() for image in annotated.images)


@pytest.mark.parametrize("line", ["{", '{"image": "../a.png", "mask": "m.png", "category": "a"}', '{"image": 3}', "[]"])
def test_a_damaged_dataset_of_our_own_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(line + "\n{}")
    with pytest.raises(BadInputError, match=r"manifest\.jsonl: line 1|is not inside"):
        read_defects(tmp_path)


class TestLayouts:
    def test_a_folder_for_each_category(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "normals/b.JPG", "defects/crack/1.png", "defects/Löcher groß/2.png"):
            put(name)
        put("masks/crack/1.png")
        found = catalog(tmp_path)
        assert found.categories == ("Löcher groß", "crack")
        assert found.products == ("part",)
        assert len(found.images) == 4
        assert described(found, tmp_path) == {
            ("crack", "defects/crack/1.png", "masks/crack/1.png"),
            ("Löcher groß", "defects/Löcher groß/2.png", None),
        }
        sample = found.images[0]
        assert (sample.width, sample.height, sample.channels, sample.depth) == (24, 16, 1, 8)

    def test_one_flat_folder_is_named_by_itself_or_by_the_option(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "dents/1.png", "dents/2.png", "masks/1.png", "masks/2_mask.png"):
            put(name)
        assert described(catalog(tmp_path, defects="dents"), tmp_path) == {
            ("dents", "dents/1.png", "masks/1.png"),
            ("dents", "dents/2.png", "masks/2_mask.png"),
        }
        assert catalog(tmp_path, defects="dents", category="dent").categories == ("dent",)

    def test_a_flat_folder_that_is_one_of_several_categories(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "defects/crack/1.png", "defects/dent/1.png", "masks/crack/1.png"):
            put(name)
        assert described(catalog(tmp_path, defects="defects/crack"), tmp_path) == {
            ("crack", "defects/crack/1.png", "masks/crack/1.png")
        }

    @pytest.mark.parametrize(
        ("normals", "defects"),
        [("bottle", None), ("bottle/train", None), ("bottle/train/good", "bottle/test"), ("bottle", "bottle/test")],
    )
    def test_mvtec_ad(self, put: Put, tmp_path: Path, normals: str, defects: str | None) -> None:
        for name in ("train/good/000.png", "test/good/000.png", "test/broken/000.png"):
            put(f"bottle/{name}")
        put("bottle/ground_truth/broken/000_mask.png")
        found = catalog(tmp_path, normals, defects)
        assert described(found, tmp_path) == {
            ("broken", "bottle/test/broken/000.png", "bottle/ground_truth/broken/000_mask.png")
        }
        assert [str(s.path.relative_to(tmp_path)) for s in found.images if s.category == NORMAL] == [
            "bottle/train/good/000.png"
        ]

    def test_masks_elsewhere(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "defects/crack/1.png", "my masks/crack/1.png", "masks/crack/1.png"):
            put(name)
        found = catalog(tmp_path, masks="my masks")
        assert described(found, tmp_path) == {("crack", "defects/crack/1.png", "my masks/crack/1.png")}

    def test_one_of_several_categories_can_be_chosen(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "defects/crack/1.png", "defects/dent/1.png"):
            put(name)
        assert catalog(tmp_path, category="dent").categories == ("dent",)
        with pytest.raises(UsageError, match="--category rust: .* has crack, dent"):
            catalog(tmp_path, category="rust")

    def test_files_that_are_not_images_are_ignored(self, put: Put, tmp_path: Path) -> None:
        put("normals/a.png")
        put("defects/crack/1.png")
        for name in ("normals/Thumbs.db", "normals/.hidden.png", "defects/crack/notes.txt", "defects/readme.md"):
            (tmp_path / name).write_bytes(b"x")
        found = catalog(tmp_path)
        assert len(found.images) == 2
        assert found.skipped == ()

    def test_several_products(self, put: Put, tmp_path: Path) -> None:
        for product in ("a", "b"):
            put(f"{product}/good/1.png")
            put(f"{product}/bad/crack/1.png")
        found = read_catalog(
            [ProductFolders(product=p, normals=tmp_path / p / "good", defects=tmp_path / p / "bad") for p in ("b", "a")]
        )
        assert found.products == ("a", "b")
        assert [sample.product for sample in found.images] == ["b", "b", "a", "a"]


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _good(self, put: Put) -> None:
        for name in ("normals/a.png", "defects/crack/1.png", "defects/crack/2.png", "masks/crack/1.png"):
            put(name)

    def test_each_bad_file_is_named_and_skipped(self, tmp_path: Path, put: Put) -> None:
        (tmp_path / "normals/bad.png").write_bytes(b"no")
        (tmp_path / "defects/crack/gone.png").symlink_to("nowhere.png")
        put("defects/crack/3.png")
        put("masks/crack/3.png").write_bytes(b"no")
        seen: list[tuple[int, int]] = []
        found = catalog(tmp_path, progress=lambda done, total: seen.append((done, total)))
        skipped = {each.path.name: each.reason for each in found.skipped}
        assert skipped.keys() == {"bad.png", "gone.png", "3.png"}
        assert "not an image" in skipped["bad.png"]
        assert "No such file" in skipped["gone.png"]
        assert "masks/crack/3.png" in skipped["3.png"]
        assert len(found.images) == 3
        assert seen[-1] == (6, 6)

    def test_on_bad_fail_stops(self, tmp_path: Path) -> None:
        (tmp_path / "normals/bad.png").write_bytes(b"no")
        with pytest.raises(BadInputError, match=r"1 of 4 files cannot be used: .*bad\.png: not an image"):
            catalog(tmp_path, on_bad="fail")

    @pytest.mark.parametrize(("folder", "what"), [("normals", "normals"), ("defects/crack", "defects")])
    def test_nothing_left_fails_with_the_reasons(self, tmp_path: Path, folder: str, what: str) -> None:
        paths = [*(tmp_path / folder).iterdir(), tmp_path / folder / "more.png"]
        for path in paths:
            path.write_bytes(b"no")
        with pytest.raises(BadInputError, match=f"part: no usable {what}: .*not an image") as found:
            catalog(tmp_path)
        assert str(found.value).count("not an image") == 1  # a reason that all share is told once
        assert str(found.value).endswith(f"; and {len(paths) - 1} more")

    def test_a_mask_of_another_size_names_both(self, tmp_path: Path, put: Put) -> None:
        put("masks/crack/2.png", size=(24, 20))
        with pytest.raises(BadInputError, match=r"masks/crack/2\.png: .* 24x20, but .*defects/crack/2\.png is 24x16"):
            catalog(tmp_path)

    def test_a_mask_that_marks_nothing_is_skipped(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((16, 24), np.uint8)).save(tmp_path / "masks/crack/2.png")
        (skipped,) = catalog(tmp_path).skipped
        assert skipped.reason == f"its mask {tmp_path}/masks/crack/2.png is empty"

    @pytest.mark.parametrize(
        ("normals", "defects", "reason"),
        [
            ("nowhere", "defects", "nowhere: no such folder"),
            ("normals", "nowhere", "nowhere: no such folder"),
            ("normals", None, "normals: no folder of defects is given"),
            ("empty", "defects", "empty: no images; found nothing"),
            ("texts", "defects", r"texts: no images; found a\.txt, b\.txt"),
            ("normals", "empty", "empty: no images"),
            ("normals", "wrong", "the name 'normal' is reserved for images without defects"),
            ("defects", "normals", r"defects: no images, but folders of images \(crack\): .*the two folders swapped\?"),
            ("normals", ".", r"defects: no images, but folders of images \(crack\): .* Give \S+/defects in place of "),
        ],
    )
    def test_folders_in_no_known_layout(
        self, tmp_path: Path, put: Put, normals: str, defects: str | None, reason: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "texts").mkdir()
        for name in "ab":
            (tmp_path / f"texts/{name}.txt").write_text("x")
        put("wrong/normal/1.png")
        with pytest.raises(BadInputError, match=reason):
            catalog(tmp_path, normals, defects)

    @pytest.mark.parametrize(
        ("mask", "options", "reason"),
        [
            (
                "masks/dent/one_1.png",
                {},
                r"masks/dent/one_1\.png: no mask is named after .* of 1\.png must be called 1\.png or 1_mask",
            ),
            ("my masks/crack/one.png", {"masks": "my masks"}, "my masks/crack/one.png: no mask is named after"),
            ("my masks/one.png", {"masks": "my masks"}, "my masks: no mask is named after"),
        ],
    )
    def test_masks_that_match_no_image_are_refused(
        self, tmp_path: Path, put: Put, mask: str, options: dict[str, str], reason: str
    ) -> None:
        put("defects/dent/1.png")
        put(mask)
        with pytest.raises(BadInputError, match=reason):
            catalog(tmp_path, **options)

    def test_a_folder_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(BadInputError, match="normals: Permission denied$"):
            catalog(tmp_path)

    def test_a_masks_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="--masks .*nowhere: no such folder"):
            catalog(tmp_path, masks="nowhere")


class TestReadNormals:
    def test_of_a_folder_and_of_mvtec(self, put: Put, tmp_path: Path) -> None:
        put("plain/a.png")
        put("bottle/train/good/b.png")
        assert read_normals(tmp_path / "plain").images[0].path.name == "a.png"
        assert read_normals(tmp_path / "bottle", product="x").images[0].product == "x"

    def test_none_left(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"no")
        with pytest.raises(BadInputError, match="no usable normals: .*not an image"):
            read_normals(tmp_path)


class TestParseProduct:
    def test_name_and_folders(self, tmp_path: Path) -> None:
        for name in ("good", "bad"):
            (tmp_path / name).mkdir()
        source = parse_product(f"tile={tmp_path}/good:{tmp_path}/bad")
        assert (source.product, source.normals, source.defects) == ("tile", tmp_path / "good", tmp_path / "bad")

    def test_paths_with_colons_are_split_where_both_folders_exist(self, tmp_path: Path) -> None:
        for name in ("c:x", "d:y"):
            (tmp_path / name).mkdir()
        source = parse_product(f"tile={tmp_path}/c:x:{tmp_path}/d:y")
        assert (source.normals, source.defects) == (tmp_path / "c:x", tmp_path / "d:y")

    @pytest.mark.parametrize("text", ["tile", "=a:b", "tile=a", "tile=", "tile=a:", "tile=:b"])
    def test_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="NAME=NORMALS:DEFECTS"):
            parse_product(text)

    def test_folders_that_are_not_there(self) -> None:
        with pytest.raises(BadInputError, match="--product tile=a:b: no such folders"):
            parse_product("tile=a:b")


def test_defects_alone_are_read_by_category(put: Put, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(f"defects/{name}/1.png")
        put(f"masks/{name}/1.png")
    assert read_defects(tmp_path / "defects").categories == ("a", "b", "c")
    (tmp_path / "defects/b/1.png").write_bytes(b"no picture")  # not wanted, so not read
    catalog = read_defects(tmp_path / "defects", categories=["a", "c"])
    assert catalog.categories == ("a", "c")
    assert catalog.skipped == ()
    assert read_defects(tmp_path / "defects/c", categories=["mine"]).categories == ("mine",)
    with pytest.raises(UsageError, match="--category x: .*defects has a, b, c"):
        read_defects(tmp_path / "defects", categories=["a", "x"])


def test_mvtec_defects_are_found_from_the_root(put: Put, tmp_path: Path) -> None:
    for name in ("train/good/000", "test/good/000", "test/dent/000", "ground_truth/dent/000_mask"):
        put(f"{name}.png")
    catalog = read_defects(tmp_path)
    assert catalog.categories == ("dent",)
    assert catalog.images[0].mask == tmp_path / "ground_truth/dent/000_mask.png"


class TestSeveralCategoriesInOneImage:
    def test_labels_csv(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "defects/1.png", "defects/2.png", "masks/crack/1.png", "masks/rust/1.png"):
            put(name)
        (tmp_path / "defects/labels.csv").write_text("file,categories\n1.png,crack; rust\n2.png,rust\n")
        found = catalog(tmp_path)
        assert described(found, tmp_path) == {
            ("crack", "defects/1.png", "masks/crack/1.png"),
            ("rust", "defects/1.png", "masks/rust/1.png"),
            ("rust", "defects/2.png", None),
        }
        also = {(s.category, s.path.name): s.also for s in unite(found).images if s.category != NORMAL}
        assert also == {
            ("crack", "1.png"): (("rust", tmp_path / "masks/rust/1.png"),),
            ("rust", "1.png"): (("crack", tmp_path / "masks/crack/1.png"),),
            ("rust", "2.png"): (),
        }
        assert described(catalog(tmp_path, category="crack"), tmp_path) == {
            ("crack", "defects/1.png", "masks/crack/1.png")
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1.png,crack\n", "labels.csv: 2.png is not listed"),
            ("1.png,crack\n2.png,rust\n3.png,rust\n", "labels.csv: 3.png is not in the folder"),
            ("1.png\n2.png,rust\n", "labels.csv: line 1: expected FILE,CATEGORY;CATEGORY"),
            ("1.png,crack;\n2.png,rust\n", "labels.csv: line 1: expected"),
            ("1.png,crack\n2.png,normal\n", "labels.csv: line 2: expected .* without 'normal'"),
            ("1.png,Stra\xdfe\n2.png,rust\n", "labels.csv: not a CSV file in UTF-8"),
        ],
    )
    def test_a_table_that_is_wrong(self, put: Put, tmp_path: Path, text: str, message: str) -> None:
        for name in ("normals/a.png", "defects/1.png", "defects/2.png"):
            put(name)
        (tmp_path / "defects/labels.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(BadInputError, match=message):
            catalog(tmp_path)

    def test_a_category_that_the_table_does_not_name(self, put: Put, tmp_path: Path) -> None:
        for name in ("normals/a.png", "defects/1.png"):
            put(name)
        (tmp_path / "defects/labels.csv").write_text("1.png,crack\n")
        with pytest.raises(UsageError, match=r"--category dent: .*labels.csv has crack"):
            catalog(tmp_path, category="dent")

    def test_the_same_file_in_two_folders_is_one_image_but_the_same_name_alone_is_not(
        self, put: Put, tmp_path: Path
    ) -> None:
        for name, value in (("crack/1", 50), ("rust/1", 50), ("dent/1", 70), ("crack/2", 70)):
            put(f"defects/{name}.png", value=value)
        put("normals/a.png")
        put("masks/rust/1.png")
        also = {(s.category, s.path.name): s.also for s in unite(catalog(tmp_path)).images if s.category != NORMAL}
        assert also == {
            ("crack", "1.png"): (("rust", tmp_path / "masks/rust/1.png"),),
            ("rust", "1.png"): (("crack", None),),
            ("dent", "1.png"): (),
            ("crack", "2.png"): (),
        }


class TestMasks:
    """Masks belong to one image each, or an error or a warning says so."""

    @pytest.fixture(autouse=True)
    def _normal(self, put: Put) -> None:
        put("normals/a.png")

    def test_masks_beside_their_images_are_no_images(self, put: Put, tmp_path: Path) -> None:
        for name in ("defects/crack/1.jpg", "defects/crack/2.jpg", "defects/dent/3.png"):
            put(name)
        for name in ("crack/1.png", "crack/2_mask.png", "dent/3_GT.png"):
            put(f"masks/{name}").rename(tmp_path / "defects" / name)
        for folder in ("crack", "dent"):
            (tmp_path / "masks" / folder).rmdir()
        found = catalog(tmp_path)
        assert described(found, tmp_path) == {
            ("crack", "defects/crack/1.jpg", "defects/crack/1.png"),
            ("crack", "defects/crack/2.jpg", "defects/crack/2_mask.png"),
            ("dent", "defects/dent/3.png", "defects/dent/3_GT.png"),
        }
        assert len(found.warnings) == 2
        assert "1.png, 2_mask.png" in found.warnings[0]

    def test_masks_inside_the_folder_of_defects(self, put: Put, tmp_path: Path) -> None:
        for name in ("crack/1.png", "masks/crack/1.png", "dent/2.png", "dent/masks/2.png"):
            put(f"defects/{name}")
        assert described(catalog(tmp_path), tmp_path) == {
            ("crack", "defects/crack/1.png", "defects/masks/crack/1.png"),
            ("dent", "defects/dent/2.png", "defects/dent/masks/2.png"),
        }

    def test_several_masks_of_an_image_in_a_folder_of_its_own(self, put: Put, tmp_path: Path) -> None:
        for name in ("train/good/000", "test/good/000", "test/logical/000", "test/logical/001", "test/logical/002"):
            put(f"loco/{name}.png")
        for name in ("000/000", "000/001", "001/000"):
            put(f"loco/ground_truth/logical/{name}.png")
        found = catalog(tmp_path, "loco", None)
        assert described(found, tmp_path) == {
            ("logical", "loco/test/logical/000.png", "loco/ground_truth/logical/000"),
            ("logical", "loco/test/logical/001.png", "loco/ground_truth/logical/001"),
            ("logical", "loco/test/logical/002.png", None),
        }
        assert found.warnings == (f"{tmp_path}/loco/test: 1 of 3 defect images has no mask (logical/002.png)",)

    def test_one_flat_folder_of_masks_for_categories_that_number_alike_is_an_error(
        self, put: Put, tmp_path: Path
    ) -> None:
        for name, value in (("crack/1", 50), ("dent/1", 60), ("dent/2", 60)):
            put(f"defects/{name}.png", value=value)
        put("masks/1.png")
        for category in (None, "dent"):
            with pytest.raises(
                BadInputError, match=r"masks/1\.png: .*defects/crack/1\.png or of .*defects/dent/1\.png"
            ):
                catalog(tmp_path, category=category)
        put("defects/dent/1.png", value=50)  # the same image in both: it shows both
        assert len({s.mask for s in catalog(tmp_path).images if s.path.name == "1.png"}) == 1

    def test_a_mask_of_two_images_is_an_error(self, put: Put, tmp_path: Path) -> None:
        for name in ("defects/hole/p.png", "defects/hole/p.bmp", "masks/hole/p.png"):
            put(name)
        with pytest.raises(BadInputError, match=r"masks/hole/p\.png: .*hole/p\.bmp or of .*hole/p\.png"):
            catalog(tmp_path)

    def test_missing_and_unused_masks_are_named_once(self, put: Put, tmp_path: Path) -> None:
        for name in ("defects/hole/d0", "defects/hole/d1", "defects/Rust/r", "masks/hole/D0", "masks/hole/d1"):
            put(f"{name}.png")
        put("masks/rust/r.png")
        (line,) = catalog(tmp_path).warnings
        assert line == (
            f"{tmp_path}/defects: 2 of 3 defect images have no mask (Rust/r.png, hole/d0.png); 2 masks belong to no "
            f"image ({tmp_path}/masks/hole/D0.png, {tmp_path}/masks/rust/); upper and lower case count in names"
        )
        assert catalog(tmp_path, category="hole").warnings[0].startswith(f"{tmp_path}/defects: 1 of 2 defect images")

    def test_images_of_which_none_has_a_mask_need_no_word(self, put: Put, tmp_path: Path) -> None:
        put("defects/hole/d0.png")
        assert catalog(tmp_path).warnings == ()

    def test_category_names_of_a_mac(self, put: Put, tmp_path: Path) -> None:
        composed, decomposed = (unicodedata.normalize(form, "Löcher") for form in ("NFC", "NFD"))
        put(f"defects/{decomposed}/1.png")
        put(f"masks/{composed}/1.png")
        for category in (None, composed, decomposed):
            found = catalog(tmp_path, category=category)
            assert found.categories == (composed,)
            assert found.images[1].mask == tmp_path / f"masks/{composed}/1.png"

    def test_two_folders_of_one_name_in_two_unicode_forms(self, put: Put, tmp_path: Path) -> None:
        composed, decomposed = (unicodedata.normalize(form, "Löcher") for form in ("NFC", "NFD"))
        for number, name in enumerate((composed, decomposed)):
            put(f"defects/{name}/{number}.png")
            put(f"masks/{composed}/{number}.png")
        assert all(s.mask is not None for s in catalog(tmp_path).images if s.category != NORMAL)

    def test_masks_that_are_named_otherwise_are_not_trained_on_as_images(self, put: Put, tmp_path: Path) -> None:
        put("defects/hole/p.png")
        put("defects/hole/mask of p.png")
        found = catalog(tmp_path)
        assert [each.path.name for each in found.skipped] == ["mask of p.png"]
        assert "black and white alone, as a mask is" in found.skipped[0].reason
        (tmp_path / "defects/hole/p.png").unlink()  # images that are all black and white are that
        assert [s.path.name for s in catalog(tmp_path).images] == ["a.png", "mask of p.png"]


class TestWarnings:
    @pytest.fixture(autouse=True)
    def _part(self, put: Put) -> None:
        for name in ("normals/a.png", "defects/crack/1.png", "defects/crack/2.png", "masks/crack/1.png"):
            put(name)
        put("masks/crack/2.png")

    def test_good_folders_need_none(self, tmp_path: Path) -> None:
        assert catalog(tmp_path).warnings == ()

    def test_folders_and_files_of_systems_are_passed_over(self, tmp_path: Path) -> None:
        for name in ("defects/__MACOSX/._1.png", "defects/@eaDir/1.png", "masks/crack/._1.png", "normals/desktop.ini"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        found = catalog(tmp_path)
        assert (len(found.images), found.skipped, found.warnings) == (3, (), ())

    def test_inverted_masks(self, tmp_path: Path) -> None:
        mask = np.full((16, 24), 255, np.uint8)
        mask[4:8, 4:10] = 0
        Image.fromarray(mask).save(tmp_path / "masks/crack/2.png")
        (line,) = catalog(tmp_path).warnings
        assert line.startswith(f"{tmp_path}/masks/crack: 1 mask marks 94% of its image")
        assert "(2.png); inverted?" in line

    def test_masks_in_formats_that_are_not_read(self, tmp_path: Path) -> None:
        for path in (tmp_path / "masks/crack").iterdir():
            path.rename(path.with_suffix(".gif"))
        assert catalog(tmp_path).warnings == (
            f"{tmp_path}/masks/crack: 2 images have formats that are not read (1.gif, 2.gif); convert to PNG",
        )

    @pytest.mark.parametrize("folder", ["normals", "defects/crack"])
    def test_formats_that_are_not_read(self, tmp_path: Path, folder: str) -> None:
        for name in ("x.gif", "y.tga"):
            (tmp_path / folder / name).write_bytes(b"x")
        (line,) = catalog(tmp_path).warnings
        assert line == f"{tmp_path / folder}: 2 images have formats that are not read (x.gif, y.tga); convert to PNG"
        for path in (tmp_path / folder).glob("*.png"):
            path.unlink()
        with pytest.raises(BadInputError, match=r"no images; found x\.gif, y\.tga; .*; convert to PNG"):
            catalog(tmp_path)

    def test_transparent_ground(self, tmp_path: Path) -> None:
        pixels = np.full((16, 24, 4), 90, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "normals/b.png")
        (line,) = catalog(tmp_path).warnings
        assert line.startswith(f"{tmp_path}/normals: 1 image is transparent in parts (b.png)")

    @pytest.mark.parametrize(("size", "turn"), [((24, 16), 6), ((16, 16), 8), ((24, 16), 3)])
    def test_an_image_that_exif_turns_and_a_mask_that_it_does_not(
        self, put: Put, tmp_path: Path, size: tuple[int, int], turn: int
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.new("L", size, 90).save(tmp_path / "defects/crack/3.jpg", exif=exif)
        put("masks/crack/3.png", size)
        if turn == 6:
            with pytest.raises(BadInputError, match=r"24x16, but .*3\.jpg is 16x24; the image is turned by its EXIF"):
                catalog(tmp_path)
        else:
            (line,) = catalog(tmp_path).warnings
            assert "1 image is turned by its EXIF orientation, its mask is not (3.jpg)" in line

    def test_catalogs_that_are_merged_say_each_once(self, tmp_path: Path) -> None:
        (tmp_path / "normals/x.gif").write_bytes(b"x")
        one = catalog(tmp_path)
        assert Catalog.of([one, one]).warnings == one.warnings

    def test_names_with_the_signs_of_the_option(self, tmp_path: Path) -> None:
        source = parse_product(f"a=b:c={tmp_path}/normals:{tmp_path}/defects")
        assert (source.product, source.normals) == ("a=b:c", tmp_path / "normals")


def test_a_table_of_labels_with_masks_beside_the_images(put: Put, tmp_path: Path) -> None:
    for name in ("normals/a.png", "defects/1.png", "defects/2_mask.png"):
        put(name)
    Image.new("L", (24, 16), 90).save(tmp_path / "defects/2_mask.png")  # an image, since the table lists it
    put("masks/1_mask.png").rename(tmp_path / "defects/1_mask.png")
    (tmp_path / "defects/labels.csv").write_text("1.png;crack\n1.png;rust\n2_mask.png;rust\n")
    assert described(catalog(tmp_path), tmp_path) == {
        ("crack", "defects/1.png", "defects/1_mask.png"),
        ("rust", "defects/1.png", "defects/1_mask.png"),
        ("rust", "defects/2_mask.png", None),
    }
