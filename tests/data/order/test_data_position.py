"""The order of windows depends on seed and epoch alone, and a resumed run continues after its last trained batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import Recorder, SaveEverywhere, fit
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import (
    BytePrefixKL,
    CanonicalVocabulary,
    DistillDataModule,
    MultiTeacherDistillModule,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.batch import NO_WINDOW
from xtoken_pl.data import collate
from xtoken_pl.data.order.sampler import GlobalBatchSampler, Position
from xtoken_pl.data.stored_windows import StoredWindows

STUDENT = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
TEACHERS = {"split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer())}


# The sampler --------------------------------------------------------------------------------------------------------


def shares(num_windows: int, batch_size: int, num_processes: int, epoch: int = 0, done: int = 0) -> list[list[int]]:
    """Windows that each process reads in an epoch."""
    samplers = [
        GlobalBatchSampler(
            num_windows,
            batch_size,
            num_processes=num_processes,
            rank=rank,
            seed=7,
            position=lambda: Position(epoch, done),
        )
        for rank in range(num_processes)
    ]
    read = [list(sampler) for sampler in samplers]
    if done == 0:
        assert [len(share) for share in read] == [len(sampler) for sampler in samplers]
    return read


def global_batches(read: list[list[int]], batch_size: int) -> list[set[int]]:
    cut = [[share[start : start + batch_size] for start in range(0, len(share), batch_size)] for share in read]
    return [set().union(*batches) - {NO_WINDOW} for batches in zip(*cut, strict=True)]  # as many steps for all


@given(num_windows=st.integers(1, 40), batch_size=st.integers(1, 4), epoch=st.integers(0, 3))
def test_global_batches_are_the_same_for_any_number_of_processes(num_windows: int, batch_size: int, epoch: int) -> None:
    expected = global_batches(shares(num_windows, 6 * batch_size, 1, epoch), 6 * batch_size)
    for num_processes in (2, 3, 6):
        size = 6 * batch_size // num_processes
        assert global_batches(shares(num_windows, size, num_processes, epoch), size) == expected


@given(num_windows=st.integers(1, 40), batch_size=st.integers(1, 4), num_processes=st.integers(1, 5))
def test_every_window_is_read_once_in_an_epoch(num_windows: int, batch_size: int, num_processes: int) -> None:
    read = shares(num_windows, batch_size, num_processes)
    windows = [index for share in read for index in share if index != NO_WINDOW]
    assert sorted(windows) == list(range(num_windows))


@given(num_windows=st.integers(1, 40), batch_size=st.integers(1, 4), num_processes=st.integers(1, 3), data=st.data())
def test_resumed_epoch_continues_after_the_finished_batches(
    num_windows: int, batch_size: int, num_processes: int, data: st.DataObject
) -> None:
    whole = shares(num_windows, batch_size, num_processes)
    done = data.draw(st.integers(0, -(-len(whole[0]) // batch_size)))
    rest = shares(num_windows, batch_size, num_processes, done=done)
    assert rest == [share[done * batch_size :] for share in whole]


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = GlobalBatchSampler(50, 5, seed=seed)
            sampler.set_epoch(epoch)
            orders.append(tuple(sampler))
    assert len(set(orders)) == 4
    assert list(GlobalBatchSampler(50, 5)) == list(range(50))


# The data module ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts of 9 windows: five batches of two, the last of one."""
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXTS[0][:400], TEXTS[1][:180])))
    return str(path)


def data_module(path: str, batch_size: int = 2, **options: Any) -> DistillDataModule:
    source = TextSource(path=path)
    options = {"sequence_length": 64, "num_workers": 0, "seed": 3, **options}
    data = DistillDataModule(source, source, batch_size=batch_size, **options)
    data.connect(STUDENT, TEACHERS)
    return data


