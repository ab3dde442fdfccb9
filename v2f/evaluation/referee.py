"""The referee: an identity net that no loss has seen, and that therefore judges a run impartially.

A system that is trained against an identity net learns to draw what that net looks at, which is not all of a face: the
judge (the net of the losses) finds more likeness in the pictures than there is. So the evaluation also asks a second
net of another architecture, trained on other people (for real faces: FaceNet if the judge is ArcFace, and vice versa),
and reports its numbers first.

Code that trains, selects checkpoints or stops runs must not import this module; an import contract enforces this.
"""

from torch import nn

from v2f import standins, weights
from v2f.errors import V2FError
from v2f.weights import JudgeConfig, UserWeights


def load(judges: JudgeConfig, judge_sha256: str | None = None) -> tuple[nn.Module, str | None]:
    """The referee that ``judges`` configures, frozen, and the SHA-256 of its file (None: the stand-in).

    Its ``look`` takes pictures [B,3,H,W] in [-1,1] of any size and returns embeddings [B,E] of length one and maps
    [B,C,h,w]. ``judge_sha256``: the file of the identity net that the run was trained against. V2FError if the weights
    are missing or do not fit, or if the file is that of the judge.
    """
    net = judges.effective_referee
    if not isinstance(net, UserWeights):
        return standins.load("referee"), None
    try:
        module, digest = weights.read(net, weights.locate(judges.path, net))
    except V2FError as error:
        raise V2FError(f"system.frozen.referee: {error}") from error
    if digest == judge_sha256:
        raise V2FError(
            "system.frozen.referee: its file is that of system.frozen.identity, which the losses use; name another file"
        )
    return module.eval().requires_grad_(False), digest
