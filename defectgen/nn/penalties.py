"""The logistic adversarial loss and the gradient penalties R1 and WGAN-GP, as functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial(logits: Tensor, *, real: bool) -> Tensor:
    """The logistic GAN loss: -log D(x) for `real`, -log(1 - D(x)) otherwise, averaged.

    The generator's non-saturating loss is this loss with `real=True` on its fakes (Goodfellow et al. 2014).

    Args:
        logits: a discriminator's outputs before the sigmoid, any shape.
    """
    return F.softplus(-logits if real else logits).mean()


def r1(logits: Tensor, x: Tensor) -> Tensor:
    """R1: half the squared gradient of D at the real images, averaged over them (Mescheder et al. 2018, eq. 9).

    Args:
        logits: [B], D's outputs for `x`.
        x: [B, C, H, W], real images that require gradients.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """WGAN-GP: the squared difference of the norm of D's gradient from 1, averaged (Gulrajani et al. 2017, eq. 3).

    Args:
        logits: [B], D's outputs for `x`.
        x: [B, C, H, W], random points between reals and fakes, which require gradients.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
