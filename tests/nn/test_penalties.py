import math

import pytest
import torch

from defectgen.nn.penalties import adversarial, r1


def test_adversarial_is_the_cross_entropy_of_the_sigmoid() -> None:
    logits = torch.tensor([-2.0, 0.0, 3.0])
    probability = torch.sigmoid(logits)
    torch.testing.assert_close(adversarial(logits, real=True), -probability.log().mean())
    torch.testing.assert_close(adversarial(logits, real=False), -(1 - probability).log().mean())


def test_adversarial_does_not_overflow() -> None:
    assert adversarial(torch.tensor([-200.0]), real=True).item() == pytest.approx(200)
    assert adversarial(torch.tensor([0.0]), real=True).item() == pytest.approx(math.log(2))


def test_r1_of_a_quadratic() -> None:
    # D(x) = sum of 3 x², so its gradient is 6 x and the penalty half the mean over images of sum (6 x)².
    x = torch.tensor([[[[1.0, 2.0]]], [[[0.0, -1.0]]]], requires_grad=True)
    penalty = r1((3 * x.square()).sum(dim=(1, 2, 3)), x)
    assert penalty.item() == pytest.approx(0.5 * (36 * 5 + 36 * 1) / 2)
    penalty.backward()  # a penalty that D learns from needs a second derivative
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 36 * x.detach() / 2)
