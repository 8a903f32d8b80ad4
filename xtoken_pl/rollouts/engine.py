"""The interface of engines, which write texts with a student's current weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from xtoken_pl.rollouts.rollout import Rollout
from xtoken_pl.tokenization import CanonicalVocabulary


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        max_new_tokens: Largest number of tokens of a rollout.
        temperature: Temperature of the student's distribution; 0 takes the most probable token.
        top_p: Only the most probable tokens that together have this probability are drawn.
        top_k: Only so many most probable tokens are drawn; None for all.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
        prompt_ids: Token ids of the prompt.
        stop_ids: Token ids that end the text.
        seed: Numbers that all random draws of this text are a function of: it is the same in any batch, on any
            process, and in a run that resumes.
    """

    prompt_ids: Sequence[int]
    stop_ids: frozenset[int]
    seed: tuple[int, ...]


class RolloutEngine(ABC):
    """Base of engines. Subclass it anywhere importable to write with another library or on another machine."""

    @abstractmethod
    def write(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        student: PreTrainedModel,
        vocabulary: CanonicalVocabulary,
    ) -> list[Rollout]:
        """Writes one text for each request, in order, with the current weights, without dropout.

        Args:
            requests: Texts to write; every process has its own, and may have none.
            sampling: How the next token is drawn.
            student: The student, sharded or not; its mode is restored.
            vocabulary: The student's vocabulary; ids that no token has are never written.
        """
