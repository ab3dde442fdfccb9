"""The table of all protocols by name, one module each. A system names its protocol in ``System.protocol``."""

from v2f.errors import V2FError
from v2f.evaluation.coded_sounds import CodedSounds
from v2f.evaluation.codes import CodesOfSounds
from v2f.evaluation.faces_of_voices import FacesOfVoices
from v2f.evaluation.identities_of_voices import IdentitiesOfVoices
from v2f.evaluation.labelled import LabelledPictures, LabelledSounds
from v2f.evaluation.labels_of_pictures import LabelsOfPictures, LabelsOfSounds
from v2f.evaluation.pictures_from_noise import PicturesFromNoise
from v2f.evaluation.protocol import MEASURED, SPLITS, Job, Measured, Metric, Protocol
from v2f.evaluation.speakers import Speakers
from v2f.system import System

PROTOCOLS: dict[str, Protocol] = {
    "faces_of_voices": FacesOfVoices(),
    "identities_of_voices": IdentitiesOfVoices(),
    "pictures_from_noise": PicturesFromNoise(),
    "labelled_pictures": LabelledPictures(),
    "labelled_sounds": LabelledSounds(),
    "labels_of_pictures": LabelsOfPictures(),
    "codes": CodesOfSounds(),
    "coded_sounds": CodedSounds(),
    "labels_of_sounds": LabelsOfSounds(),
    "speakers": Speakers(),
}

__all__ = ["MEASURED", "PROTOCOLS", "SPLITS", "Job", "Measured", "Metric", "Protocol", "of"]


def of(system: type[System] | System) -> Protocol:
    """The protocol of a system; V2FError if it names none."""
    if system.protocol is None:
        raise V2FError(f"no protocol judges this system; set System.protocol to one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[system.protocol]
