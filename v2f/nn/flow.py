"""Conditional flow matching: noise is carried to a sample of what a condition leaves open, along nearly straight lines.

    noise x_0 [B,K] from N(0, 1) --the velocity v(x_t, t, condition), integrated from t = 0 to 1--> a sample x_1 [B,K]

Lipman et al. 2023 ("Flow matching for generative modeling", arXiv 2210.02747) with the straight paths of its section
4.1 for sigma_min = 0, which are those of rectified flow (Liu et al. 2023, arXiv 2209.03003, eq. 1)::

    x_t = (1 - t) x_0 + t x_1,   loss = | v(x_t, t, condition) - (x_1 - x_0) |^2

With classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) of strength g, the velocity is
v(nothing) + g (v(condition) - v(nothing)); g = 1 is the condition's own.

Letters: B batch, K width of a sample, C width of the condition, W hidden width, P pairs of noise and time.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.nn import at_least_float32

Solver = Literal["euler", "heun"]
Velocity = Callable[[Tensor, Tensor], Tensor]
"""x_t [B,K] and t [B] -> [B,K]."""

_FREQUENCIES = 6  # of the time, in octaves: half a turn to 16 turns from t = 0 to 1


def on_the_way(noise: Tensor, sample: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and its velocity x_1 - x_0; ``t`` has as many axes as they have."""
    return (1 - t) * noise + t * sample, sample - noise


def linear_velocity(x_BK: Tensor, t_B: Tensor) -> Tensor:
    """``(2t - 1) / ((1 - t)^2 + t^2) x_t`` [B,K]: the regression of x_1 - x_0 on x_t, if the numbers of both are
    independent with mean 0 and variance 1; so the best velocity that is linear in x_t, and exact for normal numbers.
    """
    slope_B = (2 * t_B - 1) / ((1 - t_B).square() + t_B.square())
    return slope_B[:, None] * x_BK


def integrated(velocity: Velocity, noise_BK: Tensor, steps: int, solver: Solver) -> Tensor:
    """The sample [B,K] that the noise is carried to in equal steps, by Euler's method or by Heun's, which asks for the
    velocity twice a step and has an error of second order (Karras et al. 2022, arXiv 2206.00364, algorithm 1)."""
    x_BK = noise_BK
    for step in range(steps):
        now_B, then_B = (x_BK.new_full((len(x_BK),), (step + each) / steps) for each in (0, 1))
        v_BK = velocity(x_BK, now_B)
        if solver == "heun":
            v_BK = (v_BK + velocity(x_BK + v_BK / steps, then_B)) / 2
        x_BK = x_BK + v_BK / steps
    return x_BK


class FlowNet(nn.Module):
    """The velocity, by residual blocks of linear layers whose norms are scaled and shifted by time and condition (FiLM:
    Perez et al. 2018, arXiv 1709.07871).

    They add to :func:`linear_velocity`, which is all that is to be known of whitened samples but for their shape and
    their condition: without it the first hundreds of steps go into learning it.
    """

    def __init__(self, width: int, condition: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(condition)
        self.condition = nn.Sequential(nn.Linear(condition, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.nothing = nn.Parameter(0.02 * torch.randn(hidden))
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.last = nn.LayerNorm(hidden)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)

    def heard(self, condition_BC: Tensor) -> Tensor:
        """What the velocity needs of conditions: [B,W]."""
        heard_BW: Tensor = self.condition(self.norm(condition_BC))
        return heard_BW

    def forward(self, x_BK: Tensor, t_B: Tensor, heard_BW: Tensor) -> Tensor:
        """The velocity [B,K] at x_t and t, with a condition (:meth:`heard`), or with ``nothing``."""
        angle_BF = t_B[:, None] * math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=t_B.device).to(t_B)
        known_BW = F.silu(heard_BW + self.time(torch.cat([angle_BF.cos(), angle_BF.sin()], dim=1)))
        x_BW = self.enter(x_BK)
        for block in self.blocks:
            x_BW = block(x_BW, known_BW)
        return linear_velocity(x_BK, t_B) + at_least_float32(self.leave(F.silu(self.last(x_BW))))

    def draw(self, noise_BK: Tensor, condition_BC: Tensor, steps: int, solver: Solver, guidance: float) -> Tensor:
        """A sample [B,K] for each condition, and each noise."""
        heard_BW = self.heard(condition_BC)
        nothing_BW = self.nothing.expand_as(heard_BW)

        def velocity(x_BK: Tensor, t_B: Tensor) -> Tensor:
            v_BK: Tensor = self(x_BK, t_B, heard_BW)
            if guidance == 1:
                return v_BK
            free_BK: Tensor = self(x_BK, t_B, nothing_BW)
            return free_BK + guidance * (v_BK - free_BK)

        return integrated(velocity, noise_BK, steps, solver)


class _Block(nn.Module):
    """``x + linear(silu(linear(scale norm(x) + shift)))``, scale and shift made of what is known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BW: Tensor, known_BW: Tensor) -> Tensor:
        scale_BW, shift_BW = self.film(known_BW).chunk(2, dim=1)
        inner_BW = self.first(self.norm(x_BW) * (1 + scale_BW) + shift_BW)
        out_BW: Tensor = x_BW + self.second(F.silu(inner_BW))
        return out_BW
