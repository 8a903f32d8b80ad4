"""The interface of teacher sources: a model in this process, a cache, or a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Protocol

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from xtoken_pl.batch import AllRows, KnownRows, TeacherBatch
from xtoken_pl.losses import RowContent, SpanLoss
from xtoken_pl.scoring.tasks import GivenRows, HiddenRows
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.weighting import Weighting

_OTHER_LOSS = "choose a loss that reads no more (ProjectionKL, HybridKL; merge='chain_rule')"
_RUN_IT = "take another loss, or run the teacher in this process"


class TeacherSource(Protocol):
    """A place that a teacher's rows come from."""

    @property
    def gives(self) -> RowContent:
        """What it knows of a teacher's rows."""

    def rows(self, view: TeacherBatch) -> HiddenRows | GivenRows:
        """Returns the rows of a batch."""


class GivenSource(ABC):
    """Base of sources whose rows are made elsewhere.

    Args:
        name: Name of the teacher.
        vocabulary: Vocabulary of the teacher.
    """

    def __init__(self, name: str, vocabulary: CanonicalVocabulary) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self._num_tokens = int(vocabulary.exists.sum())
        self._holes: dict[torch.device, Tensor] = {}  # one copy per device

    @property
    @abstractmethod
    def gives(self) -> RowContent:
        """What the source knows of a teacher's rows."""

    @abstractmethod
    def rows(self, view: TeacherBatch) -> GivenRows:
        """Returns the rows of a batch."""

    def given(self, known: KnownRows, view: TeacherBatch) -> GivenRows:
        """Joins the rows of a batch with the tokens that they predict."""
        labels = view.tokens.labels
        labels = labels if isinstance(known, AllRows) else labels[view.spans.teacher_first]
        if labels.device not in self._holes:
            self._holes[labels.device] = torch.from_numpy(~self.vocabulary.exists).to(labels.device)
        return GivenRows(known, labels, self._holes[labels.device], self._num_tokens)


def check_source(name: str, place: str, gives: RowContent, loss: SpanLoss, weighting: Weighting, way_out: str) -> None:
    """Refuses a loss or a weighting that asks for more than a source gives.

    Args:
        name: The teacher's.
        place: Description of the source, such as ``its cache``.
        gives: What the source gives.
        loss: The teacher's loss.
        weighting: Weights between teachers.
        way_out: What to do about missing rows.

    Raises:
        UserError: If something is missing.
    """
    if (missing := gives.lacks(loss.row_needs)) is not None:
        raise UserError(
            f"the loss of teacher {name!r} ({type(loss).__name__}) reads {missing} of the teacher, and {place} "
            f"{'has one row for each span' if missing == 'every row' else f'has no {missing}'}; "
            f"{f'{_OTHER_LOSS}, {way_out}' if missing == 'every row' else _RUN_IT}"
        )
    if (missing := gives.lacks(weighting.row_needs)) is not None:
        raise UserError(
            f"{type(weighting).__name__}({weighting.extra_repr()}) reads {missing} of teacher {name!r}, and {place} "
            "has one row for each span, of which it may know the log-probability of the text alone; use "
            f"measure='cross_entropy' or StaticWeighting, {way_out}"
        )


def needs_of(loss: SpanLoss, weighting: Weighting) -> RowContent:
    """Returns what a loss and the weighting read of a teacher's rows."""
    of_loss = loss.row_needs
    return replace(of_loss, rows="all" if weighting.row_needs.rows == "all" else of_loss.rows)


def limit_tokens(name: str, gives: RowContent, loss: SpanLoss) -> None:
    """Limits the single tokens that a bound loss reads of a row to those that the teacher's source gives."""
    if gives.top_k is not None and (change := loss.limit_teacher_tokens(gives.top_k)) is not None:
        rank_zero_info(f"teacher {name!r}: {change}, the number of tokens that are known of each row")
