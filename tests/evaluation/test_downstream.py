from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from defectgen.evaluation import downstream
from defectgen.evaluation.data import Example
from defectgen.evaluation.downstream import Plan, TrainingSet, Verdict, judge, scores_of
from defectgen.evaluation.networks import FineTuned, UNet, build

CPU = torch.device("cpu")
LABELS = {"normal": 0, "bar": 1, "disc": 2}


@pytest.fixture(scope="module")
def examples(draw: Callable[[int, str], Any]) -> Callable[..., list[Example]]:
    def make(first: int, count: int, *, synthetic: bool = False, swapped: bool = False) -> list[Example]:
        found = []
        for seed in range(first, first + count):
            for category, label in LABELS.items():
                pixels, mask = draw(seed, category)
                label = 3 - label if swapped and label else label
                x = pixels[None].astype(np.float32) / 127.5 - 1
                found.append(Example.of(x, mask > 0, label, synthetic=synthetic))
        return [each for each in found if each.label or not synthetic]

    return make


def of(scores: "np.ndarray[Any, Any]", truth: "np.ndarray[Any, Any]") -> dict[str, Any]:
    """The scores of single pixels, counted."""
    levels, index = np.unique(scores, return_inverse=True)
    positive, negative = (np.bincount(index[truth == kind], minlength=len(levels)) for kind in (True, False))
    return scores_of(positive, negative)


def test_scores_by_hand() -> None:
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, False, True, False, False])
    found = of(scores, truth)
    assert found["auc"] == pytest.approx(5 / 6)
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["f1"], found["iou"]) == pytest.approx((0.8, 2 / 3))  # the first three
    assert found["curve"][0] == 1
    assert found["curve"][-1] == pytest.approx(2 / 3, abs=1e-4)


def test_equal_scores_tell_nothing() -> None:
    found = of(np.zeros(10), np.arange(10) < 3)
    assert (found["auc"], found["ap"]) == pytest.approx((0.5, 0.3))
    with pytest.raises(ValueError, match="both positives and negatives"):
        of(np.zeros(4), np.ones(4, np.bool_))


def test_scores_are_those_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 20, 300).astype(float), rng.random(300) < 0.2
    above = scores[truth][:, None] - scores[~truth][None]
    assert of(scores, truth)["auc"] == pytest.approx(float(np.mean((above > 0) + 0.5 * (above == 0))))


def test_verdicts() -> None:
    base = [0.50, 0.55, 0.52, 0.48, 0.51]
    assert judge([each + 0.1 + i / 100 for i, each in enumerate(base)], base).verdict == "helps"
    assert judge([each - 0.1 - i / 100 for i, each in enumerate(base)], base).verdict == "hurts"
    assert judge([0.6, 0.4, 0.55, 0.45, 0.52], base).verdict == "no difference"
    same = judge(base, base)
    assert (same.verdict, same.gain) == ("no difference", 0.0)
    assert same.low == pytest.approx(-2.776 * 0.01 / 5**0.5, abs=1e-5)  # not 0: scores are coarse
    assert judge([0.75], [0.25]) == Verdict("cannot tell", 0.5, None, None, 1)  # one seed proves nothing
    assert judge([1, 0.75], [0.75, 0.75]) == Verdict("cannot tell", 0.125, -1, 1, 2)  # all the gains that there are
    assert judge([0.82] * 3, [0.80] * 3).verdict == "no difference"
    assert judge([0.9] * 3, [0.8] * 3).verdict == "helps"


def test_the_interval_is_students() -> None:
    found = judge([0.6, 0.7, 0.8], [0.5, 0.5, 0.5])  # differences .1, .2, .3: t = 4.303 for two degrees of freedom
    assert found.gain == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert found.high == pytest.approx(0.2 + 4.3027 * 0.1 / 3**0.5, abs=1e-4)


