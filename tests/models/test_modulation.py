"""Two-stage AdaGN against its formula."""

import torch

from soda_dist.models.modulation import TwoStage
from tests.models.test_layers import feature, slow_group_norm


def module(seed: int = 0) -> TwoStage:
    torch.manual_seed(seed)
    modulation = TwoStage(channels=12, time_dim=6, latent_dim=5)
    modulation.start()
    return modulation


def test_equals_the_formula():
    modulation, h = module(), feature(3, 12, 4, 4)
    time, latent = torch.randn(3, 6), torch.randn(3, 5)
    with torch.no_grad():
        modulation.time.bias.normal_()
        modulation.latent.weight.normal_()
        t = time.double() @ modulation.time.weight.double().T + modulation.time.bias.double()
        z = latent.double() @ modulation.latent.weight.double().T
        t_s, t_b, z_s, z_b = (part[:, :, None, None] for part in (*t.split(12, 1), *z.split(12, 1)))
        expected = (1 + z_s) * ((1 + t_s) * slow_group_norm(h, 4) + t_b) + z_b
        torch.testing.assert_close(modulation(h, time, latent).double(), expected, rtol=1e-4, atol=1e-4)


def test_starts_without_z_and_with_a_gradient_for_its_projection():
    modulation, h, time = module(), feature(2, 12, 4, 4), torch.randn(2, 6)
    y = modulation(h, time, torch.randn(2, 5))
    assert torch.equal(y, modulation(h, time, torch.randn(2, 5)))
    y.square().sum().backward()
    assert bool((modulation.latent.weight.grad != 0).all())


def test_zeros_for_z_leave_the_timestep_alone():
    modulation, h, time = module(), feature(2, 12, 4, 4), torch.randn(2, 6)
    start = modulation(h, time, torch.ones(2, 5))
    torch.nn.init.normal_(modulation.latent.weight)
    assert torch.equal(modulation(h, time, torch.zeros(2, 5)), start)
    assert not torch.allclose(modulation(h, time, torch.ones(2, 5)), start)
