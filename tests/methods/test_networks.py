"""The averaged weights of a method's networks."""

import pytest
import torch

from defectgen.methods.dt_gan import DTGANConfig
from defectgen.methods.networks import Average

CONFIG = DTGANConfig(
    image_size=32, width=8, max_width=16, c_channels=2, latent_dim=4, style_dim=4, batch_size=2, steps=12
)


class TestAverage:
    def test_is_the_moving_average_of_the_weights(self) -> None:
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(network.weight, 1.0)
        average = Average({"n": network}, decay=0.5)
        torch.nn.init.constant_(network.weight, 3.0)
        average.update(step=100)
        assert average.state()["n.weight"].item() == pytest.approx(2.0)
        average.update(step=1)  # early: a decay of 2/11
        assert average.state()["n.weight"].item() == pytest.approx(2 * 2 / 11 + 3 * 9 / 11)

    def test_is_in_place_within_the_block_only(self) -> None:
        network = torch.nn.Linear(1, 1)
        average = Average({"n": network}, decay=0.5)
        torch.nn.init.constant_(network.weight, 3.0)
        with average.in_place():
            assert network.weight.item() != 3.0
        assert network.weight.item() == 3.0