def slow(**options: Any) -> Any:
    return pytest.param(options, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 2},
        {"max_steps": 8, "val_check_interval": 2},
        {"max_steps": 8, "max_epochs": 2},
        slow(max_epochs=2),
        slow(max_epochs=2, val_check_interval=0.5),
        slow(max_epochs=3, limit_train_batches=3),
        slow(max_steps=8, val_check_interval=3, check_val_every_n_epoch=None),
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_resuming_continues_exactly_where_any_checkpoint_was_saved(
    path: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    everywhere = SaveEverywhere(tmp_path)
    whole = fit(data_module(path), everywhere, **options)
    assert len({epoch for epoch, _, _ in whole.seen}) > 1
    for saved, num_seen in everywhere.saved:
        resumed = fit(data_module(path), ckpt_path=saved, **options)
        assert resumed.seen == whole.seen[num_seen:], saved.name
        assert resumed.trainer.global_step == whole.trainer.global_step


@pytest.mark.parametrize(
    ("workers", "options"),
    [(0, {"max_steps": 10, "val_check_interval": 3}), (2, {"max_epochs": 3, "limit_train_batches": 3})],
    ids=["steps", "workers, epochs of limited length"],
)
def test_stream_resumes_after_the_trained_batches_not_the_prefetched_ones(
    path: str, tmp_path: Path, workers: int, options: dict[str, Any]
) -> None:
    streaming = {"streaming": True, "shuffle_buffer": 3, "num_workers": workers}
    everywhere = SaveEverywhere(tmp_path)
    whole = fit(data_module(path, **streaming), everywhere, **options)
    assert len({ids for _, _, ids in whole.seen}) > 8
    for saved, num_seen in everywhere.saved[:: 1 if workers == 0 else 4]:
        resumed = fit(data_module(path, **streaming), ckpt_path=saved, **options)
        assert resumed.seen == whole.seen[num_seen:], saved.name


@pytest.mark.parametrize("option", ["num_workers", "batch_size", "shuffle_buffer"])
def test_resuming_a_stream_with_other_settings_is_refused_by_name(path: str, tmp_path: Path, option: str) -> None:
    streaming = {"streaming": True, "shuffle_buffer": 3, "num_workers": 0, "batch_size": 2}
    everywhere = SaveEverywhere(tmp_path)
    fit(data_module(path, **streaming), everywhere, max_steps=1)
    with pytest.raises(ValueError, match=rf"must not change: data\.{option} \(.*start a new run from the exported"):
        fit(data_module(path, **{**streaming, option: 1}), ckpt_path=everywhere.saved[0][0], max_steps=2)


@pytest.fixture(scope="module")
def mid_epoch(path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path, int]:
    """A run of two epochs, a checkpoint from the first, and the number of windows seen by then."""
    everywhere = SaveEverywhere(tmp_path_factory.mktemp("mid"))
    whole = fit(data_module(path), everywhere, max_epochs=2)
    return whole, *everywhere.saved[1]


def test_prefetching_workers_do_not_change_the_order(path: str, mid_epoch: tuple[Recorder, Path, int]) -> None:
    whole, saved, num_seen = mid_epoch
    resumed = fit(data_module(path, num_workers=2), ckpt_path=saved, max_epochs=2)
    assert resumed.seen == whole.seen[num_seen:]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 3}, r"global batch size \(.*\) \(2 in the checkpoint, 3 here\)"),
        ({"seed": 4}, r"seed of the order \(.*\) \(3 in the checkpoint, 4 here\)"),
        ({"sequence_length": 60}, r"windows \(texts, tokenizers, sequence_length\)"),
    ],
    ids=["batch size", "seed", "length"],
)
def test_resuming_with_changed_data_settings_is_refused_by_name_with_both_ways_out(
    path: str, mid_epoch: tuple[Recorder, Path, int], options: dict[str, Any], expected: str
) -> None:
    _, saved, _ = mid_epoch
    with pytest.raises(ValueError, match=expected + r".*Restore the former values, or start a new run from"):
        fit(data_module(path, **options), ckpt_path=saved, max_epochs=2)


def test_resuming_with_other_texts_is_refused(path: str, mid_epoch: tuple[Recorder, Path, int]) -> None:
    _, saved, _ = mid_epoch
    other = Path(path).with_name("other.jsonl")
    other.write_text(Path(path).read_text().replace("a", "o"))
    with pytest.raises(ValueError, match=r"must not change: .*windows \(texts, tokenizers, sequence_length\)"):
        fit(data_module(str(other)), ckpt_path=saved, max_epochs=2)


def test_loaders_draw_nothing_from_the_global_generator(path: str) -> None:
    data = data_module(path)
    data.setup("fit")
    before = torch.get_rng_state()
    assert len(list(data.train_dataloader())) == len(data.train_dataloader())
    assert len(list(data.val_dataloader())) == len(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_without_a_window_in_the_last_batch_gets_nothing_to_learn(path: str, tmp_path: Path) -> None:
    data = data_module(path)
    data.setup("fit")
    windows = StoredWindows(data.datasets["train"], list(TEACHERS), {})
    batch = collate(windows.__getitems__([NO_WINDOW]), list(TEACHERS))
    assert batch.student.labels.numel() == 0
    assert len(batch.teachers["split"].spans) == 0
    student = Student(model=write_model(tmp_path / "student", packing_tokenizer()))
    teacher = Teacher(model=write_model(tmp_path / "split", splitting_tokenizer()), loss=BytePrefixKL())
    module = MultiTeacherDistillModule(student, {"split": teacher})
    module.vocabularies()
    module.configure_model()
    module.training_step(batch, 0)["loss"].backward()
    assert all(parameter.grad.count_nonzero() == 0 for parameter in module.student.parameters())
    mixed = windows.__getitems__([2, NO_WINDOW, 0])
    assert [row["student_ids"][0] for row in mixed] == [windows[2]["student_ids"][0], 0, windows[0]["student_ids"][0]]