@pytest.mark.parametrize("kind", ["scratch", "fine-tuned"])
def test_the_gradient_is_reversed_for_the_features_alone(kind: Any) -> None:
    torch.manual_seed(0)
    network: Any = build(kind, 3)
    x = torch.randn(4, 1, 64, 64)
    network.requires_grad_(True)
    inner = network.classifier if kind == "scratch" else network.encoder
    gradients = {}
    for reversal in (1.0, -1.0):  # -1 turned round is the plain gradient
        network.zero_grad()
        network(x, reversal)[2].sum().backward()
        named = dict(inner.named_parameters())
        source = dict(network.named_parameters())[f"{'classifier.' * (kind == 'scratch')}source.0.weight"]
        gradients[reversal] = [each.grad.clone() for each in (named["stem.weight"], source) if each.grad is not None]
    torch.testing.assert_close(gradients[1.0][0], -gradients[-1.0][0])
    torch.testing.assert_close(gradients[1.0][1], gradients[-1.0][1])


def test_only_the_later_blocks_are_fine_tuned() -> None:
    network = FineTuned(3)
    trained = {id(parameter) for group in network.groups(1e-3) for parameter in group["params"]}
    assert id(network.encoder.stem.weight) not in trained
    last: Any = network.encoder.blocks[15]
    assert id(last.project.weight) in trained
    assert id(network.head.weight) in trained
    assert network.groups(1e-3)[0]["lr"] < network.groups(1e-3)[1]["lr"]
    logits, pixels, source = network(torch.zeros(2, 3, 64, 96))
    assert (logits.shape, pixels.shape, source.shape) == ((2, 3), (2, 3, 64, 96), (2,))


@pytest.mark.parametrize("shape", [(32, 48), (96, 96)])
def test_a_u_net_keeps_the_size(shape: tuple[int, int]) -> None:
    assert UNet(3, 2)(torch.zeros(2, 3, *shape)).shape == (2, 2, *shape)


def test_augmentation_moves_the_mask_with_the_image() -> None:
    mask = np.zeros((16, 16), np.bool_)
    mask[2:5, 3:12] = True
    shapes = set()
    for seed in range(12):
        x, moved = downstream.augmented(np.random.default_rng(seed), mask[None].astype(np.float32) - 0.5, mask)
        assert x[0][moved].min() > x[0][~moved].max()
        shapes.add(moved.tobytes())
    assert len(shapes) == 4


def test_windows_hold_their_defect_and_small_images_are_mirrored(examples: Callable[..., list[Example]]) -> None:
    for seed, example in enumerate(examples(0, 4)):
        x, mask = downstream.window(np.random.default_rng(seed), example)
        assert (x.shape, mask.shape) == ((1, 128, 128), (128, 128))
        assert mask.any() == (example.label > 0)
    tiny = Example.of(np.zeros((1, 20, 200), np.float32), np.zeros((20, 200), np.bool_), 0)
    assert downstream.window(np.random.default_rng(0), tiny)[0].shape == (1, 128, 128)


def test_windows_of_normals_show_the_edges_of_images_as_often_as_those_of_defects() -> None:
    """Otherwise an edge by itself is a sign of a defect, and networks find defects at the edges of normals."""
    x = np.zeros((1, 300, 300), np.float32)
    x[:, [0, -1]] = x[:, :, [0, -1]] = 1
    shares = []
    for label in (0, 1):
        at_edge = []
        for seed in range(300):
            mask = np.zeros((300, 300), np.bool_)
            if label:
                mask[tuple(np.random.default_rng(seed).integers(300, size=2))] = True  # anywhere
            at_edge.append(downstream.window(np.random.default_rng([1, seed]), Example.of(x, mask, label))[0].any())
        shares.append(np.mean(at_edge))
    assert shares[0] == pytest.approx(shares[1], abs=0.08)
    assert shares[0] > 0.5


def test_a_large_defect_is_half_of_the_time_shown_whole() -> None:
    mask = np.zeros((400, 500), np.bool_)
    mask[100:300, 100:400] = True
    x = np.where(mask, np.float32(1), np.float32(-1))[None]
    large = Example.of(x, mask, 1)
    shares = [downstream.window(np.random.default_rng(seed), large)[1].mean() for seed in range(60)]
    whole = [share for share in shares if abs(share - 200 * 300 / (300 * 1.2) ** 2) < 0.02]
    assert 15 <= len(whole) <= 45


