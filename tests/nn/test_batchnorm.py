import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from v2f.errors import V2FError
from v2f.nn.batchnorm import GhostBatchNorm, ghost_norms
from v2f.nn.statistics import collect, commit, discard


class Net(nn.Module):
    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv1d(2, 6, 3, padding=1), GhostBatchNorm(6, group)
        self.second, self.norm2 = nn.Conv1d(6, 3, 3), GhostBatchNorm(3, group)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.second(F.relu(self.norm1(self.first(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def waves(batch: int = 16) -> Tensor:
    return torch.randn(batch, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_each_group_equals_torch_batch_norm() -> None:
    torch.manual_seed(0)
    ghost, plain = GhostBatchNorm(5, 4).double(), nn.BatchNorm2d(5).double()
    for norm in (ghost, plain):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.5)
    x = torch.randn(8, 5, 3, 2, dtype=torch.float64)
    output = ghost(x)
    torch.testing.assert_close(output[:4], plain(x[:4]), rtol=0, atol=1e-12)
    plain.reset_running_stats()
    torch.testing.assert_close(output[4:], plain(x[4:]), rtol=0, atol=1e-12)


def test_running_statistics_are_those_of_torch_for_one_group() -> None:
    torch.manual_seed(0)
    ghost, plain = GhostBatchNorm(5, 8).double(), nn.BatchNorm1d(5).double()
    for _ in range(3):
        x = 3 * torch.randn(8, 5, 7, dtype=torch.float64) + 2
        ghost(x), plain(x)
        commit(ghost, collect(ghost))
    torch.testing.assert_close(ghost.running_mean, plain.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(ghost.running_var, plain.running_var, rtol=1e-9, atol=0)
    ghost.eval(), plain.eval()
    torch.testing.assert_close(ghost(x), plain(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("cuts", [(16,), (8, 8), (4, 12), (4, 4, 4, 4)])
def test_micro_batches_and_ranks_change_nothing(cuts: tuple[int, ...]) -> None:
    whole, cut = net(), net()
    x = waves()
    expected = whole(x)
    expected.square().sum().backward()
    commit(whole, collect(whole))

    outputs, flats = [], []
    for part in x.split(list(cuts)):  # each part on a "rank" of its own, whose sums are then added up
        outputs.append(cut(part))
        outputs[-1].square().sum().backward()
        flats.append(collect(cut))
        discard(cut)
    total = {name: torch.stack([flat[name] for flat in flats]).sum(dim=0) for name in flats[0]}
    commit(cut, total)

    torch.testing.assert_close(torch.cat(outputs), expected, rtol=0, atol=1e-12)
    for (name, a), b in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, a), b in zip(whole.named_buffers(), cut.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12, msg=name)
    assert whole.norm1.running_mean.any()


def test_a_forward_collects_and_never_commits() -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    module(waves()), module(waves(8))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert module.norm1.collected()[2] == 6
    flat = collect(module)
    assert all(sums.dtype == torch.float64 for sums in flat.values())
    assert {name: sums.shape for name, sums in flat.items()} == {"norm1": (2 * 6 + 1,), "norm2": (2 * 3 + 1,)}


def test_discarded_statistics_are_never_committed() -> None:
    module = net()
    module(waves() + 100)
    discard(module)
    commit(module, collect(module))  # nothing was seen: nothing moves
    assert not module.norm1.running_mean.any()
    assert (module.norm1.running_var == 1).all()
    module(waves())
    commit(module, collect(module))
    assert module.norm1.running_mean.abs().max() < 1
    assert module.norm1.collected()[2] == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_does_not_collect_twice(reentrant: bool) -> None:
    plain, saving = net(), net()
    x = waves().requires_grad_()
    plain(x).square().sum().backward()
    checkpoint(saving, x, use_reentrant=reentrant).square().sum().backward()
    assert saving.norm1.collected()[2] == plain.norm1.collected()[2] == 4
    torch.testing.assert_close(collect(saving), collect(plain), rtol=0, atol=0)


def test_evaluation_uses_running_statistics_for_any_batch() -> None:
    module = net().eval()
    with torch.no_grad():
        module.norm1.running_mean.fill_(0.5)
        alone, together = module(waves()[:1]), module(waves()[:7])
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-12)
    assert module.norm1.collected()[2] == 0


def test_statistics_stay_in_float32_under_autocast_and_half_precision() -> None:
    norm = GhostBatchNorm(3, 4)
    x = torch.randn(8, 3, 500) * 0.01 + 10
    with torch.autocast("cpu", torch.bfloat16):
        norm(x.bfloat16())
    mean, var, groups = norm.collected()
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(mean / groups, x.bfloat16().float().mean(dim=(0, 2)), rtol=1e-5, atol=0)

    norm.bfloat16()
    assert norm.weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    norm.discard()
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    commit(norm, collect(norm))
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 1.0), rtol=1e-2, atol=0)
    assert norm.eval()(x.bfloat16()).dtype == torch.bfloat16


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    norm = GhostBatchNorm(2, 2).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_names_are_those_of_torch_and_copies_keep_nothing_back() -> None:
    norm = GhostBatchNorm(4, 2)
    assert set(norm.state_dict()) == set(nn.BatchNorm1d(4).state_dict()) - {"num_batches_tracked"}
    norm(torch.randn(4, 4))
    assert copy.deepcopy(norm).collected()[2] == 2  # a copy in the middle of a step is a copy


def test_norms_are_found_once_and_in_order() -> None:
    module = net()
    shared = nn.Sequential(module, module.norm2, nn.BatchNorm1d(3))
    assert ghost_norms(shared) == [module.norm1, module.norm2]
    assert list(collect(shared)) == ["0.norm1", "0.norm2"]
    assert collect(nn.Linear(2, 2)) == {}
    commit(nn.Linear(2, 2), {})


def test_batches_that_do_not_fit_are_refused() -> None:
    norm = GhostBatchNorm(3, 4)
    with pytest.raises(V2FError, match="covers groups of 4 samples, this batch has 6"):
        norm(torch.zeros(6, 3, 5))
    with pytest.raises(V2FError, match="one value per channel"):
        GhostBatchNorm(3, 1)(torch.zeros(2, 3, 1))
    with pytest.raises(V2FError, match="at least one"):
        GhostBatchNorm(3, 0)
