"""GOLD: tokens of equal text by KL, all others by rank."""

from __future__ import annotations

from xtoken_pl.losses.partitioned import PartitionedLoss
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary


class GOLD(PartitionedLoss):
    r"""GOLD: the common set C holds the pairs of tokens with equal text.

    .. math:: \lambda_{KL} \sum_{(s,t) \in C} \hat p_T[t] \log \frac{\hat p_T[t]}{\hat p_S[s]}
              + \lambda_{ULD} \|\mathrm{sort}_\downarrow \hat p_S|_{U_S} - \mathrm{sort}_\downarrow \hat p_T|_{U_T}\|_1

    Under a teacher that splits what the student packs (numbers, say) the common term pushes every uncommon token of
    the student down; see :func:`xtoken_pl.losses.partitioned.common_divergence`. The arguments are those of
    :class:`xtoken_pl.losses.partitioned.PartitionedLoss`.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, where GOLD is the baseline.
        [1] TRL's GOLD trainer, https://huggingface.co/docs/trl/gold_trainer
    """

    way_out = "use ProjectionKL or ULD for this teacher"

    def partition(
        self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None
    ) -> VocabularyPartition:
        return VocabularyPartition.strict(student, teacher)
