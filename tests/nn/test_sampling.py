"""Drawing codes: each kind by hand, frequencies, and that a draw depends on nothing but its own row."""

import pytest
import torch

from v2f.nn.sampling import Sampling, pick

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()  # codes 1, 3, 2, 0 from the likeliest on


def drawn(uniform: list[float], **keys: object) -> list[int]:
    return pick(LOGITS.expand(len(uniform), 4), torch.tensor(uniform), Sampling.model_validate(keys)).tolist()


@pytest.mark.parametrize(
    ("keys", "uniform", "codes"),
    [
        ({}, [0.0, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 1 - 2**-24], [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"kind": "greedy"}, [0.0, 0.5, 0.99], [1, 1, 1]),
        ({"kind": "top-k", "k": 1}, [0.0, 0.99], [1, 1]),
        ({"kind": "top-k", "k": 2}, [0.0, 0.57, 0.58, 1 - 2**-24], [1, 1, 3, 3]),  # 4/7 is 0.5714
        ({"kind": "top-k", "k": 99}, [0.39, 0.41, 0.71, 0.91], [1, 3, 2, 0]),
        ({"kind": "top-p", "p": 0.4}, [0.0, 0.99], [1, 1]),
        ({"kind": "top-p", "p": 0.45}, [0.0, 0.57, 0.58, 1 - 2**-24], [1, 1, 3, 3]),
        ({"kind": "top-p", "p": 1.0}, [0.39, 0.41, 0.71, 0.91], [1, 3, 2, 0]),
        ({"temperature": 0.5}, [0.03, 0.05, 0.56, 0.58, 0.69, 0.71], [0, 1, 1, 2, 2, 3]),  # 1, 16, 4, 9 of 30
    ],
)
def test_each_kind_inverts_its_own_distribution(
    keys: dict[str, object], uniform: list[float], codes: list[int]
) -> None:
    assert drawn(uniform, **keys) == codes


def test_a_code_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(3, 5)
    for kind in ("naive", "top-p", "top-k"):
        how = Sampling.model_validate({"kind": kind, "p": 1.0})
        assert set(pick(logits, torch.tensor([0.0, 0.6, 1 - 2**-24]), how).tolist()) == {1, 3}


def test_frequencies_are_the_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6)
    found = pick(logits.expand(200_000, 6), torch.rand(200_000), Sampling()).bincount(minlength=6) / 200_000
    torch.testing.assert_close(found, logits.softmax(0), rtol=0, atol=0.005)


@pytest.mark.parametrize("kind", ["naive", "greedy", "top-k", "top-p"])
def test_a_row_is_drawn_alike_in_any_company(kind: str) -> None:
    torch.manual_seed(0)
    how = Sampling.model_validate({"kind": kind, "k": 4, "p": 0.7})
    logits, uniform = 3 * torch.randn(32, 50), torch.rand(32)
    whole = pick(logits, uniform, how)
    assert torch.equal(whole, torch.cat([pick(logits[n : n + 1], uniform[n : n + 1], how) for n in range(32)]))
    turned = torch.arange(32).flip(0)
    assert torch.equal(whole[turned], pick(logits[turned], uniform[turned], how))
