import pytest
import torch
from torch import Tensor

from defectgen.nn.projected import ProjectedDiscriminator, hinge_d, hinge_g

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def discriminator() -> ProjectedDiscriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ProjectedDiscriminator(2, CPU)


def windows(count: int, seed: int, amplitude: float) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 64, 64, generator=rng).mul(amplitude).clamp(-1, 1)


def test_a_logit_for_each_scale_of_the_categories_asked_for(discriminator: ProjectedDiscriminator) -> None:
    x = windows(1, 0, 0.2).expand(4, -1, -1, -1)
    first, second, both, none = discriminator(x, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert first.shape == (4,)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(both, (first + second) / 2)
    assert (none == 0).all()


def test_only_the_heads_learn_and_a_checkpoint_holds_no_features(discriminator: ProjectedDiscriminator) -> None:
    x = windows(2, 1, 0.2).requires_grad_()
    hinge_g(discriminator(x, torch.ones(2, 2))).backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(dim=1) > 0).all()
    learned = {id(p) for p in discriminator.learned()}
    for name, parameter in discriminator.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in learned) == name.startswith("heads"), name
    assert all(key.split(".")[0] in ("ccm", "csm", "heads") for key in discriminator.state_dict())


def test_what_is_fixed_is_the_same_whatever_the_seed(discriminator: ProjectedDiscriminator) -> None:
    other = ProjectedDiscriminator(2, CPU)
    for name, value in discriminator.state_dict().items():
        if name.startswith(("ccm", "csm")):
            assert torch.equal(value, other.state_dict()[name]), name


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([[2.0, 0.5], [0.0, 1.0]]), torch.tensor([[-2.0, 0.0], [0.0, -0.5]])
    assert hinge_d(real, fake).item() == pytest.approx((0 + 1) / 2 + (0.5 + 0) / 2 + (0 + 1) / 2 + (1 + 0.5) / 2)
    assert hinge_g(fake).item() == pytest.approx(1.0 + 0.25)


def test_it_learns_coarse_from_fine_within_some_steps() -> None:
    """Noise of two strengths: after 15 steps held-out ones are told apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ProjectedDiscriminator(1, CPU)
    optimizer = torch.optim.Adam(network.learned(), lr=1e-3, betas=(0.0, 0.99))
    c = torch.ones(4, 1)
    for step in range(15):
        optimizer.zero_grad()
        hinge_d(network(windows(4, step, 0.4), c), network(windows(4, 100 + step, 0.1), c)).backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = (network(windows(4, seed, strength), c).mean(dim=1) for seed, strength in ((900, 0.4), (901, 0.1)))
    assert real.min() > fake.max()
