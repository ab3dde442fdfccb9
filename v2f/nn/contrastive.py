"""A contrastive loss between two embeddings of the same sample, such as those of a person's voice and face.

InfoNCE of van den Oord, Li and Vinyals 2018 (arXiv 1807.03748, eq. 4), with cosines over a temperature as scores. For
voice and face the same form, as an N-pair loss (Sohn 2016), is the explicit part of the alignment of Wen et al. 2021
(arXiv 2103.07293, "Seeking the shape of sound").

    cosines of a group's voices and faces [N,N] -> without other samples of the same person -> cross-entropy with i = j

Letters: B batch, E width of an embedding, G groups, N samples of a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2f.errors import V2FError
from v2f.nn import at_least_float32
from v2f.nn.groups import Grouped
from v2f.nn.speaker_head import in_float32


class InfoNCE(Grouped, nn.Module):
    """Each voice is to find its own face among those of its group, and each face its own voice.

    With v and f of length one, t the temperature, and A_i the samples of the group without those that are left out::

        l_i = -log( exp(v_i . f_i / t) / sum_{j in A_i} exp(v_i . f_j / t) )

    The loss of a sample is l_i, with ``both_ways`` the mean of it and of the same with v and f exchanged. Left out of
    A_i are other samples of the same person, which are no wrong answer, and quarantined ones (weight 0). Groups are
    fixed, ``group`` consecutive samples, so the loss does not depend on ranks and micro-batches; a rank's micro-batch
    must hold whole groups.
    """

    def __init__(self, group: int, temperature: float = 0.1, both_ways: bool = True) -> None:
        """V2FError if a group has fewer than two samples."""
        super().__init__()
        if group < 2:
            raise V2FError(f"contrastive loss: a group of {group} has nobody to tell apart; set group to at least 2")
        self.group, self.temperature, self.both_ways = group, temperature, both_ways

    def extra_repr(self) -> str:
        return f"group={self.group}, temperature={self.temperature}, both_ways={self.both_ways}"

    def forward(self, voice_BE: Tensor, face_BE: Tensor, person_B: Tensor, weight_B: Tensor) -> Tensor:
        """The loss of each sample, [B]; embeddings need not have length one. ``person_B``: equal numbers are the same
        person. ``weight_B``: 0 leaves a sample out of the others' losses; its own loss stays for the caller to weight.

        In training B must be a multiple of ``group``, else V2FError; in evaluation the last group may be smaller.
        """
        if self.training and (len(voice_BE) % self.group or not len(voice_BE)):
            raise V2FError(
                f"the contrastive loss covers groups of {self.group} samples, this batch has {len(voice_BE)}: set the "
                "batch size of each rank and micro-batch to a multiple of its group"
            )
        columns = (each.split(self.group) for each in (voice_BE, face_BE, person_B, weight_B))
        return torch.cat([self._of_group(*own) for own in zip(*columns, strict=True)])

    def _of_group(self, voice_NE: Tensor, face_NE: Tensor, person_N: Tensor, weight_N: Tensor) -> Tensor:
        with in_float32(voice_NE):
            voice_NE, face_NE = (F.normalize(at_least_float32(each), dim=1) for each in (voice_NE, face_NE))
            score_NN = voice_NE @ face_NE.T / self.temperature
            own_NN = torch.eye(len(person_N), dtype=torch.bool, device=score_NN.device)
            out_NN = ((person_N[:, None] == person_N) | (weight_N == 0)) & ~own_NN
            scores = (score_NN, score_NN.T) if self.both_ways else (score_NN,)
            found = [-each.masked_fill(out_NN, -torch.inf).log_softmax(dim=1).diagonal() for each in scores]
            return torch.stack(found).mean(dim=0)
