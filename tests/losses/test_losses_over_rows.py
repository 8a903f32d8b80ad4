"""Every loss that compares rows, with each of its options, has the properties of :class:`loss_tester.LossTester`."""

from __future__ import annotations

import pytest
from loss_cases import CASES, TOP_K_CASES
from loss_tester import LossTester


@pytest.mark.parametrize("case", [case for case in [*CASES, *TOP_K_CASES] if not case.is_of_text], ids=str)
class TestLossesOverRows(LossTester):
    """See there."""
