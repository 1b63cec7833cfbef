from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from defectgen.evaluation import downstream
from defectgen.evaluation.data import Example
from defectgen.evaluation.downstream import Classifier, Plan, UNet, judge, scores_of

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
                found.append(Example(pixels[None].astype(np.float32) / 127.5 - 1, mask > 0, label, synthetic))
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
    with pytest.raises(ValueError, match="both kinds"):
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
    assert judge(base, base) == downstream.Verdict("no difference", 0.0, 1.0, 5)
    assert judge([0.75], [0.25]) == downstream.Verdict("no difference", 0.5, None, 1)  # one seed proves nothing
    assert judge([0.9] * 3, [0.8] * 3).p == pytest.approx(0.25)  # no spread: a coin that fell thrice on one side
    assert judge([0.9] * 6, [0.8] * 6).verdict == "helps"


def test_the_gradient_is_reversed_for_the_features_alone() -> None:
    torch.manual_seed(0)
    network, x = Classifier(1, 3), torch.randn(4, 1, 48, 48)
    gradients = {}
    for reversal in (1.0, -1.0):  # -1 turned round is the plain gradient
        network.zero_grad()
        network(x, reversal)[1].sum().backward()
        named = dict(network.named_parameters())
        grads = [named[name].grad for name in ("stem.weight", "source.0.weight")]
        gradients[reversal] = [grad.clone() for grad in grads if grad is not None]
    torch.testing.assert_close(gradients[1.0][0], -gradients[-1.0][0])
    torch.testing.assert_close(gradients[1.0][1], gradients[-1.0][1])


@pytest.mark.parametrize("shape", [(32, 48), (96, 96)])
def test_a_u_net_keeps_the_size(shape: tuple[int, int]) -> None:
    assert UNet(3)(torch.zeros(2, 3, *shape)).shape == (2, 1, *shape)


def test_augmentation_moves_the_mask_with_the_image() -> None:
    mask = np.zeros((16, 16), np.bool_)
    mask[2:5, 3:12] = True
    shapes = set()
    for seed in range(12):
        x, moved = downstream.augmented(np.random.default_rng(seed), mask[None].astype(np.float32) - 0.5, mask)
        assert x[0][moved].min() > x[0][~moved].max()
        shapes.add(moved.tobytes())
    assert len(shapes) == 4


def test_windows_hold_their_defect_and_small_photographs_are_mirrored(
    examples: Callable[..., list[Example]],
) -> None:
    for seed, example in enumerate(examples(0, 4)):
        x, mask = downstream._window(np.random.default_rng(seed), example)
        assert (x.shape, mask.shape) == ((1, 96, 96), (96, 96))
        assert mask.any() == (example.label > 0)
    tiny = Example(np.zeros((1, 20, 200), np.float32), np.zeros((20, 200), np.bool_), 0, synthetic=False)
    assert downstream._window(np.random.default_rng(0), tiny)[0].shape == (1, 96, 96)


def test_defects_of_each_kind_and_category_are_equally_frequent(examples: Callable[..., list[Example]]) -> None:
    real, made = examples(0, 3), [each for each in examples(5, 30, synthetic=True) if each.label == 1]
    drawer = downstream._Drawer([*real, *made], augment=False)
    drawn = [drawer.draw(np.random.default_rng(seed)) for seed in range(1200)]
    assert np.mean([each.label == 0 for each in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([each.synthetic for each in drawn if each.label]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([each.label == 2 for each in drawn if each.label and not each.synthetic]) == pytest.approx(
        0.5, abs=0.1
    )


def test_networks_learn_and_a_seed_decides_them(examples: Callable[..., list[Example]]) -> None:
    train, test, plan = examples(0, 6), examples(100, 4), Plan(steps=25, seeds=1, device=CPU)
    found = []
    for _ in range(2):
        segmenter = downstream.train_segmenter(train, plan, 3, augment=True)
        found.append(downstream.test_segmenter(segmenter, test, CPU))
    assert found[0] == found[1]
    assert found[0]["auc"] > 0.9
    assert found[0]["f1"] > 0.4
    classifier = downstream.train_classifier(train, 3, plan, 3, augment=False)
    assert downstream.test_classifier(classifier, test, CPU)["accuracy"] > 0.6


def test_wrong_labels_hurt(examples: Callable[..., list[Example]]) -> None:
    """Synthetic discs that are called bars, and bars that are called discs, against the real ones alone."""
    train, test, plan = examples(0, 4), examples(100, 12), Plan(steps=30, seeds=3, device=CPU)
    wrong = examples(200, 20, synthetic=True, swapped=True)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for seed, harmed in chain.from_iterable(((seed, False), (seed, True)) for seed in range(plan.seeds)):
        network = downstream.train_classifier([*train, *wrong] if harmed else train, 3, plan, seed, augment=True)
        scores[harmed].append(downstream.test_classifier(network, test, CPU)["accuracy"])
    verdict = judge(scores[True], scores[False])
    assert verdict.difference < -0.1
    assert verdict.verdict == "hurts"
