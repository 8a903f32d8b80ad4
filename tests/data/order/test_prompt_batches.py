"""Batches carry prompts: steps of several batches, processes, workers, mixtures and streams, and runs that resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from prompt_data import CHAT_ROWS, MIXED, ONLY, STUDENT, TEACHERS, TEXT_ROWS, data_of, prompts_of, write
from recorded_runs import Recorder, SaveEverywhere

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.batch import NO_WINDOW, DistillBatch, Prompt
from xtoken_pl.checkpoints.io import AtomicCheckpointIO
from xtoken_pl.data import collate, whole_steps
from xtoken_pl.data.part_windows import open_windows
from xtoken_pl.specs import PromptSettings
from xtoken_pl.utilities.errors import UserError

# Steps ----------------------------------------------------------------------------------------------------------------


def batch(*texts: str | None) -> DistillBatch:
    """A batch of one-token windows, each with a prompt of its own, or none."""
    rows = [{"student_ids": [0], "loss_mask": [0], "prompt": [], "prompt_ids": []} for _ in texts]
    for row, text in zip(rows, texts, strict=True):
        row |= {"prompt": [0, 0], "prompt_ids": [*text.encode()]} if text is not None else {}
    return collate(rows, [])


def texts_of(prompts: Sequence[Prompt | None] | None) -> list[str | None]:
    return [None if prompt is None else bytes(prompt.ids[""]).decode() for prompt in prompts or ()]


def test_the_first_batch_of_a_step_carries_the_prompts_of_all_its_batches() -> None:
    batches = [batch("a", None), batch("b", "c"), batch("d"), batch("e"), batch(None)]
    found = list(whole_steps(batches, [2, 2, 1]))
    steps = [[texts_of(prompts) for prompts in one.step.prompts or ()] for one in found if one.step is not None]
    assert steps == [[["a", None], ["b", "c"]], [], [["d"], ["e"]], [], [[None]]]
    assert [texts_of(one.prompts) for one in found] == [texts_of(one.prompts) for one in batches]


def test_steps_on_data_without_prompts_carry_none() -> None:
    without = collate([{"student_ids": [0], "loss_mask": [0]}], [])
    assert without.prompts is None
    assert all(one.step is not None and one.step.prompts is None for one in whole_steps([without, without], [2]))


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    return TextSource(path=write(tmp_path / "a.jsonl", TEXT_ROWS))


@pytest.mark.parametrize("options", [{}, {"streaming": True, "shuffle_buffer": 4}], ids=["stored", "stream"])
@pytest.mark.parametrize("settings", [MIXED, ONLY], ids=["mixed", "only"])
def test_accumulated_steps_of_a_run_have_the_prompts_of_their_batches(
    source: TextSource, settings: PromptSettings, options: dict[str, Any]
) -> None:
    read: list[DistillBatch] = []

    class Reader(Recorder):
        def training_step(self, batch: DistillBatch, batch_idx: int) -> torch.Tensor:
            read.append(batch)
            return super().training_step(batch, batch_idx)

    data = data_of(source, settings, setup=False, batch_size=2, **options)
    fit(data, Reader(), max_epochs=1, max_steps=20 if not options else 3, accumulate_grad_batches=3)
    assert len(read) > 6
    for place, first in enumerate(read):
        assert first.step is not None
        if first.step.place:
            assert first.step.prompts is None
            continue
        own = read[place : place + first.step.num_batches]
        assert first.step.prompts == [one.prompts for one in own]
        assert len(own) == (3 if options or place + 3 <= len(read) else len(read) - place)


# Loaders --------------------------------------------------------------------------------------------------------------


def test_workers_carry_the_same_prompts(source: TextSource) -> None:
    alone, workers = (list(data_of(source, ONLY, num_workers=count).train_dataloader()) for count in (0, 2))
    assert prompts_of(alone) == prompts_of(workers)


def test_processes_share_out_the_prompts_and_a_blank_window_has_none(source: TextSource) -> None:
    data = data_of(source, ONLY)
    windows = open_windows(data.parts("train"))
    shared = collate(windows.__getitems__([0, NO_WINDOW, 1]), list(TEACHERS))
    assert shared.prompts is not None
    assert [prompt is None for prompt in shared.prompts] == [False, True, False]
    blank = collate(windows.__getitems__([NO_WINDOW]), list(TEACHERS))
    assert blank.prompts == [None]  # not None: every process of a step has prompts, or none has


@pytest.mark.parametrize("options", [{}, {"streaming": True, "shuffle_buffer": 4}], ids=["stored", "stream"])
def test_a_mixture_has_prompts_of_texts_and_conversations_with_their_domains(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    texts = TextSource(path=write(tmp_path / "a.jsonl", TEXT_ROWS), weight=1, teachers=["llama"])
    chats = TextSource(path=write(tmp_path / "b.jsonl", CHAT_ROWS), weight=1, messages_field="messages")
    loader = iter(data_of({"texts": texts, "chats": chats}, ONLY, **options).train_dataloader())
    seen = {(p.is_chat, p.domain, *p.ids) for _ in range(4) for p in next(loader).prompts or () if p is not None}
    assert seen == {(False, 0, "", "llama"), (True, 1, "", *TEACHERS)}


# Runs that resume -----------------------------------------------------------------------------------------------------


class PromptRecorder(Recorder):
    """Records the prompts in place of the windows."""

    def training_step(self, batch: DistillBatch, batch_idx: int) -> torch.Tensor:
        for prompt in batch.prompts or ():
            self.seen.append((self.current_epoch, batch_idx, () if prompt is None else tuple(prompt.ids[""])))
        return self.weight * 1.0


def fit(
    data: DistillDataModule, module: Recorder, *callbacks: Any, ckpt_path: Path | None = None, **options: Any
) -> Any:
    switched_off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    given = {"accelerator": "cpu", "callbacks": [*callbacks], "plugins": [AtomicCheckpointIO()], **options}
    pl.Trainer(**given, **dict.fromkeys(switched_off, False)).fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("options", [{}, {"streaming": True, "shuffle_buffer": 4}], ids=["stored", "stream"])
@pytest.mark.parametrize("settings", [MIXED, ONLY], ids=["mixed", "only"])
def test_a_run_resumes_with_the_prompts_that_it_would_have_read(
    source: TextSource, tmp_path: Path, settings: PromptSettings, options: dict[str, Any]
) -> None:
    everywhere = SaveEverywhere(tmp_path)
    whole = fit(data_of(source, settings, setup=False, **options), PromptRecorder(), everywhere, max_steps=6)
    assert len({ids for _, _, ids in whole.seen}) > 6
    for saved, num_seen in everywhere.saved[::2]:
        data = data_of(source, settings, setup=False, **options)
        resumed = fit(data, PromptRecorder(), max_steps=6, ckpt_path=saved)
        assert resumed.seen == whole.seen[num_seen:], saved.name


@pytest.mark.parametrize("options", [{}, {"streaming": True, "shuffle_buffer": 4}], ids=["stored", "stream"])
def test_resuming_with_other_prompts_is_refused_by_name(
    source: TextSource, tmp_path: Path, options: dict[str, Any]
) -> None:
    everywhere = SaveEverywhere(tmp_path)
    fit(data_of(source, MIXED, setup=False, **options), PromptRecorder(), everywhere, max_steps=1)
    saved = everywhere.saved[0][0]
    expected = (
        r"must not change: prompts \(model\.rollouts\) \(prompts and windows, max_new_tokens: 20, prompt_bytes: 40 in"
    )
    others = [None, ONLY, PromptSettings(20, 41), PromptSettings(21, 40), PromptSettings(20, end=".")]
    for other in others:
        with pytest.raises(UserError, match=expected):
            fit(data_of(source, other, setup=False, **options), PromptRecorder(), max_steps=2, ckpt_path=saved)


def test_resuming_prompts_alone_with_other_texts_is_refused(tmp_path: Path) -> None:
    rows = [row["text"][:60] for row in TEXT_ROWS]  # each is one window
    texts, others = (
        TextSource(path=write(tmp_path / f"{place}.jsonl", [{"text": text} for text in own]))
        for place, own in enumerate((rows, map(str.swapcase, rows)))
    )
    everywhere = SaveEverywhere(tmp_path)
    fit(data_of(texts, ONLY, setup=False), PromptRecorder(), everywhere, max_steps=1)
    with pytest.raises(UserError, match=r"must not change: windows \(texts"):
        fit(data_of(others, ONLY, setup=False), PromptRecorder(), max_steps=2, ckpt_path=everywhere.saved[0][0])


def test_connecting_again_without_prompts_makes_windows_without_prompts(source: TextSource) -> None:
    data = data_of(source, MIXED)
    data.connect(STUDENT, TEACHERS)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).prompts is None
