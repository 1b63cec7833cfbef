import math

import pytest
import torch
from torch import Tensor

from defectgen.errors import UsageError
from defectgen.methods import info
from defectgen.methods.base import Batch, GenerateBatch, Task
from defectgen.methods.dcdganc import (
    ODSPADE,
    DCDGANc,
    DCDGANcConfig,
    Discriminator,
    Encoder,
    Generator,
    class_constant_map,
    class_values,
    d_loss,
    g_loss,
    kl_loss,
    l_loss,
    p_loss,
    reparameterize,
    shown,
)

CPU = torch.device("cpu")
CONFIG = DCDGANcConfig(
    image_size=32,
    width=8,
    max_width=16,
    latent_dim=4,
    hidden_channels=8,
    batch_size=4,
    steps=100,
    lr=2e-3,
    lambda_p=100.0,
)
LEVEL = CONFIG.model_copy(update={"level": True, "lambda_p": 10.0, "lambda_kl": 0.02, "pairs_first": 0.5})
LONG = Task(domains=("normal", "thin", "thick"), products=("a",), channels=1, scales={"a": {}}, elongated=True)
TASK = Task(domains=("normal", "disc", "bar"), products=("a",), channels=1, scales={"a": {}})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def method() -> DCDGANc:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DCDGANc(CONFIG, TASK, CPU)


