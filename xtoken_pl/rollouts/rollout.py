"""The text that a student wrote behind a prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xtoken_pl.tokenization import CanonicalVocabulary

#: Why a rollout ended: by a stop token, or at the largest number of tokens.
Ending = Literal["stop", "length"]


@dataclass(frozen=True)
class Rollout:
    """A text that a student wrote behind a prompt.

    Attributes:
        ids: Token ids as generated, with the stop token; they need not be the canonical ids of their text.
        text: Bytes of all tokens but the stop token, which need not be valid UTF-8; special tokens have none.
        ended: Why it ended.
    """

    ids: tuple[int, ...]
    text: bytes
    ended: Ending

    @classmethod
    def from_ids(cls, ids: Sequence[int], vocabulary: CanonicalVocabulary, stop_ids: Collection[int]) -> Rollout:
        """Makes a rollout of generated ids, up to the first stop token.

        Args:
            ids: Generated ids; what follows a stop token is dropped.
            vocabulary: The student's vocabulary.
            stop_ids: Ids that end a text.
        """
        end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
        kept = tuple(ids if end is None else ids[: end + 1])
        text, _ = vocabulary.byte_stream(np.array(kept[:end], dtype=np.int64))
        return cls(kept, text.tobytes(), "length" if end is None else "stop")
