"""Counts before training how many windows have a prompt, and how many prompts are cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from xtoken_pl.batch import PROMPT
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.utilities.errors import UserError

_ROWS_PER_READ = 10_000


def count_prompts(windows: Dataset | Sequence[Window], where: str, maker: WindowMaker) -> None:
    """Logs how many windows have a prompt and how many prompts are cut, and refuses a source without any prompt.

    Args:
        windows: All stored windows of a source, or the first windows of a stream.
        where: Name of the split, or of the source, for messages.
        maker: Maker of the windows, with prompts.

    Raises:
        UserError: If none of the windows has a prompt.
    """
    assert maker.prompts is not None
    flags = _flags(windows)
    of = f"{len(windows):,}" if isinstance(windows, Dataset) else f"the first {len(windows):,}"
    if not len(flags):
        raise UserError(
            f"the student needs prompts to write behind, but none of {of} windows of {where} has one. "
            f"{_reason(maker)}; give other data, or leave model.rollouts out"
        )
    rank_zero_info(
        f"{where}: {len(flags):,} of {of} windows have a prompt. Prompts that are cut at their beginning, to leave "
        f"room for max_new_tokens={maker.prompts.max_new_tokens} in sequence_length="
        f"{maker.windower.sequence_length}: {flags[:, 1].sum():,}"
    )


def _flags(windows: Dataset | Sequence[Window]) -> NDArray[np.int64]:
    """``[N, 2]``, of each prompt whether it is a conversation's, and whether it is cut."""
    if isinstance(windows, Dataset):
        parts = windows.select_columns([PROMPT]).with_format("arrow").iter(batch_size=_ROWS_PER_READ)
        found = [pc.list_flatten(part.column(PROMPT)).to_numpy() for part in parts]
    else:
        found = [np.asarray(window[PROMPT], dtype=np.int64) for window in windows]
    return np.concatenate(found).reshape(-1, 2)


def _reason(maker: WindowMaker) -> str:
    """Describes what a window needs to have a prompt."""
    assert maker.prompts is not None
    if maker.source.holds_conversations:
        return (
            "A conversation needs a message that is not the assistant's, and chat templates that can write all "
            "messages up to the last one of these"
        )
    if maker.prompts.end is not None:
        return f"Each must hold a match of model.rollouts.prompt_end={maker.prompts.end!r}"
    return (
        f"On all sides a token must end within the first {maker.prompts.num_bytes} bytes (model.rollouts.prompt_bytes)"
    )
