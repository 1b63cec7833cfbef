import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

from defectgen.errors import UsageError
from defectgen.methods import info
from defectgen.methods.base import Batch, GenerateBatch, Task
from defectgen.methods.isu_gan import (
    ISUGAN,
    Discriminator,
    Generator,
    Involution,
    ISUGANConfig,
    SqueezeExcitation,
    difference_loss,
    gan_d_loss,
    gan_g_loss,
    ssim,
)
from defectgen.nn.paired import soft

CPU = torch.device("cpu")
CONFIG = ISUGANConfig(image_size=32, width=16, blocks=2, involution_kernel=3, batch_size=2, steps=100, lr=3e-3)
TASK = Task(domains=("normal", "defect"), products=("a",), channels=1, scales={"a": {"defect": 1.0}})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def surfaces(count: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 1, 6, 6, generator=generator(seed)) * 1.2 - 0.6
    return F.interpolate(coarse, size=32, mode="bicubic").clamp(-1, 1)


def batch(seed: int = 0, count: int = 4, *, masks: bool = True) -> Batch:
    """Normals, and defective windows with a black bar, their masks and twins, and a bar asked for on the normals."""
    p, n_p = surfaces(count, seed), surfaces(count, seed + 500)
    n, a_n = n_p.clone(), torch.zeros_like(n_p)
    for i in range(count):
        row = int(torch.randint(4, 26, (1,), generator=generator(seed + i)))
        a_n[i, :, row : row + 3, 6:26] = 1
    n[a_n > 0] = -1
    zeros, ones = torch.zeros(count).long(), torch.ones(count).long()
    if not masks:
        everywhere = torch.ones_like(a_n)
        return Batch(p, zeros, zeros, n, ones, zeros, everywhere, everywhere, n, torch.zeros(count))
    return Batch(p, zeros, zeros, n, ones, zeros, a_n, a_n.roll(1, dims=0), n_p, torch.ones(count))


def built(config: ISUGANConfig) -> ISUGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ISUGAN(config, TASK, CPU)


@pytest.fixture
def method() -> ISUGAN:
    return built(CONFIG)


# Parts


