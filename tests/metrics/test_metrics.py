"""Retrieval compared with galleries that are actually drawn; collapse meters and picture distances on known cases."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from v2f import metrics
from v2f.errors import V2FError
from v2f.keyed import keyed_rng
from v2f.metrics import (
    chance,
    code_variance,
    collapse_meters,
    collapse_verdict,
    frechet_distance,
    identity_distance,
    margin,
    picture_distance,
    retrieval,
    retrieval_held_equal,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def people(n: int, noise: float, clips: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference embeddings [n,16], noisy queries of each person, and each query's person."""
    rng = keyed_rng(seed, 1)
    reference = unit(rng.normal(size=(n, 16)))
    person = np.repeat(np.arange(n), clips)
    return unit(reference[person] + noise * rng.normal(size=(n * clips, 16))), reference, person


def drawn_recall(query: np.ndarray, reference: np.ndarray, person: np.ndarray, gallery: int, k: int) -> float:
    """R@k over 400 galleries drawn for each query; ties are broken at random."""
    rng, hits = keyed_rng(3), 0.0
    for row, own in zip(query, person, strict=True):
        cosine = reference @ row
        others = np.delete(np.arange(len(reference)), own)
        drawn = np.stack([rng.choice(others, gallery - 1, replace=False) for _ in range(400)])
        tie = rng.random((400, gallery))
        better = (cosine[drawn] > cosine[own]) | ((cosine[drawn] == cosine[own]) & (tie[:, 1:] < tie[:, :1]))
        hits += float((better.sum(1) < k).mean())
    return hits / len(query)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_the_mean_over_drawn_galleries(k: int) -> None:
    query, reference, person = people(60, noise=0.5)
    exact = retrieval(query, reference, person, gallery=30).recall[k].value
    assert 0.1 < exact < 0.999
    assert exact == pytest.approx(drawn_recall(query, reference, person, 30, k), abs=0.012)


def test_recall_breaks_ties_at_random() -> None:
    reference = unit(np.repeat(np.eye(8)[:5], 4, axis=0))  # five faces, each of four people
    exact = retrieval(reference, reference, np.arange(20), gallery=10, ks=(1, 2)).recall
    for k in (1, 2):
        assert exact[k].value == pytest.approx(drawn_recall(reference, reference, np.arange(20), 10, k), abs=0.015)


def test_recall_of_the_reference_itself_is_one() -> None:
    _, reference, person = people(120, noise=0)
    result = retrieval(reference, reference, person)
    assert [result.recall[k].value for k in (1, 5, 10)] == [1, 1, 1]
    assert result.median_rank == 1


@pytest.mark.parametrize("everybody_alike", [False, True])
def test_one_face_for_everyone_is_exactly_chance(everybody_alike: bool) -> None:
    _, reference, person = people(150, noise=0, clips=3)
    reference = np.ones_like(reference) if everybody_alike else reference
    result = retrieval(np.ones((len(person), 16)), reference, person, gallery=100)
    for k, expected in chance(100).items():
        assert result.recall[k].value == pytest.approx(expected, abs=1e-9)
    assert result.median_rank == pytest.approx(50.5, abs=0.5)


def test_every_person_weighs_the_same() -> None:
    reference = np.eye(4)
    # person 0 is found with all nine clips, person 1 not with its only one
    query, person = np.concatenate([np.eye(4)[[0] * 9], np.eye(4)[[2]]]), np.array([0] * 9 + [1])
    result = retrieval(query, reference, person, gallery=4, ks=(1,))
    assert result.recall[1].value == pytest.approx(0.5)
    assert (result.people, result.queries) == (2, 10)


def test_interval_covers_people_and_not_clips() -> None:
    query, reference, person = people(100, noise=0.6)
    once = retrieval(query, reference, person, gallery=50).recall[1]
    # the same clip fifty times adds no information
    again = retrieval(np.repeat(query, 50, 0), reference, np.repeat(person, 50), gallery=50).recall[1]
    assert once.low < once.value < once.high
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=1e-6)
    assert once == retrieval(query, reference, person, gallery=50).recall[1]


