"""Every loss that reads a text, with each of its options, has the properties of :class:`loss_tester.LossTester`."""

from __future__ import annotations

import pytest
from loss_cases import CASES
from loss_tester import LossTester


@pytest.mark.parametrize("case", [case for case in CASES if case.is_of_text], ids=str)
class TestLossesOverTexts(LossTester):
    """See there."""