@pytest.mark.parametrize("kernel", [3, 7])
def test_involution_is_its_definition(kernel: int) -> None:
    """Against unfolding, with a kernel for each pixel (Li et al. 2021, algorithm 1)."""
    layer = Involution(32, kernel)
    x = torch.randn(2, 32, 9, 11, generator=generator())
    with torch.no_grad():
        ours = layer(x)
        kernels = layer.w2(F.relu(layer.norm(layer.w1(x)))).view(2, 2, 1, kernel**2, 9, 11)
        patches = F.unfold(x, kernel, padding=kernel // 2).view(2, 2, 16, kernel**2, 9, 11)
    torch.testing.assert_close(ours, (kernels * patches).sum(dim=3).view(2, 32, 9, 11), atol=1e-5, rtol=1e-4)


def test_the_gradients_of_involution_are_those_of_finite_differences() -> None:
    layer = Involution(16, 3).double()
    x = torch.randn(2, 16, 3, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(layer, {"w2.weight": weight}, x.detach()),
        layer.w2.weight.detach().clone().requires_grad_(),
        fast_mode=True,
    )


def test_squeeze_and_excitation_scales_channels_between_0_and_1() -> None:
    layer = SqueezeExcitation(16)
    x = torch.rand(2, 16, 5, 7, generator=generator()) + 0.1
    with torch.no_grad():
        factor = layer(x) / x
        y = x.mean(dim=(2, 3))
        by_hand = torch.sigmoid(layer.w2(F.relu(layer.w1(y[:, :, None, None]))))
    torch.testing.assert_close(factor, by_hand.expand_as(factor))
    assert factor.min() > 0
    assert factor.max() < 1


@pytest.mark.parametrize("shape", [(32, 32), (61, 50), (33, 64), (17, 16)])
def test_the_generator_keeps_any_size(shape: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *shape, generator=generator()).clamp(-1, 1)
    y, _ = Generator(CONFIG, channels=3)(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1


def test_the_generator_is_figure_2() -> None:
    g = Generator(ISUGANConfig(), channels=1)
    count = {kind: sum(isinstance(m, kind) for m in g.modules()) for kind in (SqueezeExcitation, Involution)}
    assert count == {SqueezeExcitation: 4, Involution: 2}
    assert sum(type(m).__name__ == "ResidualBlock" for m in g.modules()) == 9
    assert [m.kernel_size for m in g.modules() if isinstance(m, torch.nn.ConvTranspose2d)] == [(4, 4)] * 3
    assert g.filter1.w2.out_channels == 64
    assert g.filter3.w2.out_channels == 256
    d = Discriminator(ISUGANConfig(), channels=1)
    convolutions = [m for m in d.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [128, 256, 512, 1]
    assert {m.kernel_size for m in convolutions} == {(4, 4)}


# Losses


def test_ssim_is_scikit_images() -> None:
    x, y = surfaces(1), (surfaces(1) + 0.1 * torch.randn(1, 1, 32, 32, generator=generator())).clamp(-1, 1)
    a, b = (image[0, 0].numpy().astype(np.float64) + 1 for image in (x, y))
    _, full = structural_similarity(a, b, win_size=9, data_range=2.0, full=True)
    assert ssim(x, y).item() == pytest.approx(full[4:-4, 4:-4].mean(), abs=1e-4)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-5)


def test_the_losses_by_hand() -> None:
    assert gan_g_loss(torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.5)).item() == pytest.approx(1.25)
    assert gan_d_loss(torch.full((4,), 0.5), torch.full((4,), 2.0)).item() == pytest.approx(0.25 + 4)
    x = surfaces(2)
    assert difference_loss(x, x + 0.25, by_ssim=False).item() == pytest.approx(0.25)
    assert difference_loss(x, x, by_ssim=True).item() == pytest.approx(0, abs=1e-5)
    assert difference_loss(x, -x, by_ssim=True).item() > 1


@pytest.mark.usefixtures("float32")
def test_ssim_comes_first_and_then_l1(method: ISUGAN) -> None:
    """Equations 10 and 11: k = 10 of 100 epochs."""
    identical = {"x": surfaces(2), "x_ref": surfaces(2, 9)}
    b = batch(count=2)
    b = Batch(identical["x"], b.y[:2], b.p[:2], identical["x_ref"], b.y_ref[:2], b.p_ref[:2])
    with torch.no_grad():
        kept, _ = method.G_n2p(b.x)
    before = method.training_step(b, 9, 9 / CONFIG.steps, generator())["identity"]
    assert before.item() == pytest.approx(1 - ssim(b.x, kept).item(), abs=1e-3)
    with torch.no_grad():
        kept, _ = method.G_n2p(b.x)
    after = method.training_step(b, 10, 10 / CONFIG.steps, generator())["identity"]
    assert after.item() == pytest.approx(F.l1_loss(b.x, kept).item(), abs=1e-4)


# The method


def test_the_learning_rate_falls_over_the_second_half(method: ISUGAN) -> None:
    rates = [method.lr(progress) / CONFIG.lr for progress in (0, 0.49, 0.5, 0.75, 1)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0])


RESIDUAL = CONFIG.model_copy(update={"lr": 1e-3, "residual": True, "lambda_cycle": 2.0, "lambda_identity": 10.0})


@pytest.mark.parametrize(
    ("config", "names"),
    [(CONFIG, {"D_p", "D_n"}), (RESIDUAL, {"D", "pair", "map", "ms"})],
)
def test_a_step_updates_all_networks_and_resumes(config: ISUGANConfig, names: set[str]) -> None:
    method = built(config)
    before = {
        name: [p.clone() for group in each.param_groups for p in group["params"]]
        for name, each in method.networks.optimizers.items()
    }
    losses = method.training_step(batch(), 0, 0.0, generator())
    assert set(losses) == {"gan", "cycle", "identity", *names}
    assert all(torch.isfinite(value) for value in losses.values())
    for step in (1, 2):  # the first reveals the change
        method.training_step(batch(), step, 0.0, generator())
    for name, optimizer in method.networks.optimizers.items():
        now = [p for group in optimizer.param_groups for p in group["params"]]
        moved = [not torch.equal(a, b) for a, b in zip(before[name], now, strict=True)]
        assert sum(moved) > 0.7 * len(moved), name  # a bias before a normalization has no gradient
    fresh = built(config)
    fresh.networks.load_state({key: value.clone() for key, value in method.networks.state().items()})
    for each in (method, fresh):
        each.training_step(batch(1), 1, 1 / CONFIG.steps, generator(1))
    for key, value in method.networks.state().items():
        assert torch.equal(value, fresh.networks.state()[key]), key


