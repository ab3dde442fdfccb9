"""A codebook by gradient and by moving averages; in a whole system: tests/systems/test_vq_audio.py."""

import pytest
import torch

from v2f.nn import codebook
from v2f.nn.codebook import CodebookConfig, EMACodebook, GradientCodebook, k_means, nearest
from v2f.nn.statistics import Turn, begin, collect, commit

K, D, B, N = 12, 3, 8, 20
SLOT_B, ONE_B = torch.arange(B), torch.ones(B)


def vectors(seed: int, clusters: int = 4) -> torch.Tensor:
    """Vectors around some corners of a cube, float64 [B,N,D]."""
    rng = torch.Generator().manual_seed(seed)
    corner_BN = torch.randint(0, clusters, (B, N), generator=rng)
    corners = torch.cartesian_prod(*[torch.tensor([-2.0, 2.0], dtype=torch.float64)] * D)
    return corners[corner_BN] + 0.3 * torch.randn(B, N, D, generator=rng, dtype=torch.float64)


def averaged(decay: float = 0.5, dead: float = 0.3) -> EMACodebook:
    return EMACodebook(K, CodebookConfig(width=D, decay=decay, dead=dead, starts=2), purpose=1).double()


def step(books: list[EMACodebook], at: int, z_BND: torch.Tensor, weight_B: torch.Tensor = ONE_B) -> None:
    """One step of equal codebooks that each see a part of the batch, as ranks do."""
    slot_B = SLOT_B + at * B
    for book, z, slot, weight in zip(
        books, z_BND.chunk(len(books)), slot_B.chunk(len(books)), weight_B.chunk(len(books)), strict=True
    ):
        begin(book, Turn(seed=3, step=at, slot=at * B, slots=B))
        book(z, slot, weight)
    sums = {"": torch.stack([collect(book)[""] for book in books]).sum(0)}
    for book in books:
        commit(book, sums)


def test_the_nearest_code_is_found_however_many_vectors_there_are(monkeypatch):
    z_BND, codes_KD = vectors(0), vectors(1)[0, :K]
    found = nearest(z_BND, codes_KD)
    assert torch.equal(found, torch.cdist(z_BND, codes_KD[None]).argmin(dim=2))
    monkeypatch.setattr(codebook, "_ROWS", 7)
    assert torch.equal(nearest(z_BND, codes_KD), found)


def test_gradients_flow_as_equation_3_says():
    book, z_BND = GradientCodebook(K, D).double(), vectors(0).requires_grad_()
    made = book(z_BND, SLOT_B, ONE_B)
    code_BND = book.codes_KD[made.number_BN]
    assert torch.equal(made.code_BND, z_BND + (code_BND - z_BND))
    apart_BND = (code_BND - z_BND).detach()
    made.codebook_B.sum().backward()
    expected = torch.zeros(K, D, dtype=torch.float64)
    expected.index_add_(0, made.number_BN.flatten(), 2 * apart_BND.flatten(0, 1) / (N * D))
    torch.testing.assert_close(book.codes_KD.grad, expected)
    assert z_BND.grad is None  # the codebook term moves codes only
    made = book(z_BND, SLOT_B, ONE_B)
    made.commitment_B.sum().backward()
    torch.testing.assert_close(z_BND.grad, -2 * apart_BND / (N * D))
    torch.testing.assert_close(book.codes_KD.grad, expected)  # and the commitment vectors only
    z_BND.grad = None
    weights_BND = vectors(2)
    (book(z_BND, SLOT_B, ONE_B).code_BND * weights_BND).sum().backward()
    torch.testing.assert_close(z_BND.grad, weights_BND)  # the decoder's gradient passes straight through


def test_averages_follow_their_vectors():
    book = averaged(decay=0.75, dead=0.0)
    step([book], 0, vectors(0))
    sizes_K, totals_KD = book.sizes_K.clone(), book.totals_KD.clone()
    assert sizes_K.unique().tolist() == [pytest.approx(B * N / K)]
    z_BND = vectors(1)
    taken_BNK = torch.nn.functional.one_hot(nearest(z_BND, book.codes_KD), K).double()
    step([book], 1, z_BND)
    sizes_K = 0.75 * sizes_K + 0.25 * taken_BNK.sum((0, 1))
    totals_KD = 0.75 * totals_KD + 0.25 * torch.einsum("bnk,bnd->kd", taken_BNK, z_BND)
    torch.testing.assert_close(book.codes_KD, totals_KD / sizes_K[:, None])
    assert not book.revived


def test_a_dead_code_becomes_a_vector_of_the_step():
    book = averaged()
    step([book], 0, vectors(0))
    book.sizes_K[5], before = 1e-3, book.codes_KD[5].clone()
    z_BND = vectors(7)
    step([book], 1, z_BND)
    assert book.revived == 1
    assert not torch.equal(book.codes_KD[5], before)
    assert float((z_BND.flatten(0, 1) - book.codes_KD[5]).abs().sum(1).min()) < 1e-12
    assert book.sizes_K[5] == pytest.approx(float(book.sizes_K.mean()), rel=0.2)
    assert not book.dead_K[5]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_find_the_codes_that_one_process_finds(ranks):
    one, several = [averaged()], [averaged() for _ in range(ranks)]
    for at in range(10):
        weight_B = ONE_B.clone()
        weight_B[at % B] = 0
        z_BND = vectors(at, clusters=1 + 7 * (at % 8 < 4))  # clusters vanish, so codes die and are revived
        step(one, at, z_BND, weight_B)
        step(several, at, z_BND, weight_B)
    assert one[0].revived >= 3
    for name, tensor in one[0].state_dict().items():
        for other in several:
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=1e-9)
            assert torch.equal(other.state_dict()[name], several[0].state_dict()[name])


def test_a_step_without_any_vector_starts_nothing():
    book = averaged()
    step([book], 0, vectors(0), torch.zeros(B))
    assert not book.started
    step([book], 1, vectors(1))
    assert book.started
    step([book], 2, vectors(2), torch.zeros(B))
    assert book.codes_KD.isfinite().all()


def test_k_means_finds_clusters_and_makes_do_with_few_vectors():
    z_MD = vectors(0, clusters=8).flatten(0, 1)
    means = k_means(z_MD, 2 * K)
    assert float(torch.cdist(z_MD, means).min(dim=1).values.mean()) < 0.4
    few = k_means(z_MD[:3], K)
    assert few.shape == (K, D)
    torch.testing.assert_close(few.unique(dim=0), z_MD[:3].unique(dim=0))
