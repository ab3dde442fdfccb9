"""Numbers that say whether a face made from a voice shows that person, an average person, or always the same one.

Retrieval (:mod:`~v2f.metrics.recall`) asks whether a face finds its person. The other families show what retrieval does
not: whether a face looks like people of its speaker's group (:mod:`~v2f.metrics.agreement`), whether a speaker's clips
give the same face (:mod:`~v2f.metrics.consistency`), a collapse to one face (:mod:`~v2f.metrics.collapse`), pictures
that repeat (:mod:`~v2f.metrics.variety`), pictures that do not look real (:mod:`~v2f.metrics.pictures`), and a
generator and a discriminator that are out of balance (:mod:`~v2f.metrics.adversarial`). Sounds restored from codes
have numbers of their own (:mod:`~v2f.metrics.sounds`). Retrieval alone is not enough,
because the best retrieval and the best pictures pull apart. Every number is computed in float64 from a whole set, so it
depends on neither the batch size nor the number of ranks. Numbers over people come with each person's share
(:mod:`~v2f.metrics.people`), so that two runs can be compared person by person.
"""

from v2f.metrics.adversarial import gan_verdict, oscillation
from v2f.metrics.agreement import Agreement, agreement
from v2f.metrics.arrays import ratio
from v2f.metrics.collapse import (
    code_variance,
    collapse_meters,
    collapse_verdict,
    identity_distance,
    identity_distance_shares,
    margin,
    margin_shares,
)
from v2f.metrics.consistency import Consistency, consistency
from v2f.metrics.draws import mean_embedding, nearest_draw, spread
from v2f.metrics.people import Interval, each_over_people, over_people
from v2f.metrics.pictures import PictureDistance, frechet_distance, picture_distance
from v2f.metrics.recall import (
    GALLERY,
    HELD_EQUAL,
    KS,
    Retrieval,
    chance,
    recall_in_groups,
    retrieval,
    retrieval_held_equal,
)
from v2f.metrics.sounds import (
    code_counts,
    log_mel,
    log_mel_distance,
    perplexity,
    power_spectra,
    rate_distortion,
    si_sdr,
    used,
)
from v2f.metrics.variety import (
    identity_variety,
    identity_variety_shares,
    mode_collapse_verdict,
    pixel_variety,
    pixel_variety_shares,
    variety_meters,
)
from v2f.metrics.verification import (
    Trials,
    Verification,
    det_curve,
    draw_trials,
    equal_error_rate,
    min_dcf,
    operating_points,
    verification,
)

__all__ = [
    "GALLERY",
    "HELD_EQUAL",
    "KS",
    "Agreement",
    "Consistency",
    "Interval",
    "PictureDistance",
    "Retrieval",
    "Trials",
    "Verification",
    "agreement",
    "chance",
    "code_counts",
    "code_variance",
    "collapse_meters",
    "collapse_verdict",
    "consistency",
    "det_curve",
    "draw_trials",
    "each_over_people",
    "equal_error_rate",
    "frechet_distance",
    "gan_verdict",
    "identity_distance",
    "identity_distance_shares",
    "identity_variety",
    "identity_variety_shares",
    "log_mel",
    "log_mel_distance",
    "margin",
    "margin_shares",
    "mean_embedding",
    "min_dcf",
    "mode_collapse_verdict",
    "nearest_draw",
    "operating_points",
    "oscillation",
    "over_people",
    "perplexity",
    "picture_distance",
    "pixel_variety",
    "pixel_variety_shares",
    "power_spectra",
    "rate_distortion",
    "ratio",
    "recall_in_groups",
    "retrieval",
    "retrieval_held_equal",
    "si_sdr",
    "spread",
    "used",
    "variety_meters",
    "verification",
]
