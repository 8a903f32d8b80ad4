"""Byte-prefix marginalization: every teacher token counts for the longest student token that it begins with."""

from __future__ import annotations

from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.group_divergence import group_divergence
from xtoken_pl.losses.marginal_loss import MarginalLoss
from xtoken_pl.losses.teacher_tokens import keep_tokens
from xtoken_pl.prefix_map import MarginalPlan


class BPM(MarginalLoss):
    r"""Byte-prefix marginalization: every teacher token counts for the longest student token that it begins with.

    .. math:: L = \sum_{\text{positions}} D(t \| p), \quad
              t(u) = \sum_{v:\, \varphi(v) = u} q(v), \quad t(\bot) = \sum_{v \text{ without } \varphi} q(v)

    per span, summed over its student positions. :math:`\varphi(v)` is the longest student token whose bytes are a
    prefix of those of teacher token v; a special token's is that of the same role. :math:`\bot` is all other student
    tokens as one, against the teacher tokens without :math:`\varphi`. q and p are the next-token distributions of
    teacher and student:

    - at a boundary, where both sides begin a token, q is the teacher's row there;
    - inside a teacher token, of whose bytes c are there already, only teacher tokens take part that begin with c and
      are longer; they are renormalized, and :math:`\varphi` is that of their other bytes.

    An observed student token that consists of several observed teacher tokens :math:`t_1 \ldots t_n` gets their
    probability :math:`q_1(t_1) \cdots q_n(t_n)`, which is taken from :math:`\varphi(t_1)`.

    With groups :math:`P_u = \sum_{s \in u} p(s)`, :math:`M = \sum_u P_u` and :math:`\tilde P = P / M`, D is
    :math:`KL(t \| \tilde P) - \log M = \sum_u t(u) \log(t(u) / P_u)` (forward), :math:`KL(\tilde P \| t) - \log M`
    (reverse), or their Jensen-Shannon divergence :math:`- \log M`. :class:`BytePrefixKL` goes on from here: it divides
    the student tokens below :math:`t_1` along the whole path, and compares groups inside teacher tokens. With the same
    tokenizer the loss is :class:`TokenKL`.

    **What we chose.** The paper gives the map and its two kinds of positions. Ours are: student tokens of equal bytes
    count as one; inside a teacher token, the path counts as at a boundary, and teacher tokens whose other bytes begin
    with no student token are left out; without student tokens or without teacher tokens in it, :math:`\bot` is no
    group; a position that only one side has before a text (SentencePiece's space) has loss zero; and the reverse and
    the Jensen-Shannon form. The sum over positions is divided by the number of spans, as in every loss here.

    Args:
        prefix_map: File written by ``python -m xtoken_pl prefix_map``; None compiles the map from the two tokenizers.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Number of tokens kept in each teacher row besides the observed one, the most probable ones; all
            others share the remaining probability evenly. The groups of a position that no kept token reaches are
            compared as one. None, the default, keeps all tokens.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1.

    References:
        [0] Byte-prefix marginalization, 2026, https://arxiv.org/abs/2607.22334
    """

    def forward(self, block: SpanBlock) -> SpanScores:
        assert isinstance(block.plan, MarginalPlan), "plan comes first"
        rows, kept = keep_tokens(block.teacher, self.teacher_top_k)
        groups = (
            self.mass.at_boundaries(block.plan.boundary, rows, kept),
            self.mass.inside_tokens(block.plan.inside, rows, kept),
        )
        return self.scores(block, group_divergence(block.student.log_probs, *groups, divergence=self.divergence))
