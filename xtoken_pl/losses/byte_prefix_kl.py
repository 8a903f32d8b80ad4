r"""Byte-prefix KL: the teacher's pass over the text divides the student's vocabulary into groups of known mass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xtoken_pl.batch import LossPlan, Planner
from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.divergence import Divergence
from xtoken_pl.losses.group_divergence import group_divergence
from xtoken_pl.losses.prefix_mass import PrefixMass
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.losses.teacher_tokens import TopKLoss, keep_tokens
from xtoken_pl.prefix_map import BranchReader, Lookahead, PrefixPlan, PrefixPlanner, prefix_map_for
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_at_least_one, check_choice
from xtoken_pl.utilities.errors import UserError


class BytePrefixKL(TopKLoss):
    r"""Divergence over groups of student tokens, all whose masses the teacher's one pass gives.

    .. math:: L = \sum_{\text{positions}} w \, (D(Q, \tilde P) - \log M), \quad P_g = \sum_{s \in g} p_S(s), \quad
              M = \sum_{g:\, Q_g > 0} P_g, \quad \tilde P_g = P_g / M

    per span, summed over its student positions, where D is

    .. math::
        \text{forward: } & KL(Q \| \tilde P), \text{ so that } L = \sum_{\text{positions}} w \sum_g Q_g \log (Q_g / P_g)
        \\
        \text{reverse: } & KL(\tilde P \| Q) \\
        \text{Jensen-Shannon: } & \tfrac12 KL(Q \| m) + \tfrac12 KL(\tilde P \| m), \quad m = \tfrac12 (Q + \tilde P)

    The student's mass outside these groups, :math:`1 - M`, costs the same under all three, and moving mass there lowers
    none of them. Each is at least 0, and 0 only where :math:`P = Q`.

    The weight w is 1, or with ``weigh_inside``, at a position inside a teacher token, the teacher's probability of the
    token's bytes so far, :math:`q_1` summed over the tokens that begin with them. By the chain rule the forward loss of
    a token's positions is then the part of KL(teacher's token || student) that lies on the text's path, and text that
    the teacher finds wrong teaches little about what would follow it.

    With the observed teacher tokens :math:`t_1, t_2, \ldots` from a
    position on, :math:`q_d` the distribution that predicts :math:`t_d`, and :math:`\tau(s)` the teacher tokens that
    spell student token s, the groups are

    - at a boundary of both sides: for every teacher token v the student tokens whose spelling begins with v,
      :math:`Q = q_1(v)`. A v that leads no spelling adds to the group of the longest student token that is a prefix of
      its bytes (its *heir*);
    - of these the group of :math:`t_1` is divided along the observed path, as deep as it goes: student tokens that
      follow it for d tokens and go on with v have :math:`Q = M_d\,q_{d+1}(v)`, :math:`M_d = q_1(t_1) \cdots q_d(t_d)`.
      What no spelling goes on with belongs to the student token that ends after :math:`t_1 \ldots t_d`, or else the
      longest one that is a prefix of their bytes; and the path's own end to the observed student token;
    - inside a teacher token, of whose bytes b are there already: single student tokens. Only teacher tokens that begin
      with b and are longer take part; each gives its mass to the longest student token that is a prefix of its *rest*
      (its other bytes). Student tokens that go on behind the rest of :math:`t_1` are divided along the path as above.

    The teacher's token before a position may have ended there or may go on (``12`` before ``3``, of a teacher that has
    ``123``). The text shows one of the two; the student does not know which when it predicts:

    - at a boundary the token :math:`t_0` has ended, which :math:`q_0` predicts: all that follows it is multiplied by
      :math:`q_0(t_0)`, and every longer token v that begins with it adds :math:`q_0(v)` for its rest, as inside;
    - inside, where b is a teacher token itself, :math:`q_1(b)` belongs to one more group, since no row predicts what
      follows b: all student tokens that get no other mass.

    Teacher tokens that the student would have written together with its last token, as one token, cannot follow that
    token (``3`` behind ``12``, if ``123`` is a token) and have no mass. At a boundary these are the ones with which
    the spelling of the longer token ends; inside a teacher token, the ones whose rest the longer token ends with. A
    position at which the text itself does so, since it is not the student's own writing, excludes none.

    :math:`Q` is normalized over what student tokens can stand for: a teacher's special token that the student lacks, or
    a token whose bytes begin with none of the student's that the teacher can write, is conditioned away like the tokens
    that cannot follow. No other mass is lost. A position whose observed token the teacher cannot write, or which only
    one side has before a text (SentencePiece's space), has loss zero. A group whose student probability is below 2e-31
    (in single precision) counts as that, and in the forward form has no gradient. In the other forms a teacher's
    probability counts as 2e-31 at least, and as 1.2e-7 of the path's at least where it is computed as 1 minus others. A
    teacher's ``temperature`` tempers each :math:`q_d`, not the probability of the text.

    **What is exact.** If the teacher's probability is that of its tokenizer's own (*canonical*) token sequences, the
    student's tokenizer takes the longest token that it can, and the teacher's tokenizer writes text that begins with s
    by tokens that begin with :math:`\tau(s)` (its last token may be a longer one; merges across the end of s may break
    this), then at a boundary :math:`Q_g` is the probability that the student's next token is in g, given the student's
    tokens so far and the teacher's before its last one, unless

    - a teacher token that the text does not have leads longer student tokens only and is none itself (133 of Qwen 3's
      tokens for Llama 3): text that stops there belongs to another group;
    - a student token ends inside a teacher token that leaves the observed path below its first token, other than the
      observed one;
    - the student would have joined its last token with text that a teacher token only begins or goes beyond, or would
      have joined several of its last tokens: none of these is excluded;
    - rows begin or end (a window, masked text): without :math:`q_0` it is given that :math:`t_0` has ended; undivided
      groups are still right, their division is unknown.

    Where a teacher token v that the text does not have goes on behind the position, a student token that would go
    beyond v counts as the longest one that is a prefix of v's rest. Inside a teacher token, besides, it is given that
    it goes on, unless b is a token itself; and a student token that is a prefix of a rest gets nothing of
    :math:`q_1(b)`.

    **What it reduces to.** With the same tokenizer on both sides every group is one token: the loss is
    :class:`TokenKL` with the same divergence. With student tokens that are never longer than the teacher's, nothing is
    to be divided: boundaries are those of :class:`BPM`, except for tokens that cannot follow and for what might have
    gone on. Without the path (depth 0): the KL of leading tokens, which cannot tell ``1``, ``12`` and ``123`` apart
    under a teacher that splits digits. Unlike P-KL it needs no weights for a token's further pieces, and never prefers
    a token for being spelled shorter.

    Args:
        prefix_map: File written by ``python -m xtoken_pl prefix_map``; None compiles the map from the two tokenizers.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Number of tokens kept in each teacher row besides the observed one, the most probable ones; all
            others share the remaining probability evenly. The groups of a position that no kept token reaches are
            compared as one. The loss is then at most that of these rows without merging. Nothing is renormalized; None,
            the default, keeps all tokens.
        lookahead: Share of the probability from which a group that the text does not divide is divided along the
            teacher's own most probable continuation, which the teacher reads in short passes of their own, at most one
            group at each boundary; between 0 and 1. The teacher must run in this process. None, the default, reads the
            text alone.
        lookahead_tokens: Largest number of tokens that the teacher reads for it at a position.
        weigh_inside: Whether positions inside a teacher token are weighted by the teacher's probability of the token's
            bytes so far: for texts in which much is wrong, such as answers that nobody checked.

    Raises:
        UserError: If ``teacher_top_k`` or ``lookahead_tokens`` is not an integer >= 1, ``lookahead`` is not between 0
            and 1, or both ``teacher_top_k`` and ``lookahead`` are set.

    References:
        [0] The loss is ours. Related: byte-prefix marginalization (BPM), https://arxiv.org/abs/2607.22334; likelihood
            scoring, https://arxiv.org/abs/2512.14954; ALM, https://arxiv.org/abs/2503.20083
    """

    unwritten: Tensor  # student tokens that the teacher cannot write

    def __init__(
        self,
        *,
        prefix_map: str | None = None,
        divergence: Divergence = "forward",
        teacher_top_k: int | None = None,
        lookahead: float | None = None,
        lookahead_tokens: int = 2,
        weigh_inside: bool = False,
    ) -> None:
        super().__init__(teacher_top_k=teacher_top_k)
        check_at_least_one("lookahead_tokens", lookahead_tokens, "a token packs more of the teacher's seldom")
        if lookahead is not None and not 0 < lookahead < 1:
            raise UserError(f"lookahead must be between 0 and 1, got {lookahead}; None, the default, disables it")
        if lookahead is not None and teacher_top_k is not None:
            raise UserError(
                f"lookahead reads whole rows of the teacher, got teacher_top_k={teacher_top_k}; leave out one of them"
            )
        self.lookahead = lookahead
        self.lookahead_tokens = lookahead_tokens
        self.weigh_inside = weigh_inside
        self.prefix_map = prefix_map
        self.divergence: Divergence = check_choice("divergence", divergence, Divergence)
        self._planner: PrefixPlanner | None = None
        self._lookahead: Lookahead | None = None
        self._summary: list[tuple[str, int, int]] = []

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Loads or compiles the map.

        Raises:
            UserError: If the map belongs to other tokenizers, or the teacher can write none of the student's tokens.
        """
        prefix_map = prefix_map_for(self.prefix_map, student, teacher)
        if not prefix_map.leads.any():
            raise UserError(f"BytePrefixKL needs student tokens that {teacher.name!r} can write, got none; use ULD")
        self._summary = prefix_map.summary()
        self._planner = PrefixPlanner(prefix_map, student, teacher)
        if self.lookahead is not None:
            least = 0.0 if self.divergence == "forward" else torch.finfo(torch.float32).eps
            self._lookahead = Lookahead(prefix_map, self.lookahead, self.lookahead_tokens, least)
        is_token = torch.from_numpy(self._planner.exclusion.is_token)
        self.mass = PrefixMass(prefix_map, is_token, all_positive=self.divergence != "forward")
        unwritten = torch.from_numpy(prefix_map.lead < 0).nonzero().squeeze(1)
        self.register_buffer("unwritten", unwritten, persistent=False)

    def extra_repr(self) -> str:
        kept = [] if self.teacher_top_k is None else [f"teacher_top_k={self.teacher_top_k}"]
        kept += [] if self.lookahead is None else [f"lookahead={self.lookahead}"]
        kept += ["weigh_inside=True"] if self.weigh_inside else []
        return ", ".join(
            [f"divergence={self.divergence}", *kept, *(f"{count:,} {label}" for label, count, _ in self._summary)]
        )

    @property
    def planner(self) -> Planner:
        assert self._planner is not None, "bind comes first"
        return self._planner.plan

    @property
    def row_needs(self) -> RowContent:
        return replace(super().row_needs, branches=self.lookahead is not None)

    def look_ahead(self, plan: LossPlan, reader: BranchReader) -> LossPlan:
        """Divides groups of a plan along the teacher's own continuations, if ``lookahead`` is set."""
        assert isinstance(plan, PrefixPlan), "plan comes first"
        return plan if self._lookahead is None else plan.with_boundary(self._lookahead.extend(plan.boundary, reader))

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """Upper bound for columns, their sums, members, order and offsets of both sides, and tables of teacher bytes.

        A teacher's tokens have 8 bytes on average at most, and a student's token is a member of 3 groups.
        """
        of_student, of_teacher, of_byte = 7 * torch.int64.itemsize, 6 * torch.int64.itemsize, 1 + torch.int64.itemsize
        return of_student * student_size + (of_teacher + 8 * of_byte) * teacher_size

    def forward(self, block: SpanBlock) -> SpanScores:
        assert isinstance(block.plan, PrefixPlan), "plan comes first"
        plan, student = block.plan, block.student
        rows, kept = keep_tokens(block.teacher, self.teacher_top_k)
        boundary = self.mass.at_boundaries(plan.boundary, rows, kept)
        inside = self.mass.inside_tokens(plan.inside, rows, kept)
        row_nats = group_divergence(student.log_probs, boundary, inside, divergence=self.divergence)  # [P]
        if self.weigh_inside:
            so_far = inside.add_up(inside.mass).clamp_max(1).to(row_nats)  # [R], may exceed 1 by rounding
            row_nats = row_nats * torch.ones_like(row_nats).index_copy(0, inside.row, so_far)
        first = student.first_rows()
        unmapped_mass = first.detach().index_select(1, self.unwritten).exp().sum(-1).clamp(0, 1)
        return SpanScores(student.sum_by_span(row_nats), unmapped_mass, self._agreement(block))

    @torch.no_grad()
    def _agreement(self, block: SpanBlock) -> Tensor | None:
        """1 where the most probable tokens of both sides belong to the same group."""
        if self.training:
            return None
        ours = self.mass.of_student.column[block.student.first_rows().argmax(-1)]
        return (ours == self.mass.teacher_column[block.teacher.first_rows().argmax(-1)]).float()