@pytest.mark.parametrize("gallery", [1, 61])
def test_an_impossible_gallery_is_refused(gallery: int) -> None:
    query, reference, person = people(60, noise=0.5)
    with pytest.raises(V2FError, match=f"gallery of {gallery}"):
        retrieval(query, reference, person, gallery=gallery)


def test_knowing_the_group_only_is_chance_among_people_of_the_group() -> None:
    group = np.array([0] * 25 + [1] * 21 + [2] * 5 + [-1] * 9)  # the third group is small, the last people have none
    rng = keyed_rng(6)
    person = rng.permutation(60)
    alike = np.eye(4)[group]
    among = metrics.recall_in_groups(alike[person], alike, person, group)
    for k, expected in chance(20).items():
        assert among[k] == pytest.approx([expected] * 46)
    themselves = np.eye(60)
    assert metrics.recall_in_groups(themselves[person], themselves, person, group)[1].tolist() == [1.0] * 46
    assert len(metrics.recall_in_groups(alike, alike, np.arange(60), group, gallery=26)[1]) == 0


def test_knowing_one_factor_only_is_chance_where_it_is_held_equal() -> None:
    rng = keyed_rng(5)
    factor, second = rng.normal(size=(2, 600))

    def embed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return unit(np.stack([np.cos(a), np.sin(a), np.cos(b), np.sin(b)], axis=1))

    reference, person = embed(factor, second), np.arange(600)
    one, both = embed(factor, 0 * second), embed(factor, second + 0.1 * rng.normal(size=600))
    assert retrieval(one, reference, person).recall[10].value > 0.2
    held = retrieval_held_equal(one, reference, person, factor)
    assert held.recall[1].value == pytest.approx(1 / 20, abs=0.03)
    assert retrieval_held_equal(both, reference, person, factor).recall[1].value > 0.3


def test_a_person_is_in_its_own_gallery_where_all_are_alike() -> None:
    _, reference, person = people(30, noise=0)
    held = retrieval_held_equal(reference, reference, person, np.zeros(30), gallery=5)
    assert held.recall[1].value == 1


def test_identity_distance_leaves_out_pairs_of_one_person() -> None:
    emb = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert identity_distance(emb, [7, 7, 3]) == pytest.approx(1.0)
    assert identity_distance(emb) == pytest.approx(2 / 3)
    assert np.isnan(identity_distance(emb[:2], [7, 7]))


def test_margin_is_own_minus_other() -> None:
    assert margin(np.eye(3), np.eye(3), [0, 1, 2]) == pytest.approx(1.0)
    assert margin(np.eye(3)[[1, 0]], np.eye(3)[:2], [0, 1]) == pytest.approx(-1.0)


def test_meters_of_a_working_system_raise_no_alarm() -> None:
    query, reference, person = people(64, noise=0.2)
    codes = torch.from_numpy(keyed_rng(1).normal(size=(64, 10, 8)))
    meters = collapse_meters(
        face=torch.from_numpy(query),
        reference=torch.from_numpy(reference[person]),
        identity=torch.from_numpy(person) + 1000,
        w=0.9 * codes,
        codes=codes,
        mean_w=torch.zeros(8),
    )
    assert meters["identity_distance_ratio"] == pytest.approx(1.0, abs=0.05)
    assert meters["w_variance_ratio"] == pytest.approx(0.81)
    assert meters["w_norm"] == pytest.approx(float((0.9 * codes).flatten(1).norm(dim=1).mean()))
    assert meters["margin"] > 0.5
    assert collapse_verdict(meters) is None


def test_verdict_names_one_face_for_everyone() -> None:
    query, reference, person = people(64, noise=0.3)
    nearly_one = unit(np.ones((64, 16)) + 0.05 * query)
    said = collapse_verdict(collapse_meters(face=nearly_one, reference=reference[person], identity=person))
    assert said is not None
    assert "one face for everyone" in said
    assert "close to collapse" in str(collapse_verdict({"identity_distance_ratio": 0.2, "margin": 0.2}))


