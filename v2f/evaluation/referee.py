"""The referee: the identity net that tells of a run what no loss was trained to please.

A system that is trained against an identity net learns to draw what that net looks at, which is not all that makes a
face: its own judge finds more in its pictures than is there. So evaluation asks a second net, of another architecture
and trained on other people (on real faces: FaceNet beside ArcFace, or ArcFace beside FaceNet), and tells it first.

Nothing that trains, chooses or stops may import this module; an import contract holds that.
"""

from torch import nn

from v2f import standins, weights
from v2f.errors import V2FError
from v2f.weights import JudgeConfig, UserWeights


def load(judges: JudgeConfig, judge_sha256: str | None = None) -> tuple[nn.Module, str | None]:
    """The referee beside the nets of ``judges``, frozen, and its file's SHA-256 (None: the stand-in).

    Its ``look`` takes pictures [B,3,H,W] in [-1,1] of any size and gives embeddings [B,E] of length one and maps
    [B,C,h,w]. ``judge_sha256``: the file of the identity net that the run was trained against. V2FError where the
    weights are missing or do not fit, or where the file is the judge's own.
    """
    net = judges.effective_referee
    if not isinstance(net, UserWeights):
        return standins.load("referee"), None
    try:
        module, digest = weights.read(net, weights.locate(judges.path, net))
    except V2FError as error:
        raise V2FError(f"system.frozen.referee: {error}") from error
    if digest == judge_sha256:
        raise V2FError("system.frozen.referee: its file is that of system.frozen.identity, which the losses look at")
    return module.eval().requires_grad_(False), digest
