"""The result of an alignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spans:
    """Smallest groups of consecutive tokens that cover the same bytes on both sides, in the order of the text.

    Span ``k`` holds the student tokens ``student_start[k]:student_end[k]`` and the teacher tokens
    ``teacher_start[k]:teacher_end[k]``. Tokens in no span are gaps and take no part in the distillation loss.

    Shape:
        All four arrays: ``[S]`` int64, S spans.
    """

    student_start: NDArray[np.int64]
    student_end: NDArray[np.int64]
    teacher_start: NDArray[np.int64]
    teacher_end: NDArray[np.int64]

    def to_array(self) -> NDArray[np.int64]:
        """``[S, 4]`` columns student_start, student_end, teacher_start, teacher_end."""
        return np.stack((self.student_start, self.student_end, self.teacher_start, self.teacher_end), axis=1)

    def __len__(self) -> int:
        return len(self.student_start)
