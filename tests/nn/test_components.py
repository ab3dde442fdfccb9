"""Whitened principal components: fitted once, the same for any ranks and micro-batches, and undone by their inverse."""

import copy

import pytest
import torch
from torch import Tensor

from v2f.errors import V2FError
from v2f.nn.components import Components
from v2f.nn.statistics import Turn, begin, collect, commit, discard

X, K, N, B = 7, 3, 20, 8


def vectors(step: int) -> Tensor:
    """Vectors of three directions of different lengths, and little else."""
    rng = torch.Generator().manual_seed(step)
    own_BK = torch.randn(B, K, dtype=torch.float64, generator=rng) * torch.tensor([4.0, 2.0, 1.0])
    direction_KX = torch.randn(K, X, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return 3.0 + own_BK @ direction_KX + 1e-3 * torch.randn(B, X, dtype=torch.float64, generator=rng)


def stepped(components: Components, step: int, ranks: int = 1, micro: int = B, weight_B: Tensor | None = None) -> None:
    """A step of the global batch ``step``, dealt to ranks and micro-batches."""
    rows, slot_B = vectors(step), torch.arange(step * B, (step + 1) * B)
    weight_B = torch.ones(B) if weight_B is None else weight_B
    share, total = B // ranks, torch.zeros(0)
    for rank in range(ranks):
        own = copy.deepcopy(components)
        begin(own, Turn(seed=0, step=step, slot=step * B, slots=B))
        for at in range(rank * share, (rank + 1) * share, min(micro, share)):
            part = slice(at, at + min(micro, share))
            own(rows[part], slot_B[part], weight_B[part])
        found = collect(own)[""]
        total = found if rank == 0 else total + found
    commit(components, {"": total})


def fitted(ranks: int = 1, micro: int = B) -> Components:
    torch.manual_seed(0)
    components = Components(X, K, N).double()
    for step in range(4):
        stepped(components, step, ranks, micro)
    return components


def test_the_components_are_those_of_the_first_vectors() -> None:
    components, first_NX = fitted(), torch.cat([vectors(step) for step in range(3)])[:N]
    assert components.missing == 0
    assert torch.equal(components.kept_NX, first_NX)
    x_NK = components.down(first_NX)
    torch.testing.assert_close(x_NK.mean(dim=0), torch.zeros(K, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cov(x_NK.T), torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-9)
    assert components.scale_K.diff().lt(0).all()
    torch.testing.assert_close(components.up(x_NK), first_NX, rtol=0, atol=0.01)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 4), (2, 4), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_change_no_bit(ranks: int, micro: int) -> None:
    one, other = fitted().state_dict(), fitted(ranks, micro).state_dict()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_quarantined_vector_is_not_kept_and_a_skipped_step_keeps_none() -> None:
    torch.manual_seed(0)
    components, weight_B = Components(X, K, N).double(), torch.ones(B)
    weight_B[3] = 0
    stepped(components, 0, weight_B=weight_B)
    assert components.missing == N - B + 1
    assert torch.equal(components.kept_NX[: B - 1], vectors(0)[weight_B > 0])
    begin(components, Turn(seed=0, step=1, slot=B, slots=B))
    components(vectors(1), torch.arange(B, 2 * B), torch.ones(B))
    discard(components)
    assert not collect(components)[""].any()
    components.eval()(vectors(1), torch.arange(B, 2 * B), torch.ones(B))
    assert not collect(components)[""].any()


def test_before_the_fit_there_are_directions_and_after_it_nothing_moves() -> None:
    torch.manual_seed(0)
    components = Components(X, K, N).double()
    torch.testing.assert_close(
        components.basis_KX @ components.basis_KX.T, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-6
    )
    found = fitted()
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    stepped(found, 7)
    assert all(torch.equal(before[name], tensor) for name, tensor in found.state_dict().items())
    for width, components_, fit in ((4, 5, 9), (9, 5, 5)):
        with pytest.raises(V2FError, match="fit"):
            Components(width, components_, fit)
