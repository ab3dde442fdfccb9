"""Numbers that say whether a face made from a voice is that person's, anybody's, or everybody's.

Retrieval follows SF2F (Bai et al., MM 2022, section 4.2): a face made from a voice looks for its person among
``gallery`` people by the cosine of identity embeddings. Beside it stand the distances that show a collapse to
one face for every voice, and a measure of the picture itself, because the best retrieval and the best pictures
pull apart. Everything is computed in float64 and from whole sets, so no batch size and no rank count enters.

Beside a number over people stands each person's *share* in it, so that two runs can be compared person by person.
The share is the jackknife's pseudo-value (Efron and Stein 1981)::

    share(p) = N t - (N - 1) t(without p)

of a number t over N people. For a mean over people it is the person's own value; for a mean over pairs of people it
counts a pair for both of its people, which their own means would not, and so would take the number for surer than it
is. The mean of the shares is t (up to the jackknife's correction of its bias), their spread is t's uncertainty.

Shape letters: N people, Q queries, M pictures, D width, L styles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from v2f.errors import V2FError
from v2f.keyed import keyed_rng

Numbers = ArrayLike | Tensor

KS = (1, 5, 10)
"""The K of R@K that are reported."""

GALLERY = 100
"""People in a gallery; every R@K of the field that can be compared at all is at this size."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % interval over people."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """R@K of one way to make faces, among ``gallery`` people."""

    recall: dict[int, Interval]
    median_rank: float
    """Median over queries of the rank expected in a gallery; 1 is best, (gallery + 1) / 2 is chance."""
    gallery: int
    people: int
    queries: int
    each: dict[int, NDArray[np.float64]] = field(repr=False, compare=False)
    """K -> R@K of each person who was asked for, in the order of their numbers."""

    def as_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {f"R@{k}": interval.as_dict() for k, interval in self.recall.items()}
        return values | {"median_rank": self.median_rank, "people": self.people, "queries": self.queries}


def chance(gallery: int, ks: Sequence[int] = KS) -> dict[int, float]:
    """R@K of who knows nothing: K / gallery."""
    return {k: min(1.0, k / gallery) for k in ks}