def contents(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bright squares (domain 1) of several sizes and bars (domain 2) of several lengths on black."""
    rng = generator(seed)
    images, y = torch.full((count, 1, 32, 32), -1.0), torch.arange(count) % 2 + 1
    for image, domain in zip(images, y, strict=True):
        extent = int(torch.randint(4, 11, (1,), generator=rng))
        rows = slice(16 - extent, 16 + extent) if domain == 1 else slice(14, 18)
        image[0, rows, 16 - extent : 16 + extent] = 0.4
    return images, y


def batch(seed: int = 0, count: int = 4) -> Batch:
    x, y = contents(count, seed)
    p = torch.zeros_like(y)
    return Batch(x, y, p, x, y, p)


# Equations


def test_class_constant_maps_are_equation_1() -> None:
    maps = class_constant_map(torch.eye(4), class_values(4), channels=3, shape=(8, 8))
    assert maps.shape == (4, 3, 8, 8)
    expected = torch.tensor([-0.5, 0.0, 0.5, 1.0])  # 2n/N - 1 for n of 1, 2, 3, 4
    torch.testing.assert_close(maps, expected[:, None, None, None].expand(4, 3, 8, 8))
    mixed = class_constant_map(torch.tensor([[0.25, 0.0, 0.0, 0.75]]), class_values(4), channels=1, shape=(2, 2))
    torch.testing.assert_close(mixed, torch.full((1, 1, 2, 2), 0.25 * -0.5 + 0.75))


def test_kl_equals_pytorchs_kl_divergence() -> None:
    mu, log_var = torch.randn(2, 5, 3, generator=generator())
    ours = kl_loss(mu, log_var)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mu, (0.5 * log_var).exp()), normal(torch.zeros(3), torch.ones(3)))
    torch.testing.assert_close(ours, theirs.sum(dim=1).mean())


def test_reparameterized_codes_have_the_mean_and_variance() -> None:
    mu, log_var = torch.tensor([[2.0, -1.0]]), torch.tensor([[math.log(4.0), math.log(0.25)]])
    z = reparameterize(mu, log_var, torch.randn(20_000, 2, generator=generator()))
    torch.testing.assert_close(z.mean(dim=0), mu[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(dim=0), log_var.exp()[0], atol=0.15, rtol=0)


def test_the_losses_by_hand() -> None:
    assert p_loss(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)).item() == pytest.approx(0.5)
    assert l_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == pytest.approx(1.5)
    half = torch.zeros(3)  # D is undecided: log 2 for each term, the real's twice
    assert d_loss(half, half, half).item() == pytest.approx(4 * math.log(2))
    assert g_loss(half, half).item() == pytest.approx(-2 * math.log(2))  # log(1 - D), as printed
    sure = torch.full((3,), 20.0)
    assert d_loss(sure, -sure, -sure).item() < 1e-6
    assert g_loss(-sure, sure).item() == pytest.approx(-20, abs=1e-3)


# Networks


def test_od_spade_sets_scale_and_shift_of_each_element() -> None:
    layer = ODSPADE(3, 6, CONFIG, (8, 8))
    x, code = torch.randn(2, 3, 16, 16, generator=generator()), torch.randn(2, 6, generator=generator(1))
    flat = torch.nn.functional.instance_norm(x)
    with torch.no_grad():
        out = layer(x, code)
        shift = layer(torch.zeros_like(x), code)  # a constant is normalized to 0, which leaves beta
        scale = (out - shift) / flat
        other = layer(x, code.flip(0))
    assert scale.flatten(2).std(dim=2).min() > 1e-3  # by element, not only by channel
    torch.testing.assert_close(out, scale * flat + shift, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(out, other)


def test_shapes_and_ranges() -> None:
    z, c = torch.randn(3, 4, generator=generator()), torch.eye(2)[[0, 1, 1]]
    x = Generator(CONFIG, classes=2, channels=3, shape=(32, 32))(z, c)
    assert x.shape == (3, 3, 32, 32)
    assert x.abs().max() <= 1
    mu, log_var = Encoder(CONFIG, 3)(x)
    assert mu.shape == log_var.shape == (3, 4)
    assert Discriminator(CONFIG, classes=2, channels=3)(x, c).shape == (3,)


def test_the_discriminator_depends_on_the_class(method: DCDGANc) -> None:
    x, _ = contents(2)
    with torch.no_grad():
        assert not torch.allclose(method.D(x, torch.eye(2)), method.D(x, torch.eye(2).flip(0)))


# Table 1


def test_a_step_updates_encoder_generator_and_discriminator(method: DCDGANc) -> None:
    before = {name: [p.clone() for p in module.parameters()] for name, module in method.networks.modules.items()}
    losses = method.training_step(batch(), 0, 0.0, generator())
    assert set(losses) == {"adv", "p", "kl", "l", "D", "D_gp"}
    for name, module in method.networks.modules.items():
        moved = [not torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True)]
        assert sum(moved) > 0.9 * len(moved), name


def test_the_latent_loss_trains_only_the_generator() -> None:
    """Each network is updated by the losses of Table 1: lambda_l does not change E."""
    config = CONFIG.model_copy(update={"lambda_p": 0.0, "lambda_kl": 0.0, "lambda_l": 1e6})
    one, other = (DCDGANc(config.model_copy(update=u), TASK, CPU) for u in ({}, {"lambda_l": 0.0}))
    other.networks.load_state(one.networks.state())
    for each in (one, other):
        each.training_step(batch(), 0, 0.0, generator())
    for a, b in zip(one.E.parameters(), other.E.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.G.parameters(), other.G.parameters(), strict=True))


def test_steps_are_reproducible_and_resumable(method: DCDGANc) -> None:
    for step in range(2):
        method.training_step(batch(step), step, step / CONFIG.steps, generator(step))
    fresh = DCDGANc(CONFIG, TASK, CPU)
    fresh.networks.load_state({key: value.clone() for key, value in method.networks.state().items()})
    for each in (method, fresh):
        each.training_step(batch(2), 2, 2 / CONFIG.steps, generator(2))
    for key, value in method.networks.state().items():
        assert torch.equal(value, fresh.networks.state()[key]), key


def test_a_short_training_learns_class_and_style(method: DCDGANc) -> None:
    steps = [method.training_step(batch(step), step, step / CONFIG.steps, generator(step)) for step in range(120)]
    assert steps[-1]["p"] < 0.35 * steps[0]["p"]
    x, y = contents(16, seed=1000)
    with torch.no_grad():
        c, (mu, _) = method.class_code(y), method.E(x)
        own, other = method.G(mu, c), method.G(mu.roll(2, dims=0), c)
        wrong = method.G(mu, c.flip(1))
    # An image is closer to G of its own code than to G of another code or of the other class.
    assert p_loss(x, own) < 0.6 * p_loss(x, other)
    assert p_loss(x, own) < 0.8 * p_loss(x, wrong)


# Generating


def test_a_sample_depends_on_its_own_generator_alone(method: DCDGANc) -> None:
    y = torch.tensor([1, 2, 1])
    together = method.generate(GenerateBatch(torch.empty(3, 0), y, [generator(i) for i in range(3)])).x
    alone = method.generate(GenerateBatch(torch.empty(1, 0), y[1:2], [generator(1)])).x
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_mixtures_lie_between_their_classes(method: DCDGANc) -> None:
    """Figure 5: from one class to the other under one z, the images change step by step."""
    weights = torch.linspace(0, 1, 6)
    mix = torch.stack([1 - weights, weights], dim=1)
    x = method.generate(GenerateBatch(torch.empty(6, 0), torch.ones(6).long(), [generator(5) for _ in weights], mix)).x
    ends = method.generate(GenerateBatch(torch.empty(2, 0), torch.tensor([1, 2]), [generator(5), generator(5)])).x
    torch.testing.assert_close(x[[0, -1]], ends)
    distance = (x - x[0]).abs().mean(dim=(1, 2, 3))
    assert (distance.diff() > 0).all()


@pytest.mark.parametrize("preset", ["paper", "compact", "tiny"])
def test_presets_build(preset: str) -> None:
    config = info("dcdganc").configure(preset, {})
    assert isinstance(config, DCDGANcConfig)
    method = DCDGANc(config, TASK, CPU)
    if preset == "paper":  # section 3.1
        paper = (config.batch_size, config.lr, config.lambda_p, config.lambda_l, config.lambda_kl, config.lambda_gp)
        assert list(paper) == [20, 5e-4, 10, 1, 0.01, 10]
        assert config.model_dump(include={"level", "ema"}) == {"level": False, "ema": 0}
        assert {name.split(".")[0] for name in method.D.state_dict()} == {"trunk", "head"}  # c enters as maps alone
        adam = [group["betas"] for each in method.networks.optimizers.values() for group in each.param_groups]
        assert adam == [(0.5, 0.999)] * 3


def test_in_paper_the_modulation_is_computed_at_every_resolution() -> None:
    """So a code sets the scale and shift of each element (section 2.2); otherwise coarser ones are interpolated."""
    found = {}
    for name, config in (("paper", CONFIG), ("level", LEVEL)):
        layer = ODSPADE(2, 6, config.model_copy(update={"image_size": 128}), (8, 8))
        seen: list[int] = []
        layer.first.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.shape[-1]))
        layer(torch.zeros(1, 2, 128, 128), torch.zeros(1, 6))
        found[name] = seen
    assert found == {"paper": [128], "level": [32]}


SHAPES = {"p", "map", "line", "kl", "l"}


class TestLevel:
    """Level contents, with a channel for masks."""

    @pytest.fixture
    def level(self) -> DCDGANc:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return DCDGANc(LEVEL, LONG, CPU)

    def contents(self, count: int, seed: int = 0) -> Batch:
        """Dark bars: thin ones (domain 1), and thick ones (domain 2) that begin at the left, of several lengths."""
        rng = generator(seed)
        x, y = torch.zeros(count, 2, 16, 64), torch.arange(count) % 2 + 1
        x[:, 1] = -1
        for image, domain in zip(x, y, strict=True):
            length = int(torch.randint(10, 28, (1,), generator=rng))
            rows, first = (slice(7, 9), 32 - length) if domain == 1 else (slice(4, 12), 0)
            image[0, rows, first : 32 + length] = -0.5
            image[1, rows, first : 32 + length] = 1
        p = torch.zeros_like(y)
        return Batch(x, y, p, x, y, p)

    def test_windows_are_long(self, level: DCDGANc) -> None:
        assert level.G.middle.norm1.base == (4, 16)
        made = level.generate(GenerateBatch(torch.empty(2, 0), torch.tensor([1, 2]), [generator(), generator(1)]))
        assert made.x.shape == (2, 1, 16, 64)
        assert made.mask is not None
        assert made.mask.shape == (2, 1, 16, 64)
        assert made.mask.min() >= 0
        assert made.mask.max() <= 1

    def test_nothing_is_drawn_away_from_the_mask(self, level: DCDGANc) -> None:
        x = level.G(torch.randn(4, 4, generator=generator()), torch.eye(2).repeat(2, 1))
        m = (x[:, 1:] + 1) / 2
        assert (x[:, :1].abs() <= torch.nn.functional.max_pool2d(m, 5, 1, 2) + 1e-6).all()

    def test_losses_and_what_they_train(self, level: DCDGANc) -> None:
        before = {name: [p.clone() for p in module.parameters()] for name, module in level.networks.modules.items()}
        assert set(level.training_step(self.contents(4), 0, 0.4, generator())) == SHAPES
        losses = level.training_step(self.contents(4), 0, 0.6, generator())
        assert set(losses) == SHAPES | {"adv", "features", "D"}
        for name in ("E", "G"):
            moved = [
                not torch.equal(a, b)
                for a, b in zip(before[name], level.networks.modules[name].parameters(), strict=True)
            ]
            assert sum(moved) > 0.9 * len(moved), name
        heads = [not torch.equal(a, b) for a, b in zip(before["D"], level.D.parameters(), strict=True)]
        assert 0 < sum(heads) < len(heads)  # the heads alone

    def test_d_begins_without_weight_and_calms_the_encoder(self, level: DCDGANc) -> None:
        """Otherwise E's codes leapt to a distance of thousands within ten steps, and the masks became empty."""
        twin = DCDGANc(LEVEL.model_copy(update={"lambda_adv": 0.0, "lambda_features": 0.0}), LONG, CPU)
        twin.networks.load_state({key: value.clone() for key, value in level.networks.state().items()})
        before = [parameter.detach().clone() for parameter in level.E.parameters()]
        for each in (level, twin):
            each.training_step(self.contents(4), 0, 0.5, generator())
        for one, other in zip(level.G.parameters(), twin.G.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        # The first step of Adam is the learning rate, or nothing.
        moves = [float((a - b.detach()).abs().max()) for a, b in zip(before, level.E.parameters(), strict=True)]
        assert max(moves) == pytest.approx(0.1 * LEVEL.lr, rel=0.05)
        level.training_step(self.contents(4), 1, 0.4, generator())
        assert level.networks.optimizers["E"].param_groups[0]["lr"] == LEVEL.lr

    def test_a_short_training_learns_masks_and_contents(self, level: DCDGANc) -> None:
        steps = [level.training_step(self.contents(6, step), step, step / 200, generator(step)) for step in range(60)]
        for name in ("p", "map", "line"):
            last, first = (sum(float(each[name]) for each in part) for part in (steps[-5:], steps[:5]))
            assert last < 0.75 * first, name
        test = self.contents(8, seed=1000)
        with torch.no_grad():
            own = level.G(level.E(test.x)[0], level.class_code(test.y))
        shape, real = own[:, 1] > 0, test.x[:, 1] > 0
        assert (shape & real).sum() / (shape | real).sum() > 0.5

    def test_it_resumes_exactly(self, level: DCDGANc) -> None:
        level.training_step(self.contents(4), 0, 0.0, generator())
        fresh = DCDGANc(LEVEL, LONG, CPU)
        fresh.networks.load_state({key: value.clone() for key, value in level.networks.state().items()})
        for each in (level, fresh):
            each.training_step(self.contents(4, 1), 1, 0.01, generator(1))
        for key, value in level.networks.state().items():
            assert torch.equal(value, fresh.networks.state()[key]), key

    def test_the_bank_keeps_each_window_once(self, level: DCDGANc) -> None:
        seen = self.contents(8)
        for _ in range(3):
            level.bank.add(seen.x, seen.y)
        assert level.bank.count.tolist() == [len(seen.x[seen.y == domain].unique(dim=0)) for domain in (1, 2)]
        for seed in range(6):
            drawn = level.bank.draw(torch.tensor([0.0, 1.0]), generator(seed))
            assert all((each[None] - seen.x[seen.y == 2]).abs().amax(dim=(1, 2, 3)).min() < 1e-2 for each in drawn)

    def test_color_and_gray_are_shown_to_the_frozen_network(self) -> None:
        gray, color = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, 4)
        gray[:, 0], color[:, 0], color[:, 3] = 0.25, 0.3, 1
        torch.testing.assert_close(shown(gray)[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.0]))
        torch.testing.assert_close(shown(color)[0, :, 0, 0], torch.tensor([0.2, 0.6, 1.0]))


def test_a_window_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match="32, 64, 128 or 256"):
        info("dcdganc").configure("tiny", {"image_size": "100"})
