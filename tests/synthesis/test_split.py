from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectgen.dataset import Sample
from defectgen.folders import Catalog, SourceImage, read_defects, read_normals
from defectgen.imaging.images import encode_png
from defectgen.synthesis.pasted import ComposeRequest, CutoutSamples, Placement, compose
from defectgen.synthesis.split import Photographs, Split
from defectgen.synthesis.stream import SampleSpec


@pytest.mark.parametrize("val", [0.1, 0.2, 1 / 3, 0.5])
def test_validation_samples_are_a_share_evenly_spread(val: float) -> None:
    held = [Split(val).holds_out(number) for number in range(300)]
    for count in range(1, 301):
        assert abs(sum(held[:count]) - val * count) <= 0.5 + 1e-9
    assert not held[0]


def image(name: str, category: str, product: str = "p") -> SourceImage:
    return SourceImage(
        path=Path(name), mask=None, category=category, product=product, height=1, width=1, channels=1, depth=8
    )


@pytest.mark.parametrize("categories", range(1, 13))
@pytest.mark.parametrize("each", [1, 2, 3, 12])
def test_photographs_are_on_one_side_and_each_category_on_both(categories: int, each: int) -> None:
    images = [image(f"{c}-{i}", f"c{c:02}") for c in range(categories) for i in range(each)]
    divided = Photographs(images, Split(0.2), lambda one: one.category, str)
    train, val = set(divided.of(False)), set(divided.of(True))
    if each == 1:
        assert divided.shared == tuple(f"c{c:02}" for c in range(categories))
        assert train == val == set(images)
        return
    assert divided.shared == ()
    assert not train & val
    assert train | val == set(images)
    wanted = max(1, round(0.2 * each))
    assert Counter(one.category for one in val) == {f"c{c:02}": wanted for c in range(categories)}


def test_a_photograph_of_two_categories_or_two_files_is_on_one_side() -> None:
    images = [image(f"{i}.png", category) for category in ("a", "b") for i in range(5)]
    images += [image("copies/3.png", "a")]
    for val in (0.2, 0.5):
        divided = Photographs(images, Split(val), lambda one: one.category, lambda path: path.name)
        train, held = ({one.path.name for one in divided.of(side)} for side in (False, True))
        assert not train & held
        assert {one.category for one in divided.of(True)} == {one.category for one in divided.of(False)} == {"a", "b"}


