"""Byte classes of a vocabulary: tokens that stand for the same bytes count as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints


def byte_classes(vocabulary: CanonicalVocabulary) -> Ints:
    """``[V]`` number of each token's byte class, from 0; a token without bytes is a class of its own.

    Without tokens of equal bytes the class of a token is its id.
    """
    first: dict[bytes, int] = {}
    same = np.array([first.setdefault(text, i) if text else i for i, text in enumerate(vocabulary.token_bytes)])
    classes: NDArray[np.int64] = np.unique(same, return_inverse=True)[1]
    return classes