def retrieval(
    query_QD: Numbers,
    gallery_ND: Numbers,
    person_Q: Numbers,
    *,
    gallery: int = GALLERY,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Retrieval:
    """R@K expected over *all* galleries of ``gallery`` people that hold the query's person; exact, nothing is drawn.

    ``gallery_ND[n]`` is the one reference of person n, ``person_Q[q]`` in [0, N) whose face query q is.
    A gallery is the query's person and ``gallery - 1`` of the other N - 1, drawn without replacement. Let b be how
    many of those N - 1 are nearer to the query than its own person is. The number of them that come into the
    gallery is hypergeometric, and the query is among the first K when at most K - 1 do::

        R@K(q) = P[X <= K - 1],   X ~ Hypergeometric(N - 1, b, gallery - 1)

    With t people exactly as near as the own one, ties are broken at random: the mean of that over b, ..., b + t.
    So a constant query has R@K of exactly K / gallery. Every person weighs the same, whatever their clips.
    The interval is the 2.5 and 97.5 % quantile of 2,000 bootstrap samples of *people* (a person's queries are not
    independent), as queries; the people to be told apart stay the same. V2FError if N < gallery or gallery < 2.
    """
    query, reference, person = _unit(query_QD), _unit(gallery_ND), _integers(person_Q)
    people = len(reference)
    if not 2 <= gallery <= people:
        raise V2FError(f"a gallery of {gallery} needs at least 2 and at most all people, and there are {people}")
    cosine_QN = query @ reference.T
    own_Q = cosine_QN[np.arange(len(query)), person]
    nearer_Q = (cosine_QN > own_Q[:, None]).sum(1)
    tied_Q = (cosine_QN == own_Q[:, None]).sum(1) - 1
    each = {k: _each(_hits(nearer_Q, tied_Q, people, gallery, k), person) for k in ks}
    # E[X] = (gallery - 1) b / (N - 1); half of the ties stand before the own person.
    rank_Q = 1 + (gallery - 1) * (nearer_Q + tied_Q / 2) / (people - 1)
    return Retrieval(
        recall={k: over_people(each_P, seed) for k, each_P in each.items()},
        median_rank=float(np.median(rank_Q)),
        gallery=gallery,
        people=len(np.unique(person)),
        queries=len(query),
        each=each,
    )


def retrieval_held_equal(
    query_QD: Numbers,
    gallery_ND: Numbers,
    person_Q: Numbers,
    factor_N: Numbers,
    *,
    gallery: int = 20,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Retrieval:
    """R@K among people who are alike in one factor: the query's person and the ``gallery - 1`` nearest in it.

    What the literature does with the sex (Kim et al. 2018: 1:2 matching with it held equal), for a factor that is
    a number: whoever knows that factor alone falls back to about chance here, K / gallery. The gallery is small, so
    that the people in it are truly alike. Ties and intervals as in :func:`retrieval`.
    """
    query, reference, person = _unit(query_QD), _unit(gallery_ND), _integers(person_Q)
    factor = _floats(factor_N)
    people = len(reference)
    if not 2 <= gallery <= people:
        raise V2FError(f"a gallery of {gallery} needs at least 2 and at most all people, and there are {people}")
    apart_NN = np.abs(factor[:, None] - factor[None, :])
    np.fill_diagonal(apart_NN, -1.0)  # the own person first, also where somebody has the same number
    alike_NG = np.argsort(apart_NN, axis=1, kind="stable")[:, :gallery]
    near_QG = np.take_along_axis(query @ reference.T, alike_NG[person], axis=1)
    nearer_Q = (near_QG[:, 1:] > near_QG[:, :1]).sum(1)
    tied_Q = (near_QG[:, 1:] == near_QG[:, :1]).sum(1)
    each = {k: _each(_hits(nearer_Q, tied_Q, gallery, gallery, k), person) for k in ks}
    return Retrieval(
        recall={k: over_people(each_P, seed) for k, each_P in each.items()},
        median_rank=float(np.median(1 + nearer_Q + tied_Q / 2)),
        gallery=gallery,
        people=len(np.unique(person)),
        queries=len(query),
        each=each,
    )


def _hits(
    nearer_Q: NDArray[np.int64], tied_Q: NDArray[np.int64], people: int, gallery: int, k: int
) -> NDArray[np.float64]:
    """The probability that the own person is among the first k; ties broken at random."""
    # P[X <= k - 1] for every possible number of nearer people; ``min`` because a gallery holds gallery - 1 others.
    from scipy.stats import hypergeom  # here: a second of imports that `v2f generate` would wait for

    table = hypergeom.cdf(min(k, gallery) - 1, people - 1, np.arange(people), gallery - 1)
    running = np.concatenate([[0.0], np.cumsum(table)])
    mean_Q = (running[nearer_Q + tied_Q + 1] - running[nearer_Q]) / (tied_Q + 1)
    return np.where(tied_Q == 0, table[nearer_Q], mean_Q)


def _each(value_Q: NDArray[np.float64], person_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean over each person's queries."""
    _, index_Q = np.unique(person_Q, return_inverse=True)
    return np.bincount(index_Q, value_Q) / np.bincount(index_Q)


def over_people(value_P: NDArray[np.float64], seed: int = 0, draws: int = 2000) -> Interval:
    """The mean over people with its percentile bootstrap interval (95 %) over people."""
    chosen = keyed_rng(seed, 0x526563).integers(len(value_P), size=(draws, len(value_P)))
    low, high = np.quantile(value_P[chosen].mean(1), [0.025, 0.975])
    return Interval(value=float(value_P.mean()), low=float(low), high=float(high))


def _shares(whole: float, without_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each person's share in a number, from the number without that person; see the head of this file."""
    return len(without_N) * whole - (len(without_N) - 1) * without_N


def identity_distance(emb_MD: Numbers, person_M: Numbers | None = None) -> float:
    """Mean of 1 - cos over pairs of pictures of *different* people; NaN without such a pair.

    ``person_M`` says whose each picture is; None: each is another person's. One face for everyone gives 0.
    """
    emb = _unit(emb_MD)
    _, index_M = np.unique(np.arange(len(emb)) if person_M is None else _integers(person_M), return_inverse=True)
    # The cosines of all pairs sum to |sum of rows|^2; those within a person are taken off: O(M D), not O(M^2).
    sum_ND = np.zeros((len(np.unique(index_M)), emb.shape[1]))
    np.add.at(sum_ND, index_M, emb)
    pairs = len(emb) ** 2 - int((np.bincount(index_M) ** 2).sum()) if len(emb) else 0
    if not pairs:
        return float("nan")
    cosines = (sum_ND.sum(0) ** 2).sum() - (sum_ND**2).sum()
    return max(0.0, float(1 - cosines / pairs))


def identity_distance_shares(emb_MD: Numbers, person_M: Numbers) -> NDArray[np.float64]:
    """Each person's share in :func:`identity_distance`, in the order of their numbers; NaN with fewer than three."""
    emb = _unit(emb_MD)
    _, index_M = np.unique(_integers(person_M), return_inverse=True)
    count_N = np.bincount(index_M)
    sum_ND = np.zeros((len(count_N), emb.shape[1]))
    np.add.at(sum_ND, index_M, emb)
    if len(count_N) < 3:
        return np.full(len(count_N), np.nan)
    cosines_N = (sum_ND * (sum_ND.sum(0) - sum_ND)).sum(1)  # of a person's pictures with all others'
    pairs_N = count_N * (len(emb) - count_N)
    without_N = 1 - (cosines_N.sum() - 2 * cosines_N) / (pairs_N.sum() - 2 * pairs_N)
    return _shares(1 - float(cosines_N.sum() / pairs_N.sum()), without_N)


def margin(face_QD: Numbers, reference_ND: Numbers, person_Q: Numbers) -> float:
    """Mean own-minus-other cosine: how much nearer a face is to its own person than to the others.

    ``reference_ND[n]`` belongs to person n. 0 for faces that do not follow the voice; NaN with one person.
    """
    return float(_margins(face_QD, reference_ND, person_Q).mean())


def margin_shares(face_QD: Numbers, reference_ND: Numbers, person_Q: Numbers) -> NDArray[np.float64]:
    """Each person's share in :func:`margin`, in the order of their numbers."""
    margin_Q = _margins(face_QD, reference_ND, person_Q)
    _, index_Q = np.unique(_integers(person_Q), return_inverse=True)
    count_N, sum_N = np.bincount(index_Q), np.bincount(index_Q, margin_Q)
    if len(count_N) < 2:
        return np.full(len(count_N), np.nan)
    return _shares(float(margin_Q.mean()), (margin_Q.sum() - sum_N) / (len(margin_Q) - count_N))


def _margins(face_QD: Numbers, reference_ND: Numbers, person_Q: Numbers) -> NDArray[np.float64]:
    """Own-minus-other cosine of each face."""
    person = _integers(person_Q)
    cosine_QN = _unit(face_QD) @ _unit(reference_ND).T
    if cosine_QN.shape[1] < 2:
        return np.full(len(person), np.nan)
    own_Q = cosine_QN[np.arange(len(person)), person]
    return own_Q - (cosine_QN.sum(1) - own_Q) / (cosine_QN.shape[1] - 1)


def code_variance(w_MLD: Numbers) -> float:
    """Variance of the codes w+ [M, L, D] over pictures, mean over styles and width; 0 for one code for everyone."""
    w = _floats(w_MLD)
    return float(w.var(0).mean())


def collapse_meters(
    *,
    face: Numbers,
    reference: Numbers,
    identity: Numbers,
    w: Numbers | None = None,
    codes: Numbers | None = None,
    mean_w: Numbers | None = None,
) -> dict[str, float]:
    """The meters of promise 7, from M pairs of a made and a real picture.

    ``face`` and ``reference``: identity embeddings [M, D]; ``identity`` [M]: whose, any integers; ``w``: the made
    codes w+ [M, L, D]; ``codes``: those of the real pictures; ``mean_w``: the generator's mean style.
    Gives ``identity_distance`` and ``identity_distance_ratio`` (over the real pictures'), ``margin``,
    ``w_variance``, ``w_variance_ratio`` (over the real pictures' codes) and ``w_norm``, the mean Frobenius norm of
    w+ minus the mean style, which should rise. A meter that needs two people is NaN with one.
    """
    _, first_N, index_M = np.unique(_integers(identity), return_index=True, return_inverse=True)
    distance = identity_distance(face, index_M)
    meters = {
        "identity_distance": distance,
        "identity_distance_ratio": ratio(distance, identity_distance(reference, index_M)),
        "margin": margin(face, _floats(reference)[first_N], index_M),
    }
    if w is not None:
        meters["w_variance"] = code_variance(w)
        if codes is not None:
            meters["w_variance_ratio"] = ratio(meters["w_variance"], code_variance(codes))
        if mean_w is not None:
            meters["w_norm"] = float(np.sqrt(((_floats(w) - _floats(mean_w)) ** 2).sum((1, 2))).mean())
    return meters


def ratio(value: float, reference: float) -> float:
    """``value`` over ``reference``; NaN where the reference is not above zero."""
    return value / reference if reference > 0 else float("nan")


def verdict(meters: Mapping[str, float]) -> str | None:
    """What the meters of :func:`collapse_meters` mean in words; None when the faces differ as faces do.

    The thresholds lie far from what works: the exact mean face of each voice (U1) has most of the real faces'
    distance and a clear margin, a collapsed generator has none. Missing and undefined meters say nothing.
    """
    apart = meters.get("identity_distance_ratio", float("nan"))
    spread = meters.get("w_variance_ratio", float("nan"))
    if apart < 0.1 or spread < 0.005:
        share = f"{100 * apart:.0f} % of the distance of real faces" if apart < 0.1 else "codes that hardly vary"
        return f"COLLAPSED: one face for everyone ({share}); the voice has no say in it"
    if apart < 0.35:
        return f"close to collapse: the faces have {100 * apart:.0f} % of the distance of real ones"
    if meters.get("margin", float("nan")) < 0.01:
        return "the faces differ, but do not follow the voice: a face is no nearer to its own person than to others"
    return None


def variety_meters(*, made: Numbers, real: Numbers, made_identity: Numbers, real_identity: Numbers) -> dict[str, float]:
    """How much M generated pictures differ from each other: :func:`pixel_variety`, and :func:`identity_variety` as
    ``variety_identity``. ``made`` and ``real``: pixels [M, P]; the others: identity embeddings [M, D]."""
    return pixel_variety(made, real) | {"variety_identity": identity_variety(made_identity, real_identity)}


def pixel_variety(made: Numbers, real: Numbers) -> dict[str, float]:
    """How much M generated pictures [M, P] differ, over how much as many real ones do, each another person's.

    ``variety`` is the ratio of mean distances in pixels. A generator with a few different pictures has it;
    ``variety_nearest``, the ratio of mean distances to the *nearest other* picture, sees that they repeat. 1 is like
    real ones; NaN with fewer than two pictures.
    """
    if len(made) < 2:  # type: ignore[arg-type]
        return dict.fromkeys(("variety", "variety_nearest"), float("nan"))
    made_mean, made_nearest = _spread(_floats(made))
    real_mean, real_nearest = _spread(_floats(real))
    return {"variety": ratio(made_mean, real_mean), "variety_nearest": ratio(made_nearest, real_nearest)}


def identity_variety(made: Numbers, real: Numbers) -> float:
    """The ratio of mean 1 - cos of identity embeddings [M, D]: how much people differ, 1 is like real ones."""
    return ratio(identity_distance(made), identity_distance(real))


def pixel_variety_shares(made: Numbers, real: Numbers) -> dict[str, NDArray[np.float64]]:
    """Each generated picture's share in the numbers of :func:`pixel_variety`; NaN with fewer than three."""
    rows_MP, count = _floats(made), len(made)  # type: ignore[arg-type]
    if count < 3:
        return dict.fromkeys(("variety", "variety_nearest"), np.full(count, np.nan))
    apart_MM = _distances(rows_MP, rows_MP)
    np.fill_diagonal(apart_MM, 0.0)
    sum_M = apart_MM.sum(1)
    mean_M = (sum_M.sum() - 2 * sum_M) / ((count - 1) * (count - 2))
    np.fill_diagonal(apart_MM, np.inf)
    next_M2 = np.partition(apart_MM, 1, axis=1)[:, :2]
    is_nearest_MM = apart_MM.argmin(1)[:, None] == np.arange(count)  # whose nearest each picture is
    # without a picture, those that it was nearest to have their second nearest
    nearest_M = (next_M2[:, 0].sum() - next_M2[:, 0] + (next_M2[:, 1] - next_M2[:, 0]) @ is_nearest_MM) / (count - 1)
    (mean, nearest), (real_mean, real_nearest) = _spread(rows_MP), _spread(_floats(real))
    with np.errstate(divide="ignore", invalid="ignore"):  # photos that are all the same: undefined, as the meters are
        return {
            "variety": _shares(mean, mean_M) / real_mean,
            "variety_nearest": _shares(nearest, nearest_M) / real_nearest,
        }


def identity_variety_shares(made: Numbers, real: Numbers) -> NDArray[np.float64]:
    """Each generated picture's share in :func:`identity_variety`; NaN with fewer than three."""
    shares_M = identity_distance_shares(made, np.arange(len(made)))  # type: ignore[arg-type]
    with np.errstate(divide="ignore", invalid="ignore"):
        return shares_M / identity_distance(real)


def _spread(rows_MD: NDArray[np.float64]) -> tuple[float, float]:
    """Mean Euclidean distance of two different rows, and of a row to its nearest other."""
    apart_MM = _distances(rows_MD, rows_MD)
    np.fill_diagonal(apart_MM, np.inf)
    return float(apart_MM[np.isfinite(apart_MM)].mean()), float(apart_MM.min(1).mean())


def mode_collapse(meters: Mapping[str, float]) -> str | None:
    """Whether pictures with the meters of :func:`variety_meters` hardly differ or repeat, in words."""
    variety, nearest = (meters.get(name, float("nan")) for name in ("variety", "variety_nearest"))
    people = meters.get("variety_identity", float("nan"))
    alike = [
        f"{100 * value:.0f} % of the distance {what}"
        for value, limit, what in (
            (variety, 0.1, "in pixels"),
            (people, 0.15, "between people"),
            (nearest, 0.25 * variety, "to the nearest other"),  # not because all are pale, but because some are equal
        )
        if value < limit
    ]
    return (
        f"MODE COLLAPSE: the generated pictures repeat themselves ({', '.join(alike)} of real ones)" if alike else None
    )


_RECENT = 20  # points that a verdict looks at; with half of them it begins
_SWING = 0.25
_GAN_LOSSES = ("generator/total", "discriminator/total", "discriminator/accuracy_real", "discriminator/accuracy_fake")


def gan_verdict(
    meters: Mapping[str, float], history: Mapping[str, Sequence[float]], *, least: float = 0.0
) -> str | None:
    """What goes wrong between a generator and a discriminator, by name; None: nothing is seen.

    ``meters`` of :func:`variety_meters`; ``history``: the logged means of ``loss/generator/total`` and of
    ``loss/discriminator/{total,accuracy_real,accuracy_fake}``. ``least``: the loss of a discriminator that knows all,
    above zero where labels are smoothed. *Mode collapse*: the pictures hardly differ, or repeat, or the generator's
    loss swings to and fro, as it does where it moves all its pictures from one mode to the next. *Not converging*: the
    discriminator tells everything apart, so that it teaches the generator nothing any more, or is worse than a guess
    (2 log 2). Nothing is said of the first points: every generator begins with one grey picture. On healthy runs of
    the synthetic world the discriminator's loss stayed above 0.13 and the swing below 0.1.
    """
    logged = {name: np.array([*history.get(f"loss/{name}", ())][-_RECENT:]) for name in _GAN_LOSSES}
    if any(len(values) < _RECENT // 2 for values in logged.values()):
        return None
    deceive, discriminate, right_real, right_fake = logged.values()
    troubles = []
    swing, low, high = to_and_fro(deceive), deceive.min(), deceive.max()
    swings = f"the generator's loss swings between {low:.2g} and {high:.2g}"
    collapse = mode_collapse(meters)
    if collapse:
        troubles.append(f"{collapse}; {swings}" if swing > _SWING else collapse)
    elif swing > _SWING:
        troubles.append(f"MODE COLLAPSE threatens: {swings}, though the pictures still differ")
    half = _RECENT // 2
    loss = discriminate[-half:].mean() - least
    shares = right_real[-half:].mean(), right_fake[-half:].mean()
    if loss < 0.05 and min(shares) > 0.98:
        grown = history["loss/generator/total"][0], deceive[-half:].mean()
        troubles.append(
            f"NOT CONVERGING: the discriminator has won (its loss is {loss:.2g} above the least there is; right on "
            f"{100 * shares[0]:.0f} % of the photos and {100 * shares[1]:.0f} % of the generated pictures)"
            + (f", the generator's loss grew from {grown[0]:.2g} to {grown[1]:.2g}" if grown[1] > grown[0] else "")
        )
    elif discriminate[-half:].mean() > 1.1 * 2 * np.log(2):
        troubles.append(
            f"NOT CONVERGING: the discriminator is worse than a guess (its loss is {discriminate[-half:].mean():.2g}, "
            "a guess has 1.4); the rates are too high, or the generator's is too high for it"
        )
    return "; ".join(troubles) or None


def to_and_fro(values: NDArray[np.float64]) -> float:
    """How far a curve goes to and fro: its path less its gain, a point, over its mean size; 0: it is monotone."""
    path = np.abs(np.diff(values)).sum() - abs(values[-1] - values[0])
    return float(path / (len(values) * np.abs(values).mean())) if np.abs(values).any() else 0.0


@dataclass(frozen=True, kw_only=True)
class PictureDistance:
    """How far pictures are from real ones in a perceptual net's features; see :func:`picture_distance`."""

    nearest: float
    energy: float
    each: dict[str, NDArray[np.float64]] = field(repr=False, compare=False)
    """The share of each made picture in either; NaN where it is undefined."""

    def as_dict(self) -> dict[str, float]:
        return {"nearest": self.nearest, "energy": self.energy}


def picture_distance(made_MD: Numbers, real_ND: Numbers) -> PictureDistance:
    """Two distances between a set of made pictures and real ones, on pooled perceptual features.

    ``nearest``: the mean Euclidean distance of a made picture to its nearest real one, over the same for each real
    picture and the others. 1 is as near as real ones are to each other; ghosts and blur are above it. It does not
    see a lack of variety (that is what the identity distance is for).
    ``energy``: the normalised energy distance (Szekely and Rizzo 2013, "Energy statistics", eq. 2 and section 2.5)
    H = (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / (2 E|X-Y|), unbiased sums, about 0 for one and the same distribution and at
    most 1. It sees both, and so is above 0 already for exact mean faces: compare it with U1's.

    Not the Frechet distance: it needs a covariance of D x D, and N of a few hundred people give one of rank N that
    moves with N (Binkowski et al. 2018, section 4). Features are scaled by the real ones' standard deviation.
    The same pictures must not stand on both sides. NaN with fewer than two pictures on a side.
    """
    made, real = _floats(made_MD), _floats(real_ND)
    if len(made) < 2 or len(real) < 2:
        nothing = np.full(len(made), np.nan)
        return PictureDistance(nearest=float("nan"), energy=float("nan"), each={"nearest": nothing, "energy": nothing})
    scale_D = real.std(0)
    scale_D = np.where(scale_D > 1e-6 * np.abs(real).max(0), scale_D, np.inf)  # a constant feature tells nothing
    made, real = made / scale_D, real / scale_D
    cross_MN, within_MM, within_NN = _distances(made, real), _distances(made, made), _distances(real, real)
    np.fill_diagonal(within_MM, 0.0)  # rounding leaves a little
    np.fill_diagonal(within_NN, 0.0)
    count = len(made)
    across_M, sum_M = cross_MN.mean(1), within_MM.sum(1)
    pairs_real = within_NN.sum() / (len(real) * (len(real) - 1))

    def energy(across: NDArray[np.float64], pairs_made: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(across > 0, (2 * across - pairs_made - pairs_real) / np.where(across > 0, 2 * across, 1.0), 0.0)

    whole = float(energy(across_M.mean(), sum_M.sum() / (count * (count - 1))))
    np.fill_diagonal(within_NN, np.inf)
    nearest_M, nearest_real = cross_MN.min(1), float(within_NN.min(1).mean())
    each = {"nearest": nearest_M / nearest_real if nearest_real > 0 else np.full(count, np.nan)}
    each["energy"] = np.full(count, np.nan)
    if count > 2:
        without_M = (across_M.sum() - across_M) / (count - 1), (sum_M.sum() - 2 * sum_M) / ((count - 1) * (count - 2))
        each["energy"] = _shares(whole, energy(*without_M))
    return PictureDistance(nearest=ratio(float(nearest_M.mean()), nearest_real), energy=whole, each=each)


def frechet_distance(made_MD: Numbers, real_ND: Numbers) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances of two sets (Heusel et al. 2017, eq. 6).

    It falls with the number of rows, so compare it with that of other real pictures, as many (Binkowski et al. 2018,
    section 4). NaN with fewer than two rows on a side.
    """
    made, real = _floats(made_MD), _floats(real_ND)
    if len(made) < 2 or len(real) < 2:
        return float("nan")
    one, other = np.cov(made, rowvar=False), np.cov(real, rowvar=False)
    # the trace of (C C')^(1/2) is the sum of the singular values of C^(1/2) C'^(1/2)
    crossed = np.linalg.svd(_root(one) @ _root(other), compute_uv=False).sum()
    apart = ((made.mean(0) - real.mean(0)) ** 2).sum()
    return max(0.0, float(apart + np.trace(one) + np.trace(other) - 2 * crossed))


def _root(covariance_DD: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance_DD)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _distances(a_MD: NDArray[np.float64], b_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances [M, N]."""
    square = (a_MD**2).sum(1)[:, None] + (b_ND**2).sum(1)[None, :] - 2 * a_MD @ b_ND.T
    return np.sqrt(np.maximum(square, 0.0))


def _floats(values: Numbers) -> NDArray[np.float64]:
    values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.float64)


def _integers(values: Numbers) -> NDArray[np.int64]:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.int64)


def _unit(values: Numbers) -> NDArray[np.float64]:
    """Rows of length 1; a non-finite number is an error, a row of zeros stays one (its cosine is 0)."""
    rows = _floats(values)
    if not np.isfinite(rows).all():
        raise V2FError("an identity embedding is not finite: the system's pictures are broken (NaN or infinite)")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)
