"""ESCD: byte-prefix marginalization at boundaries, and the completion of teacher tokens that the student begins."""

from __future__ import annotations

from typing import ClassVar

import torch

from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.completion_term import CompletionTerm
from xtoken_pl.losses.group_divergence import group_divergence
from xtoken_pl.losses.marginal_loss import MarginalLoss
from xtoken_pl.losses.teacher_tokens import keep_tokens
from xtoken_pl.prefix_map import CompletionPlan, CompletionPlanner, CompletionSets, MarginalPlanner, PrefixMap
from xtoken_pl.tokenization import CanonicalVocabulary


class ESCD(MarginalLoss):
    r"""Byte-prefix marginalization at boundaries, and completion of the teacher tokens that a student token begins.

    .. math:: L = \sum_{\text{boundaries}} \Big[ D(t \| p)
              - \sum_{g:\, a \prec y_g} M_g \log \sum_{u \in C(r_g)} p'(u) \Big], \quad M_g = \sum_{v \in g} q(v)

    per span, summed over its student positions at which both sides begin a token. The first term is that of
    :class:`BPM` there. In the second one, a is the observed student token, q the teacher's distribution at the
    boundary, and :math:`p'` the student's at its next position, after a. Teacher tokens whose bytes are not one
    student token form the groups g: tokens of which one is a byte prefix of the other are in the same group, and
    :math:`y_g` is the shortest bytes in it. Where a is a proper prefix of :math:`y_g` (:math:`a \prec y_g`),
    :math:`r_g` is the rest of :math:`y_g`, and :math:`C(r_g)` the student tokens that begin with it.

    So the next position learns that something has to be completed, but not by which of the tokens that can do it.
    :math:`M_g` is not normalized, and the teacher's entropy is not subtracted: the loss is 0 only if there is nothing
    to complete. Groups whose :math:`C(r_g)` is empty add nothing. With the same tokenizer it is :class:`TokenKL`.

    **What we chose.** As in :class:`BPM`. The next position counts if it is learned and in a span, which need not be
    that of a: the completion belongs to its span and has that span's weight, and both spans stay in one block of rows.
    ``divergence`` concerns the boundaries only: the completion is the same under all three.

    Args:
        prefix_map: File written by ``python -m xtoken_pl prefix_map``; None compiles the map from the two tokenizers.
        divergence: Divergence of the two sides at boundaries; ``forward`` is KL(teacher || student).
        teacher_top_k: Number of tokens kept in each teacher row besides the observed one, the most probable ones; all
            others share the remaining probability evenly. The groups of a position that no kept token reaches are
            compared as one, in each term. None, the default, keeps all tokens.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1.

    References:
        [0] ESCD, 2026, https://arxiv.org/abs/2609.34738
    """

    bytes_per_token: ClassVar[int] = 24 * torch.int64.itemsize

    def make_planner(
        self, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary
    ) -> MarginalPlanner:
        sets = CompletionSets.build(prefix_map, student, teacher)
        self.completion = CompletionTerm(sets)
        return CompletionPlanner(sets, prefix_map, student, teacher, self.mass.own_column.numpy() >= 0)

    def forward(self, block: SpanBlock) -> SpanScores:
        assert isinstance(block.plan, CompletionPlan), "plan comes first"
        rows, kept = keep_tokens(block.teacher, self.teacher_top_k)
        groups = self.mass.at_boundaries(block.plan.boundary, rows, kept)
        row_nats = group_divergence(block.student.log_probs, groups, divergence=self.divergence)
        return self.scores(block, row_nats + self.completion(block.plan.completions, block.student, rows, kept))