def test_half_are_defects_and_of_these_a_share_is_synthetic(examples: Callable[..., list[Example]]) -> None:
    real, made = examples(0, 3), [each for each in examples(5, 30, synthetic=True) if each.label == 1]
    drawer = downstream.Drawer(TrainingSet(real, made, 0.25))
    drawn = [drawer.draw(np.random.default_rng(seed)) for seed in range(1200)]
    assert np.mean([each.label == 0 for each in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([each.synthetic for each in drawn if each.label]) == pytest.approx(0.25, abs=0.06)
    of_real = [each.label == 2 for each in drawn if each.label and not each.synthetic]
    assert np.mean(of_real) == pytest.approx(0.5, abs=0.1)
    normals = [each for each in real if not each.label]
    alone = downstream.Drawer(TrainingSet(normals, made, 1.0))
    assert all(alone.draw(np.random.default_rng(seed)).label in (0, 1) for seed in range(50))


def test_mixing_moves_images_masks_and_classes_together() -> None:
    """MixUp, CutMix and CutOut of images that are 1 on their masks: wherever the mask says so, the image does."""
    x = torch.zeros(4, 1, 32, 32)
    x[:2, :, 8:24, 8:24] = 1.0
    mask, weights = x.clone(), torch.eye(2)[[1, 1, 0, 0]]
    kinds = set()
    for seed in range(24):
        mixed, its_mask, its_weights = downstream.mixed(np.random.default_rng(seed), x, mask, weights)
        torch.testing.assert_close(mixed, its_mask)
        torch.testing.assert_close(its_weights.sum(dim=1), torch.ones(4))
        cut_out = torch.equal(its_weights, weights)
        kinds.add("out" if cut_out else "up" if 0 < float(its_mask.amax(dim=(1, 2, 3)).min()) < 1 else "mix")
    assert len(kinds) >= 2
    torch.testing.assert_close(x[:2, 0, 8:24, 8:24], torch.ones(2, 16, 16))  # what came in is as it was


def test_the_segmenter_cannot_die() -> None:
    """A network whose hidden pixels are all far below zero still learns. With ReLU it segmented nothing for good."""
    network = FineTuned(3)
    hidden = network.out[1]
    assert isinstance(hidden, torch.nn.Conv2d)
    assert hidden.bias is not None
    torch.nn.init.constant_(hidden.bias, -4.0)
    network(torch.rand(1, 1, 64, 64))[1].sum().backward()
    assert hidden.weight.grad is not None
    assert (hidden.weight.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert network(torch.rand(1, 1, 64, 64))[1][:, 0].mean().sigmoid() < 0.1  # few pixels are defective


@pytest.mark.parametrize("kind", ["fine-tuned", "scratch"])
def test_networks_learn_and_a_seed_decides_them(examples: Callable[..., list[Example]], kind: Any) -> None:
    training, held_out = TrainingSet(examples(0, 6)), examples(100, 5)

    def scores(steps: int) -> dict[str, Any]:
        network = downstream.train(training, 3, Plan(steps=steps, device=CPU, kind=kind), 3)
        return downstream.test(network, held_out, ["bar", "disc"], CPU)

    first = scores(3)
    assert first == scores(3)
    assert set(first["categories"]) == {"bar", "disc"}
    assert 0 <= first["categories"]["bar"]["recall"] <= 1
    if kind == "fine-tuned":
        learned = scores(25)
        assert learned["balanced_accuracy"] > 0.6
        assert learned["auroc"] > 0.8
        assert learned["ap"] > 0.3


def test_the_source_loss_is_of_defects_alone(examples: Callable[..., list[Example]]) -> None:
    """Normals are all real: to hide the source there would pull defects towards normals."""
    normals = [each for each in examples(0, 4) if not each.label]
    rows = downstream.batch(
        np.random.default_rng(0), downstream.Drawer(TrainingSet(examples(0, 3), examples(9, 3, synthetic=True), 0.5)),
        "none", 3,
    )  # fmt: skip
    labels, source = rows[2].argmax(dim=1), rows[3]
    assert ((labels == 0) == (source == -1)).all()
    plain, hidden = Plan(1, CPU, "scratch"), Plan(1, CPU, "scratch", reversal=True)
    network = build("scratch", 3)
    none = (rows[0], rows[1], rows[2], torch.full_like(rows[3], -1.0))
    torch.testing.assert_close(
        downstream._loss(network, none, plain, 1.0), downstream._loss(network, none, hidden, 1.0)
    )
    assert downstream._loss(network, rows, hidden, 1.0) > downstream._loss(network, rows, plain, 1.0)
    assert len(normals) == 4


def test_what_is_taken_for_another_category_does_not_count_against_one() -> None:
    """Bright squares are discs, dark ones bars, and a normal has a bright square, too."""

    def network(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x[:, 0]
        pixels = torch.stack([20 * x.abs() - 10, -10 * x, 10 * x], dim=1)
        return torch.eye(3)[:1], pixels, torch.zeros(1)

    def image(level: float, label: int) -> Example:
        x, mask = np.zeros((1, 64, 64), np.float32), np.zeros((64, 64), np.bool_)
        x[:, 20:30, 20:30] = level
        mask[20:30, 20:30] = label > 0
        return Example.of(x, mask, label)

    examples = [image(-1, 1), image(1, 2), image(1, 0)]
    found = downstream.test(network, examples, ["bar", "disc"], CPU)  # type: ignore[arg-type]
    of = found["categories"]
    assert (of["bar"]["ap"], of["bar"]["auroc"]) == (pytest.approx(1.0), 1.0)
    assert (of["disc"]["ap"], of["disc"]["auroc"]) == (pytest.approx(0.5), 0.5)  # as many pixels of the normal
    assert found["mean_ap"] == pytest.approx(0.75)
    assert found["ap"] == pytest.approx(2 / 3)  # a third of all squares is on the normal
    ((index, y, x, logit),) = found["alarms"]
    assert (index, logit) == (2, 10)
    assert {y, x} <= set(range(20, 30))


def test_the_categories_of_pixels_are_learned_in_windows_of_equal_weight() -> None:
    masks, weights = torch.zeros(2, 2, 32, 32), torch.eye(3)[1:]
    masks[0, 0, :20, :20], masks[1, 1, :8, :8] = 1, 1
    pixels = torch.zeros(2, 3, 32, 32, requires_grad=True)

    def network(x: torch.Tensor, reversal: float) -> tuple[torch.Tensor, ...]:
        return torch.zeros(2, 3), pixels, torch.zeros(2)

    rows = torch.zeros(2, 1, 32, 32), masks, weights, torch.zeros(2)
    downstream._loss(network, rows, Plan(1, CPU), 0.5).backward()  # type: ignore[arg-type]
    assert pixels.grad is not None
    of_category = pixels.grad[:, 1:]
    assert (of_category[:, 0] == -of_category[:, 1]).all()
    assert (of_category[masks > 0] < 0).all()  # more of the right one
    assert (of_category[:, 0][masks.sum(dim=1) == 0] == 0).all()  # where there is no defect, there is no category
    of_windows = of_category[:, 0].sum(dim=(1, 2))
    assert of_windows[0] == pytest.approx(-float(of_windows[1]), rel=0.02)


def test_wrong_labels_hurt(examples: Callable[..., list[Example]]) -> None:
    """Synthetic discs that are called bars, and bars that are called discs, against the real ones alone."""
    real, wrong = examples(0, 4), examples(200, 20, synthetic=True, swapped=True)
    plan, held_out = Plan(steps=12, device=CPU), examples(100, 6)
    scores: dict[float, list[float]] = {0.0: [], 0.9: []}
    for seed in range(3):
        for share, found in scores.items():
            network = downstream.train(TrainingSet(real, wrong, share), 3, plan, seed)
            found.append(downstream.test(network, held_out, ["bar", "disc"], CPU)["balanced_accuracy"])
    verdict = judge(scores[0.9], scores[0.0])
    assert verdict.gain < -0.1
    assert verdict.verdict == "hurts"
