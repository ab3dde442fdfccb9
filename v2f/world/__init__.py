"""The synthetic world: people whose voices and faces share some factors, and what is known about them exactly.

``people`` holds the factors, ``portraits`` and ``voices`` render them, ``bounds`` computes what retrieval can reach,
``fingerprint`` hashes what they draw, ``labels`` names people by their face factors. Two smaller
worlds have versions of their own: ``shapes``, primitive monochrome pictures with classes, and ``things``, dogs, cats,
bells and engines with their ``sounds`` and pictures (``scenes``). Nothing is tuned to a score: a version of a world
never changes its outputs.
"""

import functools

from v2f.errors import V2FError
from v2f.world.people import VERSION

OUTPUT_HASHES: dict[str, str] = {
    "1": "5b94a5480934788e02938fe983c8687f321469389c2cad31db38b95b1d770367",
}
"""Version -> hash of its outputs (:func:`v2f.world.fingerprint.outputs_hash`). New outputs need a new version."""

WORLD_HASHES = OUTPUT_HASHES | {"1": "92e2ce40d7e98f212c0c68e5768734c2a69dd19b7ce6de9db6f1f6f08482a315"}
"""Version -> its hash in files: manifests, samples and stand-ins. Those of version 1 have a hash of its source code,
which was the rule then; it stands for the same outputs."""


def recorded_hash() -> str:
    """The hash of this version as files have it, without drawing anything: for a reader that only compares."""
    return WORLD_HASHES[VERSION]


@functools.cache
def world_hash() -> str:
    """:func:`recorded_hash`, once the outputs are verified: for code that makes or measures people.

    The first call in a process draws for a quarter of a second. V2FError if the outputs are not those of the version.
    """
    from v2f.world.fingerprint import outputs_hash  # here: it imports SciPy, which readers do without

    found = outputs_hash()
    if found != OUTPUT_HASHES.get(VERSION):
        raise V2FError(
            f"the synthetic world does not draw the outputs recorded for version {VERSION}: undo the change in "
            f'v2f/world, or set people.VERSION to a new number and add "NUMBER": "{found}" to OUTPUT_HASHES'
        )
    return recorded_hash()