def test_a_short_training_learns_to_keep_normals_and_to_repair(method: ISUGAN) -> None:
    for step in range(90):
        method.training_step(batch(step), step, step / CONFIG.steps, generator(step))
    test = batch(7000, 8)
    with torch.no_grad():
        kept, repaired = method.repair(test.x), method.repair(test.x_ref)
    bar = test.x_ref == -1
    assert F.l1_loss(kept, test.x) < 0.2
    assert repaired[bar].mean() > -0.85  # no longer black


@pytest.fixture(scope="module")
def residual() -> ISUGAN:
    """Trained a little, with masks. Normals were kept before the first step."""
    method = built(RESIDUAL.model_copy(update={"lr": 2e-3, "lambda_pair": 13.0}))
    normals = surfaces(2, 7000)
    torch.testing.assert_close(method.repair(normals), normals)
    for step in range(100):
        method.training_step(batch(step, 2), step, step / 100, generator(step))
    return method


def test_residual_generators_change_only_the_defect(residual: ISUGAN) -> None:
    """Normals are kept, and repairs fit the twins."""
    test = batch(7000, 8)
    bar = test.x_ref == -1
    change = residual.repair(test.x_ref) - test.x_ref
    assert F.l1_loss(residual.repair(test.x), test.x) < 0.01
    assert change[bar].mean() > 0.1
    assert change[bar].mean() > 4 * change[~bar].abs().mean()


def test_residual_generators_without_masks_change_what_the_networks_find() -> None:
    """Nothing is supervised then: both directions learn from D and the cycle alone, and normals are still kept."""
    method = built(RESIDUAL)
    for step in range(8):
        losses = method.training_step(batch(step, 2, masks=False), step, step / 8, generator(step))
        assert losses["pair"] == losses["map"] == 0
    test = batch(7000, 8)
    with torch.no_grad():
        assert 0 < F.l1_loss(method.repair(test.x), test.x) < 0.03
        assert (method.repair(test.x_ref) != test.x_ref).any()


def test_residual_generators_paint_inside_the_control_map_and_by_z(residual: ISUGAN) -> None:
    test = batch(7000, 4)
    assert test.a is not None
    first, second = (
        residual.generate(GenerateBatch(test.x, test.y_ref, [generator(10 * k + i) for i in range(4)], a=test.a)).x
        for k in (1, 2)
    )
    inside = test.a > 0
    assert (first - test.x)[inside].mean() < -0.1  # darker, as the bars are
    assert (first == test.x)[soft(test.a) == 0].all()
    assert (first - second)[inside].abs().max() > 1e-3
    everywhere = residual.generate(GenerateBatch(test.x, test.y_ref, [generator()] * 4))
    assert everywhere.mask is None
    torch.testing.assert_close(residual.restore(first, test.y_ref, []), residual.repair(first))


def test_generating_uses_g_p2n(method: ISUGAN) -> None:
    x = surfaces(2)
    made = method.generate(GenerateBatch(x, torch.ones(2).long(), [generator(), generator()])).x
    with torch.no_grad():
        torch.testing.assert_close(made, method.G_p2n(x)[0])


@pytest.mark.parametrize("preset", ["paper", "compact", "tiny"])
def test_presets_build(preset: str) -> None:
    config = info("isu-gan").configure(preset, {})
    assert isinstance(config, ISUGANConfig)
    if preset == "paper":
        assert (config.image_size, config.batch_size, config.lr, config.ssim_part) == (256, 1, 2e-4, 0.1)
    assert math.isclose(config.steps, round(config.steps))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="32, 64, 128 or 256"):
        info("isu-gan").configure("tiny", {"image_size": "100"})
    with pytest.raises(UsageError, match="--set width"):
        info("isu-gan").configure("tiny", {"width": "20"})
