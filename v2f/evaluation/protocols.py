"""The protocols: the only table of their names. A system names its own (``System.protocol``)."""

from v2f.errors import V2FError
from v2f.evaluation.faces_of_voices import FacesOfVoices
from v2f.evaluation.labelled import LabelledPictures, LabelledSounds
from v2f.evaluation.pictures_from_noise import PicturesFromNoise
from v2f.evaluation.protocol import MEASURED, SPLITS, Job, Measured, Metric, Protocol
from v2f.system import System

PROTOCOLS: dict[str, Protocol] = {
    "faces_of_voices": FacesOfVoices(),
    "pictures_from_noise": PicturesFromNoise(),
    "labelled_pictures": LabelledPictures(),
    "labelled_sounds": LabelledSounds(),
}

__all__ = ["MEASURED", "PROTOCOLS", "SPLITS", "Job", "Measured", "Metric", "Protocol", "of"]


def of(system: type[System] | System) -> Protocol:
    """How a system is judged; V2FError where no protocol is named."""
    if system.protocol is None:
        raise V2FError(f"no protocol judges this system; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[system.protocol]
