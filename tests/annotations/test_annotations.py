"""Which files are annotations, of which images, and what is said about those that nobody asked for."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.annotations import beside
from defectgen.errors import BadInputError, UsageError, UserError
from defectgen.folders import NORMAL, ProductFolders, read_catalog, read_defects, read_normals
from defectgen.marking import Marking
from tests.fuzz import mutations

Fixture = Callable[..., Any]
ROW = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
LABELME = json.dumps({
    "version": "5.4.1", "shapes": [{"label": "crack", "points": [[2, 3], [9, 3], [9, 8]], "shape_type": "polygon"}],
    "imagePath": "", "imageHeight": 30, "imageWidth": 40,
})  # fmt: skip
CVAT = (
    '<annotations><image name="a.png" width="40" height="30"><box label="crack" xtl="1" ytl="2" xbr="9" ybr="9"/>'
    '<mask label="dent" rle="3, 9" left="2" top="3" width="4" height="3"/></image></annotations>'
)
VOC = (
    "<annotation><filename>a.png</filename><object><name>crack</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


@contextmanager
def noted(errors: list[str]) -> Iterator[None]:
    """Adds the error of the block, if any, to a list."""
    try:
        yield
    except UserError as error:
        errors.append(str(error))
        raise


def coco(*images: tuple[str, bool], size: tuple[int, int] = (30, 40)) -> str:
    """Images by name, and whether they have a defect."""
    return json.dumps({
        "images": [{"id": i, "file_name": n, "height": size[0], "width": size[1]} for i, (n, _) in enumerate(images)],
        "annotations": [
            {"image_id": i, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
            for i, (_, defective) in enumerate(images)
            if defective
        ],
        "categories": [{"id": 1, "name": "crack"}],
    })  # fmt: skip


class TestOneFolder:
    """Defects and normals in one folder, told apart by annotations."""

    @pytest.fixture
    def folder(self, tmp_path: Path, photo: Fixture, save: Fixture) -> Path:
        for name in ("a", "b", "free", "unknown"):
            photo(tmp_path / f"photos/{name}.png")
        save(tmp_path / "some.json", coco(("a.png", True), ("b.png", True), ("free.png", False), ("gone.png", True)))
        return tmp_path

    def test_normals_are_those_that_are_listed_as_free(self, folder: Path) -> None:
        photos, marking = folder / "photos", Marking(folder / "some.json")
        for defects in (photos, None):
            source = ProductFolders(product="p", normals=photos, defects=defects, marking=marking)
            catalog = read_catalog([source])
            assert {(image.path.stem, image.category) for image in catalog.images} == {
                ("a", "crack"), ("b", "crack"), ("free", NORMAL),
            }  # fmt: skip
            assert catalog.warnings == (
                f"{photos}: 1 image has no annotation (unknown.png); left out",
                f"{folder}/some.json: 1 annotated image is not in {photos} (gone.png)",
            )

    def test_free_images_are_no_normals_unless_given(self, folder: Path, photo: Fixture) -> None:
        photo(folder / "good/g.png")
        marking = Marking(folder / "some.json")
        catalog = read_catalog(
            [ProductFolders(product="p", normals=folder / "good", defects=folder / "photos", marking=marking)]
        )
        assert [image.path.stem for image in catalog.images if image.category == NORMAL] == ["g"]
        assert any("1 image is annotated as free of defects (free.png); left out" in line for line in catalog.warnings)

    def test_normals_with_annotated_defects_are_left_out(self, folder: Path) -> None:
        catalog = read_normals(folder / "photos", marking=Marking(folder / "some.json"))
        assert [image.path.stem for image in catalog.images] == ["free", "unknown"]
        (line,) = catalog.warnings
        assert "2 images have annotated defects (a.png, b.png); left out of the normals" in line

    def test_normals_named_as_defects_are_normals(self, folder: Path, photo: Fixture) -> None:
        photo(folder / "good/a.png")
        catalog = read_normals(folder / "good", marking=Marking(folder / "some.json"), defects=folder / "photos")
        assert len(catalog.images) == 1

    def test_normals_inside_the_defects_are_not_asked_for_annotations(self, folder: Path, photo: Fixture) -> None:
        photo(folder / "photos/good/g.png")
        marking = Marking(folder / "some.json")
        catalog = read_defects(folder / "photos", normals=folder / "photos/good", marking=marking)
        assert not any("g.png" in line for line in catalog.warnings)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": ROW, "b.json": LABELME}, "holds YOLO txt and LabelMe JSON; give the file, or a folder of one"),
        ({"notes.txt": "hello\n", "package.json": '{"name": 1}'}, "no annotations; formats that are read: LabelMe"),
        ({"x.json": coco(("other.png", True))}, "annotates none of its images; it names other.png, the folder has a"),
        ({"x.json": coco(("a.png", False))}, "marks no defect on its images"),
        ({"x.json": coco(("a.png", True), size=(9, 9))}, "is of an image of 9x9 pixels, but this one has 40x30"),
        ({"a.json": LABELME.replace("crack", NORMAL)}, "the label 'normal' is reserved"),
    ],
)
def test_annotations_that_cannot_be_used(
    tmp_path: Path, photo: Fixture, save: Fixture, files: dict[str, str], message: str
) -> None:
    photo(tmp_path / "photos/a.png")
    for name, text in files.items():
        save(tmp_path / "given" / name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_defects(tmp_path / "photos", marking=Marking(tmp_path / "given"))
    assert "\n" not in str(caught.value)


def test_wrong_options(tmp_path: Path, photo: Fixture, save: Fixture) -> None:
    photo(tmp_path / "a.png")
    marking = Marking(save(tmp_path / "x.json", coco(("a.png", True))))
    with pytest.raises(UsageError, match=r"--category dent: .*x\.json has crack"):
        read_defects(tmp_path, marking=marking, categories=["dent"])
    with pytest.raises(UsageError, match="--annotations replaces --masks"):
        read_defects(tmp_path, marking=marking, masks=tmp_path)
    with pytest.raises(BadInputError, match="no such file or folder"):
        read_defects(tmp_path, marking=Marking(tmp_path / "gone"))


def test_a_box_of_most_of_the_image_may_be_inverted(tmp_path: Path, photo: Fixture, save: Fixture) -> None:
    photo(tmp_path / "a.png")
    save(tmp_path / "a.txt", "0 0.5 0.5 0.9 0.9\n")
    lines = read_defects(tmp_path, marking=Marking(tmp_path / "a.txt")).warnings
    assert any("(a.png); inverted?" in line for line in lines)


class TestBeside:
    """Files of annotations that are not read, since nobody gave them."""

    @pytest.mark.parametrize(
        ("name", "text", "place", "kind"),
        [
            ("photos/a.json", LABELME, "photos", "LabelMe JSON"),
            ("photos/a.txt", ROW, "photos", "YOLO txt"),
            ("photos/a.xml", VOC, "photos", "Pascal VOC XML"),
            ("photos/all.xml", CVAT, "photos", "CVAT XML"),
            ("photos/all.json", coco(("a.png", True)), "photos", "COCO JSON"),
            ("labels/a.txt", ROW, "labels", "YOLO txt"),
            ("annotations/instances.json", coco(("a.png", True)), "annotations", "COCO JSON"),
        ],
    )
    def test_each_format_in_its_place(
        self, tmp_path: Path, photo: Fixture, save: Fixture, name: str, text: str, place: str, kind: str
    ) -> None:
        photo(tmp_path / "photos/a.png")
        save(tmp_path / name, text)
        line = f"{tmp_path / place}: 1 {kind} file lies beside the images, not read; "
        line += f"to use it, give --annotations {tmp_path / place} "
        line += "to train, compose, transfer, inspect --labels or evaluate"
        assert beside([tmp_path / "photos"]) == [line]
        assert read_normals(tmp_path / "photos").warnings == (line,)
        assert line in read_defects(tmp_path / "photos", masked=False).warnings
        with pytest.raises(BadInputError, match=f"have no mask .*; {line}"):
            read_defects(tmp_path / "photos")

    def test_where_yolo_and_cvat_have_them(self, tmp_path: Path, photo: Fixture, save: Fixture) -> None:
        photo(tmp_path / "images/train/a.png")
        save(tmp_path / "labels/train/a.txt", ROW)
        assert f"give --annotations {tmp_path}/labels/train" in beside([tmp_path / "images/train"])[0]
        photo(tmp_path / "task/images/a.png")
        save(tmp_path / "task/annotations.xml", CVAT)
        assert "1 CVAT XML file lies" in beside([tmp_path / "task/images"])[0]

    def test_several_are_counted(self, tmp_path: Path, photo: Fixture, save: Fixture) -> None:
        for name in "abc":
            photo(tmp_path / f"{name}.png")
            save(tmp_path / f"{name}.json", LABELME)
        save(tmp_path / "b.txt", ROW)
        (line,) = beside([tmp_path])
        assert ": 3 LabelMe JSON files and 1 YOLO txt file lie beside the images, not read; to use them" in line

    def test_other_files_are_nothing_to_mention(self, tmp_path: Path, photo: Fixture, save: Fixture) -> None:
        photo(tmp_path / "a.png")
        save(tmp_path / "classes.txt", "crack\n")
        save(tmp_path / "notes.txt", "the images of Monday\n")
        save(tmp_path / "elsewhere.txt", ROW)
        save(tmp_path / "report.json", {"images": 3, "annotations": "none"})
        save(tmp_path / "page.xml", "<page/>")
        assert beside([tmp_path]) == []


@pytest.mark.parametrize(("name", "text"), [("a.json", LABELME), ("x.json", coco(("a.png", True))), ("a.txt", ROW),
                                            ("x.xml", CVAT), ("a.xml", VOC)])  # fmt: skip
def test_damage_ends_in_an_error_of_one_line(
    tmp_path: Path, photo: Fixture, save: Fixture, name: str, text: str
) -> None:
    photo(tmp_path / "photos/a.png")
    path = save(tmp_path / name, text)
    read_defects(tmp_path / "photos", marking=Marking(path))
    errors: list[str] = []
    for damaged in mutations(text.encode(), 60):
        path.write_bytes(damaged)
        with suppress(UserError), noted(errors):
            read_defects(tmp_path / "photos", marking=Marking(path))
    assert errors
    assert not any("\n" in error for error in errors)


def test_reading_is_the_same_in_any_order_of_files(tmp_path: Path, photo: Fixture, save: Fixture) -> None:
    for name in np.random.default_rng(0).permutation(list("abcde")):
        photo(tmp_path / f"{name}.png")
        save(tmp_path / f"{name}.json", LABELME)
    images = read_defects(tmp_path, marking=Marking(tmp_path)).images
    assert [image.path.stem for image in images] == list("abcde")
