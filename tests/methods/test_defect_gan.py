import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defectgen.methods import info
from defectgen.methods.base import Batch, GenerateBatch, Restorer, Task
from defectgen.methods.defect_gan import (
    SPADE,
    ConvBlock,
    DefectGAN,
    DefectGANConfig,
    Discriminator,
    Generator,
    NoiseInjection,
    _sharp_loss,
    adv_d_loss,
    cls_loss,
    compose,
    rec_loss,
    sd_con_loss,
    sd_cyc_loss,
)
from defectgen.methods.networks import Average
from defectgen.nn.paired import pair_loss, soft
from defectgen.nn.projected import ProjectedDiscriminator

CPU = torch.device("cpu")
CONFIG = DefectGANConfig(
    image_size=32, width=8, max_width=64, blocks=1, control_channels=8, batch_size=4, steps=400, critic_steps=2,
    lr=2e-3,
)  # fmt: skip
MASKS = DefectGANConfig(
    image_size=32, width=16, blocks=1, control_channels=16, batch_size=2, steps=90, lr=2e-3, lr_end=1e-4, ema=0.95,
    masks=True, pairs_first=0.0, lambda_pair=50.0,  # so that few steps suffice
)  # fmt: skip
TASK = Task(domains=("normal", "crack", "rust"), products=("a",), channels=1, scales={"a": {"crack": 1.0, "rust": 1.0}})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silence(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 1, *x.shape[2:])


def surfaces(count: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 1, 6, 6, generator=generator(seed)) * 0.6 - 0.3
    return F.interpolate(coarse, size=32, mode="bicubic").clamp(-1, 1)


def batch(seed: int = 0, count: int = 4) -> Batch:
    """Normals, and defective windows with a black bar (crack) or a white square (rust), their masks and twins.

    The control maps of the normals are the masks of the next rows of the same category, moved by a few rows.
    """
    n, d = surfaces(count, seed), surfaces(count, seed + 500)
    twin, a = d.clone(), torch.zeros(count, 2, 32, 32)
    for i in range(count):
        row = int(torch.randint(4, 20, (1,), generator=generator(seed + i)))
        if i % 2:
            d[i, :, row : row + 3, 4:28] = -1
            a[i, 0, row : row + 3, 4:28] = 1
        else:
            d[i, :, row : row + 7, 12:19] = 1
            a[i, 1, row : row + 7, 12:19] = 1
    y = torch.tensor([2 - i % 2 for i in range(count)])
    zeros = torch.zeros(count).long()
    asked = a.roll((2, 4), (0, 2))
    return Batch(n, zeros, zeros, d, y, zeros, a, asked, twin, torch.ones(count))


def build(config: DefectGANConfig) -> DefectGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DefectGAN(config, TASK, CPU)


@pytest.fixture
def method() -> DefectGAN:
    return build(CONFIG)


@pytest.fixture(scope="module")
def trained() -> DefectGAN:
    method = build(MASKS.model_copy(update={"pairs_first": 0.8}))  # steps without D take a third of the time
    average = Average(method.networks.averaged, MASKS.ema)
    for step in range(MASKS.steps):
        method.training_step(batch(step, MASKS.batch_size), step, step / MASKS.steps, generator(step))
        average.update(step + 1)
    average.give()
    return method


# Parts


def test_the_composition_is_exact_outside_the_map() -> None:
    x, f, m = surfaces(2), surfaces(2, 9), torch.zeros(2, 1, 32, 32)
    m[..., 8:16, 8:16], m[..., 20:24, 20:24] = 1, 0.25
    made = compose(x, f, m)
    outside = m == 0
    assert torch.equal(made[outside], x[outside])
    torch.testing.assert_close(made[..., 8:16, 8:16], f[..., 8:16, 8:16])
    torch.testing.assert_close(made[..., 20:24, 20:24], (0.75 * x + 0.25 * f)[..., 20:24, 20:24])


def test_noise_is_scaled_by_its_scalar() -> None:
    layer = NoiseInjection()
    x, drawn = torch.rand(2, 3, 4, 4), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(layer(x, lambda _: drawn), x + 0.1 * drawn)
    torch.nn.init.zeros_(layer.strength)
    assert torch.equal(layer(x, lambda _: drawn), x)


