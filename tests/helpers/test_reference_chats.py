"""The reference for conversations finds what is wrong with a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_templates import QWEN3, SMOLLM2, windows_of
from reference_chats import Part, boundaries, check_mask, check_spans, render
from tool_conversations import CALL, PLAIN, REASONING

from xtoken_pl.data.cutting import Window


@pytest.fixture
def window(tmp_path: Path) -> Window:
    (window,) = windows_of(tmp_path, SMOLLM2, [QWEN3], [PLAIN])
    return {name: np.array(column) for name, column in window.items()}


def test_parts_are_found_in_the_order_in_which_the_template_writes_them() -> None:
    found = render(QWEN3, CALL["messages"], CALL["tools"])
    kinds = [(2, "content"), (2, "name"), (2, "arguments"), (4, "reasoning"), (4, "content")]
    assert list(found.parts) == [Part(message, kind) for message, kind in kinds]
    assert found.parts[Part(2, "arguments")].decode() == '{"city": "Zürich (数)", "days": 12}'
    assert len(found.text) == len(found.places) == len(found.is_assistant)


def test_parts_that_the_template_drops_are_absent() -> None:
    assert [part.message for part in render(QWEN3, REASONING["messages"]).parts if part.kind == "reasoning"] == [3]
    assert not any(part.kind == "reasoning" for part in render(SMOLLM2, REASONING["messages"]).parts)


def test_a_wrong_mask_is_found(window: Window) -> None:
    reference = render(SMOLLM2, PLAIN["messages"])
    learned = np.flatnonzero(window["loss_mask"])
    for changed in (learned[0], learned[-1], learned[0] - 3, len(window["loss_mask"]) - 1):
        wrong = {**window, "loss_mask": window["loss_mask"].copy()}
        wrong["loss_mask"][changed] ^= True
        with pytest.raises(AssertionError, match="learned"):
            check_mask(SMOLLM2, wrong, reference)


def test_a_wrong_span_is_found(window: Window) -> None:
    ours, theirs = render(SMOLLM2, PLAIN["messages"]), render(QWEN3, PLAIN["messages"])
    spans = window["qwen3/spans"].reshape(-1, 4)
    assert len(check_spans(SMOLLM2, QWEN3, window, ours, theirs)) > 40
    for change in ((1, 1, 0, 0), (0, 0, 1, 1), (0, 1, 0, 0)):
        with pytest.raises(AssertionError):
            check_spans(SMOLLM2, QWEN3, {**window, "qwen3/spans": (spans + change).flatten()}, ours, theirs)


def test_tokens_that_spell_another_text_are_found(window: Window) -> None:
    with pytest.raises(AssertionError):
        boundaries(SMOLLM2, window["student_ids"][:-3], render(SMOLLM2, PLAIN["messages"]))
