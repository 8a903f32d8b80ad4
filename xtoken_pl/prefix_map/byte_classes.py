"""Units of the student's vocabulary: tokens that stand for the same bytes count as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints


def student_units(student: CanonicalVocabulary) -> Ints:
    """``[V_s]`` number of each token's unit, from 0; a token without bytes is a unit of its own.

    Without tokens of equal bytes the unit of a token is its id.
    """
    first: dict[bytes, int] = {}
    same = np.array([first.setdefault(text, s) if text else s for s, text in enumerate(student.token_bytes)])
    units: NDArray[np.int64] = np.unique(same, return_inverse=True)[1]
    return units