def test_spade_scales_and_shifts_by_the_control_map() -> None:
    torch.manual_seed(0)
    layer, x = SPADE(4, 2, 8), torch.randn(1, 4, 16, 16) * 3 + 1
    a = torch.zeros(1, 2, 16, 16)
    plain, a[:, 0, :, 8:] = layer(x, a), 1
    controlled = layer(x, a)
    assert torch.equal(plain[..., :6], controlled[..., :6])  # two convolutions of 3 x 3 reach two pixels
    assert (plain[..., 8:] - controlled[..., 8:]).abs().mean() > 0.01
    gamma, beta = layer.gamma_beta(F.relu(layer.shared(a))).chunk(2, dim=1)
    normalized = (x - x.mean((2, 3), keepdim=True)) / x.var((2, 3), keepdim=True, unbiased=False).add(1e-5).sqrt()
    torch.testing.assert_close(controlled, normalized * (1 + gamma) + beta, rtol=1e-4, atol=1e-4)


def test_the_generator_is_figure_2() -> None:
    config = info("defect-gan").configure("paper", {})
    assert isinstance(config, DefectGANConfig)
    network = Generator(config, 3, 5)
    convolutions = [m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert math.prod(conv.stride[0] for conv in convolutions) == 4
    # StarGAN's: 64, 128 and 256 channels, then half of its six residual blocks of two convolutions
    assert [conv.out_channels for conv in convolutions] == [64, 128, 256, *[256] * 6]
    assert [conv.kernel_size[0] for conv in convolutions] == [7, 4, 4, *[3] * 6]
    blocks = [m for m in network.modules() if isinstance(m, ConvBlock)]
    assert [b.conv.out_channels for b in blocks[9:]] == [*[256] * 6, 128, 64]
    assert [b.linear for b in blocks] == [*[False] * 3, *[False, True] * 6, False, False]
    assert all(isinstance(b.noise, NoiseInjection) for b in blocks)
    assert [isinstance(b.norm, SPADE) for b in blocks] == [*[False] * 9, *[True] * 8]
    assert {b.norm.shared.out_channels for b in blocks[9:] if isinstance(b.norm, SPADE)} == {128}
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        f, m = network(x, torch.ones(1, 5, 64, 64), silence)
    assert (f.shape, m.shape) == ((1, 3, 64, 64), (1, 1, 64, 64))
    assert f.abs().max() <= 1
    assert 0 <= m.min() <= m.max() <= 1


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_discriminator_scores_images_and_classifies(size: int) -> None:
    config = CONFIG.model_copy(update={"image_size": size})
    src, cls = Discriminator(config, 3, 5)(torch.rand(2, 3, size, size))
    assert (src.shape, cls.shape) == ((2, 4), (2, 5))


def test_the_discriminator_is_stargans() -> None:
    d = Discriminator(DefectGANConfig(), 3, 5)
    convolutions = [m for m in d.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [64, 128, 256, 512, 1024, 2048, 1, 5]
    assert d.cls.kernel_size == (2, 2)


# Losses, by hand


def test_the_losses_by_hand() -> None:
    assert adv_d_loss(torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.5])).item() == pytest.approx(-1.5)
    logits, c = torch.tensor([[0.0, math.log(3)], [-math.log(3), 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    # -log of 1/2, 3/4, 1/4 and 1/2, over two images
    assert cls_loss(logits, c).item() == pytest.approx(-math.log(1 / 2 * 3 / 4 * 1 / 4 * 1 / 2) / 2)
    assert rec_loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0.2], [0.4, -0.2]]]])).item() == pytest.approx(0.2)
    m, back = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[0.5, 0.1], [0.5, 0.5]]]])
    assert sd_cyc_loss(m, back).item() == pytest.approx(0.1)
    assert sd_con_loss(m, back).item() == pytest.approx(0.5 + 0.4)


