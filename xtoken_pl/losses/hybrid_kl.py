"""H-KL: GOLD's form with more common tokens, those that W pairs."""

from __future__ import annotations

from xtoken_pl.losses.partitioned import PartitionedLoss
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


class HybridKL(PartitionedLoss):
    r"""H-KL: GOLD's form with C enlarged by :math:`(s, \arg\max_t W[s, t])`.

    W is fixed: it chooses the pairs, and no gradient reaches it. The arguments are those of
    :class:`xtoken_pl.losses.partitioned.PartitionedLoss`; the rule for teacher tokens that several student tokens
    want is that of :meth:`xtoken_pl.projection.VocabularyPartition.enlarged`.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, H-KL.
    """

    needs_projection = True
    way_out = "use ULD for this teacher"

    def partition(
        self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None
    ) -> VocabularyPartition:
        if projection is None:
            raise UserError("HybridKL needs a projection; build one with build_projection")
        return VocabularyPartition.enlarged(student, teacher, projection)