@pytest.mark.parametrize("known", [{}, {"a3": True}, {"a3": False, "a7": False}])
def test_photographs_of_an_earlier_run_stay_on_their_side(known: dict[str, bool]) -> None:
    """Also if others are added, and without others the division is the same."""
    images = [image(f"a{i}", "a") for i in range(10)]
    first = Photographs(images, Split(0.2, known=known), lambda one: one.category, str)
    sides = {one.path.name: side for side in (False, True) for one in first.of(side)}
    assert {name: sides[name] for name in known} == known
    for part in ({**dict(list(sides.items())[::2]), **known}, sides):
        again = Photographs(images, Split(0.2, known=part), lambda one: one.category, str)
        assert (again.of(True), again.of(False)) == (first.of(True), first.of(False))
        more = Photographs([image(f"0{i}", "a") for i in range(9)] + images, Split(0.2, known=part), lambda _: "a", str)
        now = {one.path.name: side for side in (False, True) for one in more.of(side)}
        assert {name: now[name] for name in part} == part
        assert len(more.of(True)) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve categories of five dark discs each, one of a single one, and nine normals."""
    root = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    for category in range(13):
        for i in range(5 if category < 12 else 1):
            surface, mask = rng.integers(96, 104, (40, 44), np.uint8), np.zeros((40, 44), np.uint8)
            cv2.circle(mask, (20, 20), 4 + i % 2, 255, -1)
            surface[mask > 0] = 30
            for kind, pixels in (("defects", surface), ("masks", mask)):
                path = root / kind / f"c{category:02}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(pixels))
    (root / "normals").mkdir()
    for i in range(9):
        (root / f"normals/{i}.png").write_bytes(encode_png(rng.integers(96, 104, (40, 44), np.uint8)))
    return root


Make = Callable[..., CutoutSamples]


@pytest.fixture(scope="module")
def samples_of(folder: Path) -> Make:
    defects, normals = read_defects(folder / "defects"), read_normals(folder / "normals")

    def make(categories: int | tuple[str, ...], num: int, normals: Catalog = normals, **spec: object) -> CutoutSamples:
        names = tuple(f"c{c:02}" for c in range(categories)) if isinstance(categories, int) else categories
        wanted = SampleSpec(names, num, normals, split=Split(0.2))
        request = ComposeRequest(replace(wanted, **spec), defects, "d", Placement(per_image=(1, 2)))  # type: ignore[arg-type]
        return compose(request)

    return make


def sources(samples: list[Sample]) -> tuple[set[str], set[str]]:
    """The normals and the real defects that samples are made of, by their SHA-256."""
    normals = {str(sample.provenance.source_sha256) for sample in samples}
    return normals, set().union(*(sample.provenance.used_photographs for sample in samples)) - normals


@pytest.mark.parametrize("categories", [1, 2, 5, 12])
def test_samples_of_both_sides_share_no_photograph(samples_of: Make, categories: int) -> None:
    """Also those of two cut-outs joined, and with many samples for each normal."""
    stream = samples_of(categories, 10 * categories)
    made = list(stream)
    train, val = ([each for each in made if each.validates is side] for side in (False, True))
    for one, other in zip(sources(train), sources(val), strict=True):
        assert one
        assert other
        assert not one & other
    assert Counter(each.category for each in val) == {f"c{c:02}": 2 for c in range(categories)}
    assert stream.warnings == []


def test_the_split_of_a_sample_is_the_same_in_any_run(samples_of: Make) -> None:
    whole = {each.index: each for each in samples_of(3, 24)}
    part = {each.index: each for each in samples_of(3, 30, skip=frozenset(range(12)))}
    for index in range(12, 24):
        assert whole[index].validates == part[index].validates
        np.testing.assert_array_equal(whole[index].image, part[index].image)


@pytest.mark.parametrize("categories", [1, 3, 5])
@pytest.mark.parametrize("val", [0.05, 0.2, 0.7])
def test_replacements_are_of_the_side_that_they_complete(categories: int, val: float) -> None:
    """Also where all of a side are rejected, in any number of rounds, and when the dataset grows."""
    names, num = tuple(f"c{i}" for i in range(categories)), 20 * categories
    spec = SampleSpec(names, num, Catalog(images=(), skipped=()), split=Split(val))

    def sides(indices: Iterable[int]) -> Counter[tuple[str, bool]]:
        return Counter((spec.category(index), spec.validates(index)) for index in indices)

    whole, rng = sides(range(num)), np.random.default_rng(0)
    assert all(whole[name, side] for name in names for side in (False, True))
    rejected = {index for index in range(num) if spec.validates(index)}
    for _ in range(3):
        now = replace(spec, rejected=frozenset(rejected)).indices
        assert sides(now) == whole
        assert not rejected & set(now)
        assert set(now) - set(range(num)) <= set(replace(spec, num=10**3, rejected=frozenset(rejected)).indices)
        rejected |= set(rng.permutation(now)[: num // 3].tolist())


def test_few_samples_are_for_training(samples_of: Make) -> None:
    assert [each.validates for each in samples_of(3, 4)] == [False] * 4


def test_single_photographs_are_named_in_one_line(samples_of: Make, folder: Path) -> None:
    one = read_normals(folder / "normals")
    stream = samples_of(("c12", "c00"), 10, one.model_copy(update={"images": one.images[:1]}))
    made = list(stream)
    assert any(each.validates for each in made)
    normals, defects = stream.warnings
    assert normals == "product: a single photograph of normals, so samples for training and validation share it"
    assert defects.startswith("c12: a single photograph of defects")
    assert [normal.validates for normal in stream.normals()] == [False]


def test_testing_takes_normals_of_its_own(samples_of: Make) -> None:
    """For a detector that learns normals alone: all samples are for testing, on normals that it has not seen."""
    stream = samples_of(2, 8, split=Split(0.2, only_normals=True))
    made = list(stream)
    assert all(each.validates for each in made)
    assert [normal.validates for normal in stream.normals()].count(True) == 2
    seen = [normal.read().tobytes() for normal in stream.normals() if not normal.validates]
    assert len(seen) == 7
    assert len(sources(made)[0]) <= 2


def test_without_a_split_nothing_changes(samples_of: Make) -> None:
    divided, plain = samples_of(2, 10), samples_of(2, 10, split=None)
    assert not any(each.validates for each in plain)
    assert not any(normal.validates for normal in plain.normals())
    assert [each.index for each in divided] == [each.index for each in plain]


def test_pieces_know_their_defect(samples_of: Make) -> None:
    for made in samples_of(1, 8):
        count = len(made.provenance.parameters.defects)
        assert (made.numbers is None) == (count == 1)
        if made.numbers is not None:
            np.testing.assert_array_equal(made.numbers > 0, made.mask)
            assert set(np.unique(made.numbers)) == set(range(count + 1))