def test_verdict_names_codes_that_do_not_vary() -> None:
    assert "one face for everyone" in str(collapse_verdict({"w_variance_ratio": 0.001, "identity_distance_ratio": 0.9}))


def test_verdict_names_faces_that_do_not_follow_the_voice() -> None:
    query, reference, person = people(64, noise=0.1)
    said = collapse_verdict(
        collapse_meters(face=np.roll(query, 1, axis=0), reference=reference[person], identity=person)
    )
    assert said is not None
    assert "do not follow the voice" in said


def test_verdict_says_nothing_about_what_it_does_not_know() -> None:
    assert collapse_verdict({}) is None
    assert collapse_verdict({"identity_distance_ratio": float("nan"), "margin": float("nan")}) is None


def test_code_variance_is_over_pictures() -> None:
    w = np.broadcast_to(np.arange(12.0).reshape(1, 3, 4), (5, 3, 4))
    assert code_variance(w) == 0
    assert code_variance(np.array([[[1.0]], [[3.0]]])) == pytest.approx(1.0)


def test_picture_distance_of_one_distribution_is_one_and_zero() -> None:
    rng = keyed_rng(2)
    distance = picture_distance(rng.normal(size=(300, 20)), rng.normal(size=(300, 20)) * 1.0)
    assert distance.nearest == pytest.approx(1.0, abs=0.05)
    assert distance.energy == pytest.approx(0.0, abs=0.005)


def test_picture_distance_does_not_depend_on_the_scale_of_a_feature() -> None:
    rng = keyed_rng(2)
    made, real, scale = rng.normal(1, 2, size=(40, 5)), rng.normal(size=(40, 5)), np.array([1e-3, 1, 1, 1, 1e4])
    scaled = picture_distance(made * scale, real * scale)
    assert scaled.nearest == pytest.approx(picture_distance(made, real).nearest)
    assert scaled.energy == pytest.approx(picture_distance(made, real).energy)


def test_precision_and_recall_are_shares_within_the_third_nearest() -> None:
    rng = keyed_rng(23)
    made, real = rng.normal(size=(40, 5)), rng.normal(0.5, 1.2, size=(30, 5))
    scale = real.std(0)

    def share(queries: np.ndarray, known: np.ndarray) -> float:
        """By the definition, one picture after the other."""
        radius = [sorted(np.linalg.norm(known - one, axis=1))[3] for one in known]
        found = [
            any(np.linalg.norm(query - one) <= r for one, r in zip(known, radius, strict=True)) for query in queries
        ]
        return float(np.mean(found))

    found = picture_distance(made, real)
    assert found.precision == pytest.approx(share(made / scale, real / scale))
    assert found.recall == pytest.approx(share(real / scale, made / scale))
    few = picture_distance(made[:3], real)
    assert 0 <= few.precision <= 1
    assert np.isnan(few.recall)


def test_picture_distance_sees_ghosts_and_lack_of_variety() -> None:
    rng = keyed_rng(2)
    real, other = rng.normal(size=(2, 300, 20)) * np.linspace(0.1, 50, 20)
    ghosts = picture_distance(other + 2 * real.std(0) * rng.normal(size=(300, 20)), real)
    one_face = picture_distance(np.repeat(other[:1], 300, 0), real)
    assert ghosts.nearest > 1.3
    assert ghosts.energy > 0.05
    assert one_face.energy > 0.3


def test_a_broken_embedding_is_one_clear_line() -> None:
    broken = np.full((3, 4), np.nan)
    with pytest.raises(V2FError, match="not finite"):
        retrieval(broken, np.eye(4)[:3], [0, 1, 2], gallery=3)