@pytest.mark.usefixtures("float32")
def test_the_generators_loss_is_the_weighted_sum(method: DefectGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 12: changing a weight changes the gradient by that term only."""

    def gradient(**weights: float) -> Tensor:
        method.config = CONFIG.model_copy(update={"critic_steps": 1, **weights})
        kept: list[Tensor] = []
        monkeypatch.setattr(method.networks.optimizers["D"], "step", lambda: None)
        monkeypatch.setattr(
            method.networks.optimizers["G"],
            "step",
            lambda: kept.append(method.G.head.weight.grad.clone()),  # type: ignore[union-attr]
        )
        method.training_step(batch(), 0, 0.0, generator())
        return kept[0]

    nothing = dict.fromkeys(["lambda_cls_f", "lambda_rec", "lambda_sd_cyc", "lambda_sd_con"], 0.0)
    only_adv = gradient(**nothing)
    for name in nothing:
        one, five = (gradient(**{**nothing, name: weight}) - only_adv for weight in (1.0, 5.0))
        assert one.abs().max() > 1e-7, name
        assert (five - 5 * one).norm() < 1e-3 * five.norm(), name


# The method


def test_the_generator_learns_at_every_fifth_step(method: DefectGAN) -> None:
    method.config = CONFIG.model_copy(update={"critic_steps": 5})
    for step in range(10):
        before = [p.clone() for p in method.G.parameters()]
        losses = method.training_step(batch(step), step, step / CONFIG.steps, generator(step))
        moved = any(not torch.equal(a, b) for a, b in zip(before, method.G.parameters(), strict=True))
        assert moved == ("rec" in losses) == (step % 5 == 4)


def test_the_learning_rate_falls_linearly(method: DefectGAN) -> None:
    config = info("defect-gan").configure("paper", {})
    method.config = config  # type: ignore[assignment]
    assert [method.lr(progress) for progress in (0, 0.5, 1)] == pytest.approx([2e-4, 1.005e-4, 1e-6])


@pytest.mark.parametrize("config", [CONFIG, MASKS], ids=["paper", "masks"])
def test_a_step_updates_and_resumes_exactly(config: DefectGANConfig) -> None:
    method = build(config)
    before = {key: value.clone() for key, value in method.networks.state().items()}
    for step in range(2):
        method.training_step(batch(step), step, step / config.steps, generator(step))
    after = method.networks.state()
    for name in (
        "G.head.weight",
        "D.src.weight" if config is CONFIG else "D.heads.0.0.parametrizations.weight.original",
    ):
        assert not torch.equal(after[name], before[name]), name
    fresh = DefectGAN(config, TASK, CPU)
    fresh.networks.load_state({key: value.clone() for key, value in after.items()})
    for each in (method, fresh):
        for step in (2, 3):
            each.training_step(batch(step), step, step / config.steps, generator(step))
    for key, value in method.networks.state().items():
        assert torch.equal(value, fresh.networks.state()[key]), key


def test_d_judges_real_defects_and_made_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Led away from untouched normals, G painted what is darker than any real defect."""
    method, judged = build(MASKS), list[int]()
    assert isinstance(method.D, ProjectedDiscriminator)
    judge = method.D.judge

    def spy(maps: list[Tensor], c: Tensor) -> Tensor:
        judged.append(len(maps[0]))
        return judge(maps, c)

    monkeypatch.setattr(method.D, "judge", spy)
    method.training_step(batch(), 0, 0.5, generator())
    assert judged == [8, 4]  # four of each for D, then what G made


def test_pairs_come_first_and_d_begins_without_weight() -> None:
    config = MASKS.model_copy(update={"pairs_first": 0.25})
    method, twin = build(config), build(config.model_copy(update={"lambda_adv": 0.0}))
    for progress, d_trains, same in ((0.2, False, True), (0.25, True, True), (0.3, True, False)):
        for each in (method, twin):
            losses = each.training_step(batch(), 0, progress, generator())
            assert ("adv_d" in losses) == ("adv_g" in losses) == d_trains
        pairs = zip(method.G.parameters(), twin.G.parameters(), strict=True)
        assert all(torch.allclose(one, other, rtol=0, atol=1e-7) for one, other in pairs) == same


def test_windows_without_a_twin_are_not_compared() -> None:
    alone = replace(batch(), paired=torch.zeros(4))
    losses = build(MASKS).training_step(alone, 0, 0.0, generator())
    assert losses["pair"] == 0


def test_without_masks_the_map_is_the_label_everywhere(method: DefectGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 3.1: with image-level labels only, A is constant."""
    method.config = CONFIG.model_copy(update={"critic_steps": 1})
    seen: list[Tensor] = []
    forward = Generator.forward

    def spy(self: Generator, x: Tensor, a: Tensor, noise: object) -> tuple[Tensor, Tensor]:
        seen.append(a)
        return forward(self, x, a, noise)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "forward", spy)
    losses = method.training_step(batch(), 0, 0.0, generator())
    assert not {"pair", "map", "ms"} & set(losses)
    assert all(torch.equal(a, a[..., :1, :1].expand_as(a)) for a in seen)
    assert {tuple(row[:, 0, 0].tolist()) for row in seen[0]} == {(1, 0), (0, 1), (0, 0)}


def test_noise_scalars_learn(trained: DefectGAN) -> None:
    scalars = [module.strength for module in trained.G.modules() if isinstance(module, NoiseInjection)]
    assert len(scalars) == 3 + 2 + 2 + 2
    assert all(abs(scalar.item() - 0.1) > 1e-4 for scalar in scalars)


def test_the_control_map_sets_place_and_category(trained: DefectGAN) -> None:
    """Figure 6. Away from A, not a pixel changes."""
    x, a = surfaces(6, 7000), torch.zeros(6, 2, 32, 32)
    a[:3, 0, 14:17, 4:28] = 1
    a[3:, 1, 10:17, 10:17] = 1
    inside = a.amax(dim=1, keepdim=True) > 0
    made = trained.generate(GenerateBatch(x, torch.ones(6).long(), [generator(i) for i in range(6)], a=a))
    change = made.x - x
    assert (change[soft(inside.float()) == 0] == 0).all()
    dark, bright = change[:3][inside[:3]], change[3:][inside[3:]]
    assert dark.mean() < bright.mean() - 0.1
    assert made.mask is not None
    assert made.mask[inside].mean() > 0.5


def test_restoring_removes_defects(trained: DefectGAN) -> None:
    assert isinstance(trained, Restorer)
    test = batch(7000, 8)
    assert test.a_ref is not None
    restored = trained.restore(test.x_ref, test.y_ref, [generator(i) for i in range(8)])
    defective = test.x_ref.abs() == 1
    assert restored[defective].abs().mean() < 0.9
    far = soft(test.a_ref.amax(dim=1, keepdim=True)) == 0
    assert (restored - test.x_ref)[far].abs().mean() < 4 * 2 / 255


def test_defects_differ_by_noise_and_repeat_by_seed(trained: DefectGAN) -> None:
    x = surfaces(1).expand(2, -1, -1, -1)
    request = GenerateBatch(x, torch.ones(2).long(), [generator(0), generator(1)])
    first, second = trained.generate(request).x
    assert not torch.equal(first, second)
    again = trained.generate(GenerateBatch(x[:1], torch.ones(1).long(), [generator(1)])).x[0]
    torch.testing.assert_close(again, second, rtol=0, atol=1e-5)


def test_defects_are_as_strong_in_parts_of_the_brightness_of_any_ground() -> None:
    """Normalization hides the brightness from G: what it painted on dark grounds was black."""
    method = build(MASKS.model_copy(update={"tones": True}))
    torch.nn.init.normal_(method.G.head.weight, std=0.02, generator=generator())
    a = torch.zeros(1, 2, 32, 32)
    a[:, 0, 8:24, 8:24] = 1

    def change(level: float) -> Tensor:
        x = torch.full((1, 1, 32, 32), level)
        return method.generate(GenerateBatch(x, torch.ones(1).long(), [generator()], a=a)).x - x

    bright = change(-0.2)
    assert bright.abs().max() > 0.01
    expected = bright * torch.where(bright > 0, 0.5**0.5, 0.5)  # highlights depend less on it
    torch.testing.assert_close(change(-0.6), expected, atol=0.02 * bright.abs().max().item(), rtol=0.02)


def test_defects_can_lose_the_grain_of_their_ground() -> None:
    method = build(MASKS.model_copy(update={"tones": True}))
    assert method.G.head.bias is not None
    a = torch.zeros(1, 2, 32, 32)
    a[:, 0, 8:24, 8:24] = 1
    x = surfaces(1) / 4 + 0.1 * torch.randn(1, 1, 32, 32, generator=generator())
    inside = (..., slice(10, 22), slice(10, 22))
    for bias, lost in ((-20.0, False), (2.0, True), (20.0, True)):
        method.G.head.bias.data[-1] = bias
        found = method.generate(GenerateBatch(x, torch.ones(1).long(), [generator()], a=a)).x
        assert ((found - x)[inside].std() > 0.05) == lost
        finest, of_x = ((each - F.avg_pool2d(each, 3, stride=1, padding=1))[inside].std() for each in (found, x))
        assert finest > 0.8 * of_x  # from elsewhere, as strong, even where half is lost


def test_it_begins_with_what_tones_ask_for_on_a_ground_without_grain() -> None:
    """What it had to learn first were soft shadows, for minutes."""
    method = build(MASKS.model_copy(update={"tones": True}))
    a = torch.zeros(2, 2, 32, 32)
    a[:, 0, 8:24, 8:24] = 1
    tones = math.tanh(-2 * 0.25) * a[:, :1]  # a quarter darker
    tones[1] = 0  # nobody knows
    x = torch.full((2, 1, 32, 32), -0.2) + 0.1 * torch.randn(2, 1, 32, 32, generator=generator())
    rngs = [generator(0), generator(1)]
    generated = method.generate(GenerateBatch(x, torch.ones(2).long(), rngs, a=a, tones=tones))
    made, m = generated.x, generated.mask
    assert m is not None
    change = (made - x)[:, 0, 10:22, 10:22].mean(dim=(1, 2))
    torch.testing.assert_close(change, torch.tensor([-0.2, 0]), atol=0.04, rtol=0)
    assert torch.equal(made[m == 0], x[m == 0])
    inside = made[:, 0, 10:22, 10:22]
    assert inside[0].std() < 0.03  # the tones have no grain; that of x is 0.1
    assert inside[1].std() > 0.09


def test_a_soft_edge_costs_more_than_the_difference_of_its_pixels() -> None:
    real = torch.zeros(1, 1, 8, 8)
    real[..., 4:] = 1
    soft_edge = real.clone()
    soft_edge[..., 3], soft_edge[..., 4] = 0.25, 0.75
    inside, weights = torch.ones(1, 1, 8, 8), torch.ones(1)
    of_pixels = 16 * 0.25 / 65
    assert pair_loss(soft_edge, real, inside, weights) == pytest.approx(of_pixels)
    # Steps along x are 1/4, 1/2, 1/4 in place of 0, 1, 0, and along y 0.
    assert _sharp_loss(soft_edge, real, inside, weights) == pytest.approx(of_pixels + 8 * 1 / 57)


def test_a_step_uses_tones_and_seeks_modes_now_and_then() -> None:
    method = build(MASKS.model_copy(update={"tones": True}))
    a_ref = batch().a_ref
    assert a_ref is not None
    told = replace(batch(), tones=torch.zeros(4, 1, 32, 32), tones_ref=-a_ref.amax(dim=1, keepdim=True))
    of_tones = method.networks.state()["G.decoder.0.first.norm.shared.weight"][:, -1].clone()
    losses = [method.training_step(told, step, 0.5, generator()) for step in range(5)]
    assert ["ms" in each for each in losses] == [True, False, False, False, True]
    assert all("tone" in each for each in losses)
    assert "tone" not in build(MASKS).training_step(told, 0, 0.5, generator())  # which does not see them
    assert not torch.equal(method.networks.state()["G.decoder.0.first.norm.shared.weight"][:, -1], of_tones)


def test_categories_can_be_united(method: DefectGAN) -> None:
    x, rngs = surfaces(1), [generator()]
    both = method.generate(GenerateBatch(x, torch.ones(1).long(), rngs, mix=torch.ones(1, 2))).x
    by_map = GenerateBatch(x, torch.ones(1).long(), [generator()], a=torch.ones(1, 2, 32, 32))
    torch.testing.assert_close(both, method.generate(by_map).x)


@pytest.mark.parametrize("preset", ["paper", "compact", "tiny"])
def test_presets_build(preset: str) -> None:
    config = info("defect-gan").configure(preset, {})
    assert isinstance(config, DefectGANConfig)
    if preset == "paper":
        given = [
            config.lambda_cls_r,
            config.lambda_cls_f,
            config.lambda_rec,
            config.lambda_sd_cyc,
            config.lambda_sd_con,
        ]
        assert given == [2, 5, 5, 5, 1]
        assert (config.image_size, config.batch_size, config.critic_steps, config.masks) == (128, 4, 5, False)
        assert (config.lr, config.lr_end, config.steps, config.ema) == (2e-4, 1e-6, 500_000, 0)


def test_a_uniform_control_map_needs_one_pixel() -> None:
    """The same scale and shift, and gradients, as from a map of the whole size, also along the border."""
    spade = SPADE(4, 2, 8)
    x, c = torch.randn(2, 4, 9, 7, generator=generator()), torch.rand(2, 2, 1, 1, generator=generator(1))
    weights = torch.randn(2, 4, 9, 7, generator=generator(2))
    results = []
    for a in (c, c.expand(-1, -1, 9, 7)):
        spade.zero_grad()
        made = spade(x, a)
        (made * weights).sum().backward()
        results.append([made.detach(), *(parameter.grad for parameter in spade.parameters())])
    for small, whole in zip(*results, strict=True):
        torch.testing.assert_close(small, whole, atol=1e-5, rtol=1e-4)
