import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defectgen.errors import UsageError
from defectgen.imaging import windows
from defectgen.methods import info, names
from defectgen.methods.base import Batch, GenerateBatch, Task
from defectgen.methods.dt_gan import (
    DTGAN,
    AdaIN,
    Bank,
    Codes,
    Discriminator,
    DTGANConfig,
    Generator,
    MappingNetwork,
    StyleDefectEncoder,
    class_loss,
    cyc_loss,
    d_rec_loss,
    ds_loss,
    exposed,
    moved,
    sd_rec_loss,
    warped,
)
from defectgen.methods.networks import Average

CPU = torch.device("cpu")
CONFIG = DTGANConfig(
    image_size=32,
    width=8,
    max_width=16,
    c_channels=4,
    latent_dim=4,
    style_dim=8,
    batch_size=4,
    steps=100,
    lr=2e-3,
)
RESIDUAL = CONFIG.model_copy(
    update={
        "residual": True,
        "pairs_first": 0.0,
        "prior": "bank",
        "augment": True,
        "lr_mapping": 2e-3,
        "lr_noise": 1e-2,
    }
)
TASK = Task(domains=("normal", "crack", "spot"), products=("a", "b"), channels=1, scales={"a": {}, "b": {}})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth noise, which resembles images more than white noise does."""
    coarse = torch.rand(count, 1, 6, 6, generator=generator(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


def built(config: DTGANConfig) -> DTGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DTGAN(config, TASK, CPU)


@pytest.fixture
def method() -> DTGAN:
    return built(CONFIG)


@pytest.fixture
def painter() -> DTGAN:
    return built(RESIDUAL)


def batch(seed: int = 0) -> Batch:
    """Of the defective windows, the first two have a dark square or a bright one, and a twin without it."""
    y, p = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 0, 1])
    y_ref = torch.tensor([1, 2, 0, 1])
    twin, a = images(4, seed + 1), torch.zeros(4, 2, 32, 32)
    d = twin.clone()
    for row, at in ((0, 6 + seed % 9), (1, 18 - seed % 9)):
        a[row, y_ref[row] - 1, at : at + 8, 9:17] = 1
        d[row, 0, at : at + 8, 9:17] = -0.9 if row == 0 else 0.9
    paired = torch.tensor([1.0, 1.0, 0.0, 0.0])
    place = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.25, 2.0], [0.5, 0.5, 1.0], [0.5, 0.5, 1.0]])
    return Batch(
        images(4, seed), y, p, d, y_ref, p.flip(0), a_ref=a, x_twin=twin, paired=paired, place_ref=place,
    )  # fmt: skip


class TestNetworks:
    def test_mapping_gives_a_defect_map_and_a_style_for_the_domain(self) -> None:
        torch.manual_seed(0)
        mapping = MappingNetwork(CONFIG, 3)
        c, s = mapping(torch.randn(3, mapping.latent_size, generator=generator()), torch.tensor([0, 1, 2]))
        assert c.shape == (3, 4, 16, 16)
        assert s.shape == (3, 8)

    def test_anchor_domain_is_exactly_zero(self) -> None:
        torch.manual_seed(0)
        y = torch.tensor([0, 1])
        mapping = MappingNetwork(CONFIG, 3)
        c_m, _ = mapping(torch.randn(2, mapping.latent_size, generator=generator()), y)
        for c in (
            c_m,
            StyleDefectEncoder(CONFIG, 3, 1)(images(2), y)[0],
            StyleDefectEncoder(RESIDUAL, 3, 1)(images(2), y)[0],
        ):
            assert (c[0] == 0).all()
            assert (c[1] != 0).any()

    def test_bounded_codes_are_alike_for_m_and_e(self) -> None:
        """c = tanh(h) a for both: 0 where a says that there is no defect; styles have a mean square of 1."""
        torch.manual_seed(0)
        codes, features, y = (
            Codes(RESIDUAL, 8, 3),
            torch.randn(2, 8, 16, 16, generator=generator()) * 9,
            torch.tensor([1, 2]),
        )
        c, a = codes(features, y)
        assert c.shape == (2, 4, 16, 16)
        assert (c.abs() <= torch.sigmoid(a) + 1e-6).all()
        mapping = MappingNetwork(RESIDUAL, 3)
        made = mapping(torch.randn(2, mapping.latent_size, generator=generator()), y)
        for c, s in (made, StyleDefectEncoder(RESIDUAL, 3, 1)(images(2), y)):
            assert c.abs().max() <= 1
            torch.testing.assert_close(s.square().mean(dim=1), torch.ones(2))

    def test_every_domain_has_a_branch_of_its_own(self) -> None:
        torch.manual_seed(0)
        mapping = MappingNetwork(CONFIG, 3)
        latent = torch.randn(1, mapping.latent_size, generator=generator()).expand(2, -1)
        c, s = mapping(latent, torch.tensor([1, 2]))
        assert not torch.allclose(c[0], c[1])
        assert not torch.allclose(s[0], s[1])

    def test_noise_changes_the_defect_and_not_the_style(self) -> None:
        torch.manual_seed(0)
        mapping = MappingNetwork(CONFIG, 3)
        assert all((strength == 0).all() for strength in mapping.strengths)  # learned from 0
        for strength in mapping.strengths:
            torch.nn.init.ones_(strength)
        latent = torch.randn(1, mapping.latent_size, generator=generator())
        other = latent.clone()
        other[:, CONFIG.latent_dim :] = torch.randn(1, mapping.latent_size - CONFIG.latent_dim, generator=generator(7))
        y = torch.tensor([1])
        (c1, s1), (c2, s2) = mapping(latent, y), mapping(other, y)
        assert not torch.allclose(c1, c2)
        torch.testing.assert_close(s1, s2)

    def test_adain_gives_the_style_its_mean_and_spread(self) -> None:
        adain = AdaIN(2, 3)
        torch.nn.init.zeros_(adain.affine.weight)
        with torch.no_grad():
            adain.affine.bias.copy_(torch.tensor([1.0, 2.0, 5.0, -5.0]))  # gamma, then beta
        out = adain(torch.randn(1, 2, 16, 16, generator=generator()) * 9 + 4, torch.zeros(1, 3))
        torch.testing.assert_close(out.mean(dim=(2, 3)), torch.tensor([[5.0, -5.0]]), atol=1e-4, rtol=0)
        torch.testing.assert_close(out.std(dim=(2, 3), unbiased=False), torch.tensor([[2.0, 3.0]]), atol=1e-3, rtol=0)

    def test_generator_splits_its_bottleneck_by_depth(self) -> None:
        torch.manual_seed(0)
        g = Generator(CONFIG, 1)
        bg, fg = g.encode(images(2))
        assert bg.shape == (2, 12, 16, 16)
        assert fg.shape == (2, 4, 16, 16)
        torch.testing.assert_close(torch.cat([bg, fg], dim=1), g.encoder(images(2)))

    def test_generator_drops_the_foreground_of_its_input(self) -> None:
        """The last channels of the bottleneck do not affect the output."""
        torch.manual_seed(0)
        g = Generator(CONFIG, 1)
        x = images(2).requires_grad_()
        _, fg = g.encode(x)
        fg.retain_grad()
        g(g.encode(x)[0], torch.ones(2, 4, 16, 16), torch.ones(2, 8))[0].sum().backward()
        assert fg.grad is None
        assert x.grad is not None
        assert (x.grad != 0).any()

    @pytest.mark.parametrize("config", [CONFIG, RESIDUAL])
    def test_decoding_several_foregrounds_equals_decoding_each(self, config: DTGANConfig) -> None:
        torch.manual_seed(0)
        g = Generator(config, 1)
        bg, _ = g.encode(images(2))
        c = torch.randn(6, 4, 16, 16, generator=generator())
        s = torch.randn(6, 8, generator=generator(1))
        together = g(bg, c, s)[0]
        apart = torch.cat([g(bg, c[i : i + 2], s[i : i + 2])[0] for i in (0, 2, 4)])
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)

    def test_a_change_depends_on_the_photograph_and_vanishes_without_a_defect(self) -> None:
        torch.manual_seed(0)
        g = Generator(RESIDUAL, 1)
        bg, _ = g.encode(images(2))
        c, s = torch.randn(1, 4, 16, 16, generator=generator()).repeat(2, 1, 1, 1), torch.zeros(2, 8)
        change, m = g(bg, c, s)
        assert (change[0] - change[1]).abs().max() > 1e-2
        assert m is not None
        assert 0 < m.min() < m.max() < 1
        for nothing in g(bg, 0 * c, s):
            assert (nothing == 0).all()

    def test_translating_to_its_own_code_is_the_image_itself(self, painter: DTGAN) -> None:
        """With `residual`, whatever the bottleneck loses."""
        torch.nn.init.normal_(painter.G.get_parameter("head.3.weight"), generator=generator())
        x, own = images(2), (torch.randn(2, 4, 16, 16, generator=generator()), torch.zeros(2, 8))
        other = (own[0] + 1, own[1] + 1)
        bg = painter.G.encode(x)[0]
        (same, changed), _ = painter.translate(x, bg, own, [own, other])
        torch.testing.assert_close(same, x)
        change = painter.G(bg, *other)[0] - painter.G(bg, *own)[0]
        torch.testing.assert_close(changed, x + change, atol=1e-4, rtol=1e-4)  # of values up to 10

    def test_style_does_not_touch_the_background_decoder(self) -> None:
        g = Generator(CONFIG, 1)
        assert not any(isinstance(module, AdaIN) for module in g.background.modules())
        assert sum(isinstance(module, AdaIN) for module in g.foreground.modules()) == 2 * len(g.foreground)

    def test_discriminator_scores_by_domain_and_classifies_both(self) -> None:
        torch.manual_seed(0)
        d = Discriminator(CONFIG, 3, 2, 1)
        x = images(1).expand(3, -1, -1, -1)
        adv, fg, bg = d(x, torch.tensor([0, 1, 2]))
        assert adv.shape == (3,)
        assert adv.unique().numel() == 3
        assert fg.shape == (3, 3)
        assert bg.shape == (3, 2)

    @pytest.mark.parametrize("size", [32, 64, 128])
    def test_any_size_passes_through_a_16_pixel_bottleneck(self, size: int) -> None:
        config = CONFIG.model_copy(update={"image_size": size})
        g = Generator(config, 3)
        x = torch.zeros(1, 3, size, size)
        assert g.encode(x)[0].shape[2:] == (16, 16)
        assert g(g.encode(x)[0], torch.zeros(1, 4, 16, 16), torch.zeros(1, 8))[0].shape == x.shape

    @pytest.mark.parametrize("config", [CONFIG, RESIDUAL])
    def test_every_parameter_learns(self, config: DTGANConfig) -> None:
        """Gradients reach all parameters of the optimizers within two steps (the first one reveals the change)."""
        method = built(config)
        learned = {
            id(p)
            for each in method.networks.optimizers.values()
            for group in each.param_groups
            for p in group["params"]
        }
        learns: dict[str, bool] = {}
        for name, module in method.networks.modules.items():
            for key, value in module.named_parameters():
                if id(value) not in learned:
                    continue
                learns[f"{name}.{key}"] = False

                def record(gradient: Tensor, parameter: str = f"{name}.{key}") -> None:
                    learns[parameter] |= bool((gradient != 0).any())

                value.register_hook(record)
        for step in range(3):
            method.training_step(batch(step), step, step / config.steps, generator(step))
        unused = "M.style.0." if config.residual else "nothing"  # a normal has no change to give a style
        assert [name for name, does in learns.items() if not does and not name.startswith(unused)] == []

    def test_an_iteration_trains_with_latents_and_with_references(
        self, method: DTGAN, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As StarGAN v2: D twice, G twice, M and E with latents only."""
        steps: list[tuple[str, ...]] = []
        monkeypatch.setattr(method.networks, "step", lambda *names: steps.append(names))
        method.training_step(batch(), 0, 0.0, generator())
        assert steps == [("D",), ("D",), ("G",), ("G", "M", "E")]


