"""Flow matching: the solvers' orders, the path, and that a flow draws what a condition leaves open."""

import math

import pytest
import torch
from torch import Tensor

from v2f.nn.flow import FlowNet, Solver, integrated, linear_velocity, on_the_way


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_a_solver_has_its_order(solver: Solver, order: int) -> None:
    def velocity(x_BK: Tensor, t_B: Tensor) -> Tensor:
        return -2 * t_B[:, None] * x_BK

    start = torch.ones(3, 2, dtype=torch.float64)
    errors = [float((integrated(velocity, start, n, solver) - math.exp(-1)).abs().max()) for n in (16, 32)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
    assert errors[1] < 0.02


def test_the_path_is_straight_from_noise_to_sample() -> None:
    noise, sample = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    for t in (0.0, 0.25, 1.0):
        x, v = on_the_way(noise, sample, torch.full((2, 5, 1), t))
        torch.testing.assert_close(x, noise + t * v)
    torch.testing.assert_close(x, sample)
    torch.testing.assert_close(integrated(lambda x, t: sample[0] - noise[0], noise[0], 3, "euler"), sample[0])


def test_the_linear_velocity_is_the_regression_and_carries_noise_to_itself() -> None:
    rng = torch.Generator().manual_seed(3)
    noise, sample = (torch.randn(40_000, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    for t in (0.1, 0.5, 0.8):
        x, wanted = on_the_way(noise, sample, torch.full((40_000, 1), t, dtype=torch.float64))
        slope = float((x * wanted).mean() / x.square().mean())
        found = linear_velocity(x[:1], torch.tensor([t], dtype=torch.float64)) / x[:1]
        assert float(found) == pytest.approx(slope, abs=0.03)
    some = torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(integrated(linear_velocity, some, 50, "heun"), some, rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def trained() -> FlowNet:
    """Of a condition c in {-1, 1}: the first number is 2 c, the second is -1 or 1 by chance. Left out in a quarter."""
    torch.manual_seed(0)
    net = FlowNet(2, 1, 48, 2)
    net.norm = torch.nn.Identity()  # type: ignore[assignment]  # it would take one number for its own mean
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(900):
        c_BC = torch.randint(0, 2, (256, 1)) * 2.0 - 1
        sample_BK = torch.cat([2 * c_BC, torch.randint(0, 2, (256, 1)) * 2.0 - 1], dim=1)
        sample_BK = sample_BK + 0.1 * torch.randn_like(sample_BK)
        t_B1 = torch.rand(256, 1)
        x_BK, wanted_BK = on_the_way(torch.randn(256, 2), sample_BK, t_B1)
        heard_BW = torch.where(torch.rand(256, 1) < 0.25, net.nothing, net.heard(c_BC))
        loss = (net(x_BK, t_B1[:, 0], heard_BW) - wanted_BK).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net.eval()


@torch.no_grad()
def test_draws_commit_to_what_the_condition_leaves_open(trained: FlowNet) -> None:
    noise_BK = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    for c in (-1.0, 1.0):
        drawn_BK = trained.draw(noise_BK, torch.full((500, 1), c), 20, "heun", 1.0)
        torch.testing.assert_close(drawn_BK[:, 0].mean(), torch.tensor(2 * c), rtol=0, atol=0.15)
        assert drawn_BK[:, 0].std() < 0.4
        assert drawn_BK[:, 1].abs().sub(1).abs().median() < 0.3  # near one of the two, not between them
        assert 0.35 < float((drawn_BK[:, 1] > 0).float().mean()) < 0.65
    anything_BK = trained.draw(noise_BK, torch.ones(500, 1), 20, "heun", 0.0)
    assert 0.3 < float((anything_BK[:, 0] > 0).float().mean()) < 0.7
    assert torch.equal(drawn_BK, trained.draw(noise_BK, torch.ones(500, 1), 20, "heun", 1.0))