def test_frechet_distance_of_normal_distributions_is_its_formula() -> None:
    """For N(m, diag(s^2)) and N(m', diag(s'^2)), it is |m - m'|^2 + |s - s'|^2."""
    rng = keyed_rng(41)
    made = rng.normal(size=(20_000, 3)) * [1.0, 2.0, 0.5] + [0.0, 1.0, 0.0]
    real = rng.normal(size=(20_000, 3)) * [1.0, 1.0, 1.5]
    assert frechet_distance(made, real) == pytest.approx(1 + 1 + 1, rel=0.03)
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert frechet_distance(made @ turned, real @ turned) == pytest.approx(frechet_distance(made, real), rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_also_with_fewer_rows_than_features() -> None:
    rows = keyed_rng(42).normal(size=(5, 30))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert np.isnan(frechet_distance(rows[:1], rows))


# ---------------------------------------------------------------------------------- each person's share in a number


def jackknifed(number: Callable[[np.ndarray], float], people: int) -> np.ndarray:
    """Pseudo-values, by computing the number again without each person."""
    everyone = np.arange(people)
    whole = number(everyone)
    return np.array([people * whole - (people - 1) * number(np.delete(everyone, p)) for p in everyone])


def test_the_shares_are_the_jackknifes() -> None:
    rng = keyed_rng(21)
    people, clips = 12, np.array([1, 2, 3] * 4)
    person_M = np.repeat(np.arange(people), clips)
    emb_MD, reference_ND = rng.normal(size=(len(person_M), 5)), rng.normal(size=(people, 5))
    made_NP, real_NP = rng.normal(size=(people, 4)), rng.normal(0.4, 1.0, size=(people, 4))

    def of(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return rows[np.isin(person_M, chosen)]

    distance = metrics.identity_distance_shares(emb_MD, person_M)
    assert distance == pytest.approx(
        jackknifed(lambda chosen: metrics.identity_distance(of(emb_MD, chosen), of(person_M, chosen)), people)
    )
    margin = metrics.margin_shares(emb_MD, reference_ND, person_M)
    assert margin == pytest.approx(
        jackknifed(lambda chosen: metrics.margin(of(emb_MD, chosen), reference_ND, of(person_M, chosen)), people)
    )
    each = metrics.picture_distance(made_NP, real_NP).each
    for name in ("nearest", "energy", "precision", "recall"):
        without = jackknifed(lambda c, name=name: getattr(metrics.picture_distance(made_NP[c], real_NP), name), people)
        assert each[name] == pytest.approx(without)
    for name, share_N in metrics.pixel_variety_shares(made_NP, real_NP).items():
        without = jackknifed(lambda c, name=name: metrics.pixel_variety(made_NP[c], real_NP)[name], people)
        assert share_N == pytest.approx(without)
    variety = metrics.identity_variety_shares(made_NP, real_NP)
    assert variety == pytest.approx(jackknifed(lambda c: metrics.identity_variety(made_NP[c], real_NP), people))


def test_the_spread_of_the_shares_is_how_sure_the_number_is() -> None:
    """For a mean over pairs, the means of each person's pairs would give half the true uncertainty."""
    drawn = [keyed_rng(22, i).normal(0.5, 1.0, size=(30, 4)) for i in range(400)]
    shares = [metrics.identity_distance_shares(rows, np.arange(30)) for rows in drawn]
    promised = np.mean([share_N.std(ddof=1) / 30**0.5 for share_N in shares])
    found = np.std([metrics.identity_distance(rows) for rows in drawn])
    assert promised == pytest.approx(found, rel=0.1)


def test_too_few_people_have_no_shares() -> None:
    two = np.eye(3)[:2]
    assert np.isnan(metrics.identity_distance_shares(two, [0, 1])).all()
    assert np.isnan(metrics.margin_shares(two[:1], two, [0])).all()
    assert np.isnan(metrics.picture_distance(two, two + 1).each["energy"]).all()
    for share_N in (*metrics.pixel_variety_shares(two, two).values(), metrics.identity_variety_shares(two, two)):
        assert np.isnan(share_N).all()