class TestBank:
    def test_it_keeps_windows_by_domain_while_there_is_room_and_warps_them(self) -> None:
        bank = Bank(RESIDUAL, 3, 1)
        x = torch.full((3, 1, 32, 32), -0.5)
        x[1, :, 9:15, 9:15] = 0.5
        place = torch.tensor([[0, 1, 1], [0.5, 0.2, 1], [1, 1, 1]])
        whole = torch.zeros(3, dtype=torch.bool)
        for _ in range(Bank.KEPT + 3):
            bank.add(x, (x > 0).float(), torch.tensor([0, 2, 0]), place, whole)
        bank.add(x[:1], torch.zeros(1, 1, 32, 32), torch.tensor([1]), place[:1], whole[:1])
        assert (bank.full > 0).tolist() == [True, *[False] * (Bank.KEPT - 1), *[True] * Bank.KEPT]
        drawn = [bank.draw(2, generator(seed)) for seed in range(9)]
        assert all(abs(float((each > 0).float().mean()) - 36 / 1024) < 0.06 for each in drawn)
        assert len({each.numpy().tobytes() for each in drawn}) == 9
        torch.testing.assert_close(bank.draw(2, generator(3)), drawn[3])
        assert (bank.draw(1, generator()) < 0).all()

    def test_defects_that_a_window_cuts_off_give_way_to_whole_ones(self) -> None:
        bank, y, place = Bank(RESIDUAL, 2, 1), torch.tensor([1]), torch.tensor([[0.5, 0.5, 1.0]])
        a = torch.zeros(1, 1, 32, 32)
        whole, cut = (torch.tensor([value]) for value in (False, True))
        for _ in range(Bank.KEPT):
            bank.add(torch.full((1, 1, 32, 32), -0.5), a, y, place, cut)
        for _ in range(3):
            bank.add(torch.full((1, 1, 32, 32), 0.5), a, y, place, whole)
            bank.add(torch.full((1, 1, 32, 32), -0.5), a, y, place, cut)
        bright = (bank.x > 127).flatten(1).all(dim=1)
        assert bright.sum() == 3
        assert len({bank.pick(1, generator(seed)) for seed in range(200)}) == Bank.KEPT

    @pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
    @pytest.mark.parametrize("at_edge", [False, True])
    def test_a_warp_does_not_push_a_defect_out_of_the_window(self, side: str, at_edge: bool) -> None:
        """It would be painted with a straight end; at an edge of the image it may end at the window's."""
        x = torch.full((1, 1, 32, 32), -0.5)
        x[..., 12:20, 0 if at_edge else 5 : 12] = 0.5
        edge = {"left": 0.0, "right": 1.0, "top": 0.0, "bottom": 1.0}[side]
        place = torch.tensor([[edge if at_edge else 0.5, 0.5, 1]])
        if side in ("right", "bottom"):
            x = x.flip(3)
        if side in ("top", "bottom"):
            x, place = x.transpose(2, 3), place[:, [1, 0, 2]]
        bank, y = Bank(RESIDUAL, 2, 1), torch.tensor([1])
        bank.add(x, (x > 0).float(), y, place, torch.tensor([False]))
        drawn = torch.stack([bank.draw(1, generator(seed)) for seed in range(60)])
        reached = (drawn > 0).sum(dim=(1, 2 if side in ("left", "right") else 3))
        border = reached[:, :4] if side in ("left", "top") else reached[:, -4:]
        cut_off = int((border.sum(dim=1) > 3).sum())
        assert cut_off >= 50 if at_edge else cut_off <= 1

    def test_the_averaged_model_has_it_with_the_places(self, painter: DTGAN) -> None:
        average = Average(painter.networks.averaged, 0.9)
        painter.training_step(batch(), 0, 0.0, generator())
        average.update(1)
        torch.testing.assert_close(average.state()["bank.x"], painter.bank.x)
        assert (painter.bank.full > 0).sum() == 3
        assert painter.place(2, generator()) == (1, 0.25, 2)
        assert built(CONFIG).place(1, generator()) is None

    def test_moves_are_whole_cells_and_bring_zeros_in(self) -> None:
        c = torch.zeros(60, 1, 16, 16)
        c[:, 0, 8, 8] = 1
        places = moved(c, generator()).flatten(1).argmax(dim=1).tolist()
        assert {abs(at // 16 - 8) for at in places} == {abs(at % 16 - 8) for at in places} == {0, 1, 2, 3, 4}
        assert (moved(torch.ones(9, 1, 16, 16), generator()) == 0).any()

    def test_warps_bend_a_little(self) -> None:
        x = torch.full((20, 1, 32, 32), -0.5)
        x[:, :, 12:20, 12:20] = 0.5
        after = warped(x, generator())
        assert after.shape == x.shape
        area = (after > 0).float().mean(dim=(1, 2, 3)) * 1024
        assert 30 < area.min() < 64 < area.max() < 140


class TestLosses:
    """Each against a value computed by hand."""

    def test_sd_rec(self) -> None:
        c, s = torch.zeros(1, 2, 2, 2), torch.zeros(1, 4)
        s_e = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
        assert sd_rec_loss(c, c + 0.5, s, s_e).item() == pytest.approx(0.5 + 0.5)

    def test_d_rec(self) -> None:
        zero, one = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        assert d_rec_loss(one, zero, 3 * one, zero).item() == pytest.approx(1 + 3)

    def test_ds_is_the_sum_over_all_six_pairs(self) -> None:
        x11, x12, x21, x22 = (torch.full((1, 1, 2, 2), v) for v in (0.0, 0.1, 0.3, 0.7))
        # |12-21| + |11-22| + |12-11| + |12-22| + |21-11| + |21-22|
        expected = 0.2 + 0.7 + 0.1 + 0.6 + 0.3 + 0.4
        assert ds_loss(x11, x12, x21, x22).item() == pytest.approx(expected)

    def test_cyc(self) -> None:
        assert cyc_loss(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), -0.25)).item() == pytest.approx(0.25)

    def test_class(self) -> None:
        logits = torch.tensor([[0.0, math.log(3.0)]])
        assert class_loss(logits, torch.tensor([1])).item() == pytest.approx(-math.log(0.75))

    def test_diversity_weight_falls_linearly_to_nothing(self, method: DTGAN) -> None:
        full = CONFIG.lambda_ds
        assert [method.lambda_ds(progress) for progress in (0, 0.5, 1)] == pytest.approx([full, full / 2, 0])


