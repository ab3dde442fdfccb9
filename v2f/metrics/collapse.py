"""Collapse to one face: how much faces differ from each other, and whether they follow the voice.

Shape letters: N people, Q queries, M pictures, D width, L styles.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from v2f.metrics.arrays import Numbers, floats, integers, ratio, unit_rows
from v2f.metrics.people import jackknife_shares


def identity_distance(emb_MD: Numbers, person_M: Numbers | None = None) -> float:
    """Mean of 1 - cos over pairs of pictures of *different* people; NaN if there is no such pair.

    ``person_M``: the person in each picture; None: a different person in each. One face for everyone gives 0.
    """
    emb = unit_rows(emb_MD)
    _, index_M = np.unique(np.arange(len(emb)) if person_M is None else integers(person_M), return_inverse=True)
    # the cosines of all pairs sum to |sum of rows|^2; subtract those within a person: O(M D), not O(M^2)
    sum_ND = np.zeros((len(np.unique(index_M)), emb.shape[1]))
    np.add.at(sum_ND, index_M, emb)
    pairs = len(emb) ** 2 - int((np.bincount(index_M) ** 2).sum()) if len(emb) else 0
    if not pairs:
        return float("nan")
    cosines = (sum_ND.sum(0) ** 2).sum() - (sum_ND**2).sum()
    return max(0.0, float(1 - cosines / pairs))


def identity_distance_shares(emb_MD: Numbers, person_M: Numbers) -> NDArray[np.float64]:
    """Each person's share in :func:`identity_distance`, in the order of their numbers; NaN with fewer than three
    people."""
    emb = unit_rows(emb_MD)
    _, index_M = np.unique(integers(person_M), return_inverse=True)
    count_N = np.bincount(index_M)
    sum_ND = np.zeros((len(count_N), emb.shape[1]))
    np.add.at(sum_ND, index_M, emb)
    if len(count_N) < 3:
        return np.full(len(count_N), np.nan)
    cosines_N = (sum_ND * (sum_ND.sum(0) - sum_ND)).sum(1)  # of a person's pictures with everyone else's
    pairs_N = count_N * (len(emb) - count_N)
    without_N = 1 - (cosines_N.sum() - 2 * cosines_N) / (pairs_N.sum() - 2 * pairs_N)
    return jackknife_shares(1 - float(cosines_N.sum() / pairs_N.sum()), without_N)


def margin(face_QD: Numbers, reference_ND: Numbers, person_Q: Numbers) -> float:
    """Mean own-minus-other cosine: how much nearer a face is to its own person than to the others.

    ``reference_ND[n]`` is a picture of person n. 0 for faces that do not follow the voice; NaN with one person.
    """
    return float(_margins(face_QD, reference_ND, person_Q).mean())


def margin_shares(face_QD: Numbers, reference_ND: Numbers, person_Q: Numbers) -> NDArray[np.float64]:
    """Each person's share in :func:`margin`, in the order of their numbers."""
    margin_Q = _margins(face_QD, reference_ND, person_Q)
    _, index_Q = np.unique(integers(person_Q), return_inverse=True)
    count_N, sum_N = np.bincount(index_Q), np.bincount(index_Q, margin_Q)
    if len(count_N) < 2:
        return np.full(len(count_N), np.nan)
    return jackknife_shares(float(margin_Q.mean()), (margin_Q.sum() - sum_N) / (len(margin_Q) - count_N))


def _margins(face_QD: Numbers, reference_ND: Numbers, person_Q: Numbers) -> NDArray[np.float64]:
    """Own-minus-other cosine of each face."""
    person = integers(person_Q)
    cosine_QN = unit_rows(face_QD) @ unit_rows(reference_ND).T
    if cosine_QN.shape[1] < 2:
        return np.full(len(person), np.nan)
    own_Q = cosine_QN[np.arange(len(person)), person]
    return own_Q - (cosine_QN.sum(1) - own_Q) / (cosine_QN.shape[1] - 1)


def code_variance(w_MLD: Numbers) -> float:
    """Variance of the codes w+ [M, L, D] over pictures, averaged over styles and width; 0 if all codes are equal."""
    w = floats(w_MLD)
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
    """The meters that show a collapse within minutes of training, from M pairs of a generated and a real picture.

    ``face`` and ``reference``: identity embeddings [M, D] of the generated and the real pictures; ``identity`` [M]: the
    person of each pair, any integers; ``w``: the codes w+ [M, L, D] of the generated pictures; ``codes``: those of the
    real pictures; ``mean_w``: the generator's mean style.
    Returns ``identity_distance`` and ``identity_distance_ratio`` (relative to the real pictures), ``margin``,
    ``w_variance``, ``w_variance_ratio`` (relative to the real pictures' codes) and ``w_norm``, the mean Frobenius norm
    of w+ minus the mean style, which should rise. A meter that needs two people is NaN with one.
    """
    _, first_N, index_M = np.unique(integers(identity), return_index=True, return_inverse=True)
    distance = identity_distance(face, index_M)
    meters = {
        "identity_distance": distance,
        "identity_distance_ratio": ratio(distance, identity_distance(reference, index_M)),
        "margin": margin(face, floats(reference)[first_N], index_M),
    }
    if w is not None:
        meters["w_variance"] = code_variance(w)
        if codes is not None:
            meters["w_variance_ratio"] = ratio(meters["w_variance"], code_variance(codes))
        if mean_w is not None:
            meters["w_norm"] = float(np.sqrt(((floats(w) - floats(mean_w)) ** 2).sum((1, 2))).mean())
    return meters


def collapse_verdict(meters: Mapping[str, float]) -> str | None:
    """What is wrong according to the meters of :func:`collapse_meters`, in a sentence; None if nothing is.

    The thresholds are far from what a working system reaches: the exact mean face of each voice (upper bound U1) has
    most of the distance of real faces and a clear margin; a collapsed generator has neither. Meters that are missing or
    NaN are ignored.
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
