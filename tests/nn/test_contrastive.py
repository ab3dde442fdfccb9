"""InfoNCE over fixed groups: its values, who is left out, and that ranks and micro-batches change nothing."""

import copy
import math

import pytest
import torch
from thread_ranks import Thread, on_ranks
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn.contrastive import InfoNCE
from v2f.nn.groups import common_group
from v2f.system import weighted

B, E = 16, 5


def drawn(rows: int = B) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Voices, faces, people of whom some repeat within a group of four, and weights of which one is 0."""
    rng = torch.Generator().manual_seed(1)
    voice_BE, face_BE = (torch.randn(rows, E, dtype=torch.float64, generator=rng) for _ in range(2))
    person_B = torch.arange(rows) % 7
    person_B[1], person_B[rows - 1] = person_B[0], person_B[rows - 3]
    weight_B = torch.ones(rows, dtype=torch.float64)
    weight_B[2] = 0
    return voice_BE, face_BE, person_B, weight_B


def test_it_is_the_formula() -> None:
    voice_BE, face_BE, person_B, weight_B = drawn(8)
    found_B = InfoNCE(4, 0.2, both_ways=False)(voice_BE, face_BE, person_B, weight_B)
    for i in range(8):
        first = 4 * (i // 4)
        others = [j for j in range(first, first + 4) if j == i or (person_B[j] != person_B[i] and weight_B[j])]
        score = {j: float(torch.cosine_similarity(voice_BE[i], face_BE[j], dim=0)) / 0.2 for j in others}
        wanted = math.log(sum(math.exp(each) for each in score.values())) - score[i]
        assert float(found_B[i]) == pytest.approx(wanted, abs=1e-12)
    back_B = InfoNCE(4, 0.2, both_ways=False)(face_BE, voice_BE, person_B, weight_B)
    both_B = InfoNCE(4, 0.2)(voice_BE, face_BE, person_B, weight_B)
    torch.testing.assert_close(both_B, (found_B + back_B) / 2, rtol=0, atol=1e-12)


def test_a_quarantined_sample_touches_nobody_else_and_gives_no_gradient() -> None:
    voice_BE, face_BE, _, weight_B = drawn(4)
    person_B = torch.arange(4)
    voice_BE.requires_grad_(True)
    one = weighted(InfoNCE(4)(voice_BE, face_BE, person_B, weight_B), weight_B)
    one.backward()
    assert voice_BE.grad is not None
    assert voice_BE.grad.isfinite().all()
    assert voice_BE.grad.abs().sum(dim=1).gt(0).tolist() == [True, True, False, True]
    other_BE, face_BE[2] = voice_BE.detach().clone(), -face_BE[2]
    other_BE[2] = 7.0
    torch.testing.assert_close(weighted(InfoNCE(4)(other_BE, face_BE, person_B, weight_B), weight_B), one.detach())
    nobody = InfoNCE(4)(voice_BE, face_BE, person_B, torch.zeros(4, dtype=torch.float64))
    assert nobody.isfinite().all()


class Net(nn.Module):
    """Two linear layers and the loss of what they make of a batch, as a system has it."""

    def __init__(self) -> None:
        super().__init__()
        self.voice, self.face = nn.Linear(E, 3), nn.Linear(E, 3)
        self.contrast = InfoNCE(4)

    def forward(self, rows: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        voice_BE, face_BE, person_B, weight_B = rows
        return weighted(self.contrast(self.voice(voice_BE), self.face(face_BE), person_B, weight_B), weight_B)


def gradient(net: Net, rows: tuple[Tensor, Tensor, Tensor, Tensor], micro: int) -> tuple[Tensor, Tensor]:
    """The mean loss over micro-batches, and its gradient."""
    net.zero_grad()
    parts = list(zip(*(each.split(micro) for each in rows), strict=True))
    losses = [net(part) / len(parts) for part in parts]
    for loss in losses:
        loss.backward()
    return torch.stack(losses).sum().detach(), torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [False, True])
def test_ranks_and_micro_batches_change_nothing(world_size: int, accumulate: bool) -> None:
    torch.manual_seed(0)
    net, rows = Net().double(), drawn()
    whole, wanted = gradient(copy.deepcopy(net), rows, B)
    share = B // world_size

    def of(rank: Thread) -> tuple[Tensor, Tensor]:
        own = tuple(each[rank.rank * share : (rank.rank + 1) * share] for each in rows)
        found = rank.gather(gradient(copy.deepcopy(net), own, 4 if accumulate else share))  # type: ignore[arg-type]
        loss, total = (torch.stack(each).mean(dim=0) for each in zip(*found, strict=True))
        return loss, total

    for loss, total in on_ranks(world_size, of):
        assert abs(float(loss - whole)) <= 1e-9 * abs(float(whole))
        assert float((total - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())
    assert float(wanted.abs().max()) > 1e-3


def test_a_batch_holds_whole_groups_in_training_and_any_number_in_evaluation() -> None:
    contrast, rows = InfoNCE(4), drawn(6)
    with pytest.raises(V2FError, match="groups of 4 samples, this batch has 6"):
        contrast(*rows)
    assert contrast.eval()(*rows).shape == (6,)
    torch.testing.assert_close(contrast(*rows)[:4], contrast(*(each[:4] for each in rows)))
    assert common_group([Net(), nn.Linear(2, 2)]) == 4
    with pytest.raises(V2FError, match="group of 1"):
        InfoNCE(1)