class TestTraining:
    @pytest.mark.parametrize(
        ("config", "more"),
        [(CONFIG, "D_real D_fake D_r1"), (RESIDUAL, "pair map map_t presence code D_adv D_fg D_bg critic")],
    )
    def test_losses_have_the_papers_names(self, config: DTGANConfig, more: str) -> None:
        losses = built(config).training_step(batch(), 0, 0.0, generator())
        assert losses.keys() >= {"adv", "sd_rec", "d_rec", "ds", "cyc", "fg", "bg", *more.split()}
        assert all(torch.isfinite(value) for value in losses.values())

    def test_d_begins_without_weight(self, painter: DTGAN) -> None:
        """At once, it undid a part of what the pairs had taught."""
        twin = built(RESIDUAL.model_copy(update={"lambda_adv": 0.0}))
        begins = painter.config.pairs_first
        for progress, same in ((begins, True), (begins + 0.05, False)):
            for each in (painter, twin):
                each.training_step(batch(), 0, progress, generator())
            pairs = zip(painter.G.parameters(), twin.G.parameters(), strict=True)
            assert all(torch.allclose(one, other, rtol=0, atol=1e-7) for one, other in pairs) == same

    def test_it_trains_in_mixed_precision(self, painter: DTGAN, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a GPU. What is painted stays in 32 bits: 16 would be half a gray level of noise."""
        bfloat16 = torch.autocast("cpu", torch.bfloat16)
        monkeypatch.setattr("defectgen.methods.dt_gan.mixed_precision", lambda _device: bfloat16)
        losses = painter.training_step(batch(), 0, 0.0, generator())
        assert all(torch.isfinite(value) for value in losses.values())
        with bfloat16:
            assert (
                painter.G(painter.G.encode(images(2))[0], *painter.E(images(2), torch.tensor([1, 2])))[0].dtype
                == torch.float32
            )

    def test_without_masks_it_trains_too(self, painter: DTGAN) -> None:
        given = batch()
        bare = Batch(
            given.x, given.y, given.p, given.x_ref, given.y_ref, given.p_ref,
            a_ref=torch.ones(4, 2, 32, 32), x_twin=given.x_ref, paired=torch.zeros(4), place_ref=given.place_ref,
        )  # fmt: skip
        losses = painter.training_step(bare, 0, 0.0, generator())
        assert losses["pair"] == losses["map"] == losses["presence"] == 0

    def test_pairs_teach_what_a_defect_changes_both_ways(self) -> None:
        """The codes of new defects paint and take them, inside their masks; D is not even needed."""
        painter = built(RESIDUAL.model_copy(update={"pairs_first": 1.0}))
        for step in range(100):
            assert "D_adv" not in painter.training_step(batch(step), step, step / 100, generator(step))
        test = batch(1004)
        assert test.x_twin is not None
        assert test.a_ref is not None
        d, n_d, y, mask = test.x_ref[:2], test.x_twin[:2], test.y_ref[:2], test.a_ref[:2].amax(dim=1, keepdim=True) > 0
        with torch.no_grad():
            c, s = painter.E(d, y)
            change, m = painter.G(painter.G.encode(n_d)[0], c, s)
            again = n_d + change
            zero = torch.zeros_like(c), torch.zeros_like(s)
            (repaired,), _ = painter.translate(d, painter.G.encode(d)[0], (c, s), [zero])
        for made, wanted, before in ((again, d, n_d), (repaired, n_d, d)):
            assert (made - wanted).abs()[mask].mean() < 0.7 * (before - wanted).abs()[mask].mean()
        assert m[mask].mean() > 2 * m[~mask].mean()
        torch.testing.assert_close(painter.restore(d, y, []), repaired.clamp(-1, 1), atol=1e-4, rtol=0)

    def test_overfitting_four_images_halves_the_reconstruction_loss(self) -> None:
        torch.manual_seed(1)
        method = DTGAN(CONFIG.model_copy(update={"lambda_cyc": 10.0, "augment": False}), TASK, CPU)
        losses = [
            float(method.training_step(batch(), step, step / CONFIG.steps, generator(step))["cyc"])
            for step in range(40)
        ]
        assert sum(losses[-5:]) / 5 < 0.5 * losses[0]

    def test_same_seed_same_weights(self) -> None:
        states = []
        for _ in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                method = DTGAN(CONFIG, TASK, CPU)
            for step in range(2):
                method.training_step(batch(), step, step / CONFIG.steps, generator(step))
            states.append(method.networks.state())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    def test_state_restores_training_exactly(self, method: DTGAN) -> None:
        for step in range(2):
            method.training_step(batch(), step, step / CONFIG.steps, generator(step))
        saved = {key: value.clone() for key, value in method.networks.state().items()}
        expected = method.training_step(batch(5), 2, 2 / CONFIG.steps, generator(2))
        other = DTGAN(CONFIG, TASK, CPU)
        other.networks.load_state(saved)
        actual = other.training_step(batch(5), 2, 2 / CONFIG.steps, generator(2))
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        assert all(torch.equal(value, other.networks.state()[key]) for key, value in method.networks.state().items())


class TestGenerate:
    def test_a_sample_is_the_same_alone_and_in_a_batch(self, method: DTGAN) -> None:
        method.training_step(batch(), 0, 0.0, generator())
        x, y = images(3), torch.tensor([1, 2, 1])
        together = method.generate(GenerateBatch(x, y, [generator(i) for i in range(3)])).x
        alone = method.generate(GenerateBatch(x[2:], y[2:], [generator(2)])).x
        torch.testing.assert_close(alone[0], together[2], atol=1e-3, rtol=0)  # an eighth of a gray level

    def test_another_latent_code_gives_another_defect(self, method: DTGAN) -> None:
        x, y = images(1), torch.tensor([1])
        first, second = (method.generate(GenerateBatch(x, y, [generator(i)])).x for i in (1, 2))
        assert (first - second).abs().max() > 1e-3

    def test_references_are_exposed_as_in_training(self) -> None:
        x, ref = torch.rand(3, 1, 32, 32, generator=generator()) - 1, images(3, seed=4) / 2 - 0.5
        ref[1] += 0.9  # nearly white: it can hardly become brighter
        expected = [windows.exposed(r, windows.exposure(own, r)) for own, r in zip(x.numpy(), ref.numpy(), strict=True)]
        torch.testing.assert_close(exposed(ref, x), torch.from_numpy(np.stack(expected)), atol=0.05, rtol=0)
        assert exposed(ref, x).max() <= 1

    def test_generating_exposes_what_it_paints(self, painter: DTGAN, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []
        painter.E.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        x, ref = torch.full((1, 1, 32, 32), -0.5), torch.full((1, 1, 32, 32), -0.2)
        for exposure, level in ((False, -0.2), (True, -0.5)):
            monkeypatch.setattr(painter, "config", painter.config.model_copy(update={"exposure": exposure}))
            painter.generate(GenerateBatch(x, torch.tensor([1]), [generator()], x_ref=ref, x_style=ref))
            assert seen[-1].mean() == pytest.approx(level, abs=1e-5)

    def test_the_extent_is_where_e_sees_the_defect(self, painter: DTGAN, monkeypatch: pytest.MonkeyPatch) -> None:
        def seen(x: Tensor, _y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            a = -torch.ones(1, 1, 16, 16)
            a[..., 4:6, 8:16] = 1.0 if x.mean() > 0 else -1.0
            return a, a, a

        monkeypatch.setattr(painter.E, "with_presence", seen)
        bright, dark = (torch.full((1, 1, 32, 32), value) for value in (0.5, -0.5))
        assert painter.extent(1, generator(), bright) == (0.5, 0.25, 0.5, 0.125)
        assert painter.extent(1, generator(), dark) is None
        painter.bank.add(
            bright, torch.zeros_like(bright), torch.tensor([1]), torch.zeros(1, 3), torch.zeros(1, dtype=torch.bool)
        )
        assert painter.extent(1, generator()) == (0.5, 0.25, 0.5, 0.125)  # of the window that `generate` will take
        assert built(CONFIG).extent(1, generator(), bright) is None

    def test_the_bank_gives_codes_of_real_windows(self, painter: DTGAN) -> None:
        for step in range(3):
            painter.training_step(batch(step), step, step / 100, generator(step))
        x, y = images(2), torch.tensor([1, 2])
        made = painter.generate(GenerateBatch(x, y, [generator(1), generator(2)]))
        assert made.mask is not None
        assert made.mask.shape == (2, 1, 32, 32)
        drawn = torch.stack([painter.bank.draw(1, generator(1)), painter.bank.draw(2, generator(2))])
        again = painter.generate(GenerateBatch(x, y, [generator(1), generator(2)], x_ref=drawn, x_style=drawn))
        torch.testing.assert_close(made.x, again.x, atol=1e-5, rtol=0)

    def test_references_give_the_defect_and_the_style(self, method: DTGAN) -> None:
        """G gets the codes that E extracts from the references, or else those that M makes."""
        method.training_step(batch(), 0, 0.0, generator())
        x, y, x_ref, x_style = images(1), torch.tensor([1]), images(1, seed=5), images(1, seed=6)
        with torch.no_grad():
            drawn = method.M(torch.randn(1, method.M.latent_size, generator=generator(3)), y)
            own, bg = method.E(x, torch.zeros_like(y)), method.G.encode(x)[0]
            (c, s), (_, s_style) = method.E(x_ref, y), method.E(x_style, y)
            wanted = {
                "sampled": (c, drawn[1]), "own": (c, s), "other": (c, s_style), "latent": (drawn[0], s_style),
            }  # fmt: skip
            lost = x - method.G(bg, *own)[0]  # what G loses of x when it redraws it
            expected = {name: lost + method.G(bg, *code)[0] for name, code in wanted.items()}
        guides: dict[str, dict[str, Any]] = {
            "sampled": {"x_ref": x_ref}, "own": {"x_ref": x_ref, "x_style": x_ref},
            "other": {"x_ref": x_ref, "x_style": x_style}, "latent": {"x_style": x_style},
        }  # fmt: skip
        for name, guide in guides.items():
            made = method.generate(GenerateBatch(x, y, [generator(3)], **guide)).x
            torch.testing.assert_close(made, expected[name].clamp(-1, 1), atol=1e-4, rtol=0, msg=name)
        assert (expected["own"] - expected["other"]).abs().max() > 1e-5

    def test_before_the_first_step_nothing_is_painted(self, painter: DTGAN) -> None:
        x = images(2)
        painter.bank.add(
            x, torch.zeros(2, 1, 32, 32), torch.tensor([1, 2]), torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool)
        )
        torch.testing.assert_close(painter.generate(GenerateBatch(x, torch.tensor([1, 2]), [generator()] * 2)).x, x)


class TestConfigure:
    def test_every_preset_of_every_method_is_valid(self) -> None:
        for name in names():
            for preset in info(name).load().presets:
                info(name).configure(preset, {})

    def test_the_paper_preset_has_the_papers_settings(self) -> None:
        """Sections 3.1 and 4, and StarGAN v2 where the paper points to its unpublished appendices."""
        config = info("dt-gan").configure("paper", {})
        assert isinstance(config, DTGANConfig)
        assert (config.image_size, config.style_dim, config.latent_dim) == (128, 512, 16)
        assert (config.lr, config.lr_mapping, config.r1_every, config.ema) == (1e-4, 1e-6, 1, 0.999)
        weights = [getattr(config, f"lambda_{name}") for name in ("sd_rec", "d_rec", "cyc", "fg", "bg", "r1")]
        assert weights == [1.0] * 6
        assert config.lambda_ds == pytest.approx(1 / 6)  # six distances
        assert (config.residual, config.augment, config.prior) == (False, False, "latent")
        method = DTGAN(config.model_copy(update={"width": 16, "max_width": 128}), TASK, CPU)
        assert method.networks.modules.keys() == {"M", "E", "G", "D"}
        convolutions = [m for m in method.G.head if isinstance(m, torch.nn.Conv2d)]
        assert [conv.kernel_size for conv in convolutions] == [(1, 1)]  # "depth-wise pooling" of both
        assert sum(isinstance(m, AdaIN) for m in method.G.modules()) == 2 * (2 + 3)  # 16 -> 128 pixels

    def test_settings_are_converted_and_override_the_preset(self) -> None:
        config = info("dt-gan").configure("tiny", {"lr": "0.001", "augment": "false"}).model_dump()
        assert config["lr"] == 0.001
        assert config["augment"] is False
        assert config["image_size"] == 64

    @pytest.mark.parametrize(
        ("preset", "settings", "words"),
        [
            ("huge", {}, ["--preset huge", "compact", "tiny"]),
            ("tiny", {"lrr": "1"}, ["--set lrr", "lambda_cyc", "lr_mapping"]),
            ("tiny", {"lr": "fast"}, ["--set lr", "number"]),
            ("tiny", {"lr": "-1"}, ["--set lr", "greater than 0"]),
            ("tiny", {"image_size": "100"}, ["--set image_size", "64, 128"]),
            ("tiny", {"c_channels": "64"}, ["c_channels=64 must be less than the bottleneck's 64 channels"]),
            ("tiny", {"residual": "false"}, ["prior=bank needs residual=true; set prior=latent"]),
        ],
    )
    def test_errors_name_the_setting_and_the_allowed_values(
        self, preset: str, settings: dict[str, str], words: list[str]
    ) -> None:
        with pytest.raises(UsageError) as caught:
            info("dt-gan").configure(preset, settings)
        assert all(word in str(caught.value) for word in words)


def test_a_reference_guided_step_computes_gradients_of_g_alone() -> None:
    """Those of E would be thrown away, and cost as much as its forward passes."""
    method = built(CONFIG)
    y, p = torch.tensor([0, 1, 2, 1]), torch.zeros(4, dtype=torch.long)
    batch = Batch(images(4), y, p, images(4, 9), torch.tensor([1, 2, 1, 0]), p)
    latents = torch.randn(2, 4, method.M.latent_size, generator=generator())
    for given, trained in ((None, {"G"}), (latents, {"G", "M", "E"})):
        method._generator_step(batch, 0.5, given, generator())
        for name, module in method.networks.modules.items():
            graded = any(parameter.grad is not None for parameter in module.parameters())
            assert graded == (name in trained), name
            assert all(parameter.requires_grad for parameter in module.parameters())
