"""Every loss with each of its options has the properties of :class:`loss_tester.LossTester`."""

from __future__ import annotations

import pytest
from loss_cases import CASES
from loss_tester import LossTester


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryLoss(LossTester):
    """See there."""
