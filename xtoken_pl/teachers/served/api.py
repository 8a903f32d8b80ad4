"""Interface of the protocols by which servers are asked for log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xtoken_pl.teachers.served.answers import Answer, BadAnswerError, Question
from xtoken_pl.utilities.errors import UserError


class Api(ABC):
    """Protocol of a server: the request for the rows of a text, and how its answer is read.

    Args:
        model: Name under which the server knows the model.
        place: Description of the server, for messages.
    """

    #: Path that requests for rows are sent to.
    path: str
    #: Option of the server's command that raises the number of tokens of a row, if there is one.
    top_k_option: str | None = None

    def __init__(self, model: str, place: str) -> None:
        self.model = model
        self.place = place

    @abstractmethod
    def request(self, question: Question) -> dict[str, Any]:
        """Body of the request for some rows of a text."""

    @abstractmethod
    def read(self, answer: Any, question: Question) -> Answer:
        """Reads the rows that were asked for.

        Raises:
            BadAnswerError: If the answer has another form, or fewer positions than the text.
            UserError: If it is that of another model, or for another text.
        """

    def check_length(self, num_positions: int, question: Question) -> None:
        """Checks that an answer has one position for each token of the text."""
        if num_positions < len(question.ids):
            raise BadAnswerError(f"an answer for a shorter prompt: {num_positions} of {len(question.ids)} tokens")
        if num_positions > len(question.ids):
            self.refuse_text(f"{num_positions} tokens where {len(question.ids)} were sent")

    def check_model(self, model: str) -> None:
        """Checks the name of the model that answers."""
        if model != self.model:
            raise UserError(
                f"{self.place} must answer for model {self.model!r}, but answers for {model!r}; start it with the "
                "teacher, or change `model`"
            )

    def refuse_text(self, found: str) -> None:
        """Raises the error for an answer about another text than the one sent."""
        raise UserError(
            f"{self.place} must read the token ids as they are sent, but answers for {found}; turn off what changes "
            "prompts there (truncation, templates, added special tokens)"
        )


@contextmanager
def expected_form(missing: str) -> Iterator[None]:
    """Raises errors of reading an answer as :class:`BadAnswerError`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise BadAnswerError(f"an answer without {missing}") from error


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Index at which two sequences of ids begin to differ."""
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (own, other) in enumerate(pairs) if own != other), min(len(ours), len(theirs)))
