"""A checkpoint is whole or not there, and what was damaged is named before anything goes on from it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from xtoken_pl.checkpoints.io import AtomicCheckpointIO, check_whole, stored_checkpoints
from xtoken_pl.checkpoints.last import last_checkpoint
from xtoken_pl.utilities.errors import UserError


def checkpoint(step: int, size: int = 1000, **more: Any) -> dict[str, Any]:
    return {"global_step": step, "lr_schedulers": [], "state_dict": {"w": torch.full((size,), float(step))}, **more}


def save(path: Path, step: int, *, age: float = 0.0) -> Path:
    AtomicCheckpointIO().save_checkpoint(checkpoint(step), path)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def flip_a_bit(path: Path) -> None:
    """Of a tensor's values, which torch.load would not notice."""
    age = time.time() - path.stat().st_mtime
    content = bytearray(path.read_bytes())
    step = torch.load(path, weights_only=True)["state_dict"]["w"][:4].numpy().tobytes()
    content[content.index(step) + 1] ^= 1
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``num_bytes``."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "a.ckpt", 3)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["global_step"] == 3
    assert torch.equal(loaded["state_dict"]["w"], torch.full((1000,), 3.0))
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_a_write_that_is_cut_off_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.ckpt", 1)
    before = path.read_bytes()

    class Killed(BaseException):
        pass

    def kill(_: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(Killed):
            AtomicCheckpointIO().save_checkpoint(checkpoint(2), path)
    assert path.read_bytes() == before
    assert (tmp_path / ".a.ckpt.part").exists()  # as after kill -9
    assert [stored.step for stored in stored_checkpoints(tmp_path)] == [1]
    save(path, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 1)
    before = path.read_bytes()
    with (
        small_disk(20_000),
        pytest.raises(UserError, match=r"a\.ckpt could not be written .*File too large.* is unchanged"),
    ):
        AtomicCheckpointIO().save_checkpoint(checkpoint(2, size=10**6), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_one_flipped_bit_is_named_with_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", 1)
    second = save(tmp_path / "b.ckpt", 2)
    flip_a_bit(save(tmp_path / "c.ckpt", 3))
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"]["w"][0] != 3  # torch does not notice
    with pytest.raises(ValueError, match=f"c.ckpt' is not: the checksum .* is wrong; resume .* step 2: .*'{second}'"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "c.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "a.ckpt", 1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a.ckpt' is not: .* not a complete zip .*there is no whole one beside it"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_distributed_checkpoint_without_the_files_written_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").mkdir()
    torch.save({"global_step": 4, "lr_schedulers": []}, tmp_path / "a.ckpt/meta.pt")
    with pytest.raises(ValueError, match=r"a.ckpt' is not: its \.metadata is missing"):
        check_whole(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt/.metadata").touch()
    check_whole(tmp_path / "a.ckpt")
    assert [stored.step for stored in stored_checkpoints(tmp_path)] == [4]


# Which one is the last ----------------------------------------------------------------------------------------------


def trainer(root: Path, dirpath: Path | None = None) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(root, name="run"),
        callbacks=[ModelCheckpoint(dirpath=dirpath)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_last_is_the_one_written_last_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    save(folder / "last.ckpt", 10, age=20)
    newest = save(folder / "step=20-val/bits_per_byte=1.20.ckpt", 20, age=10)  # a metric's name makes a folder
    save(folder / "epoch=0-step=5.ckpt", 5, age=30)
    assert last_checkpoint(trainer(tmp_path)) == newest
    assert last_checkpoint(trainer(tmp_path, dirpath=folder)) == newest


def test_last_is_not_of_an_earlier_longer_run_in_the_same_folder(tmp_path: Path) -> None:
    save(tmp_path / "step=1000.ckpt", 1000, age=10)
    newest = save(tmp_path / "step=50.ckpt", 50)
    with pytest.warns(UserWarning, match=r"step=1000\.ckpt is of step 1000, but was written before"):
        assert last_checkpoint(trainer(tmp_path, dirpath=tmp_path)) == newest


def test_last_is_of_the_version_that_was_written_to_last(tmp_path: Path) -> None:
    save(tmp_path / "run/version_0/checkpoints/last.ckpt", 40, age=10)
    newest = save(tmp_path / "run/version_1/checkpoints/last.ckpt", 30)
    (tmp_path / "run/version_2").mkdir()
    assert last_checkpoint(trainer(tmp_path)) == newest


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    AtomicCheckpointIO().save_checkpoint({"global_step": 9, "state_dict": {}}, folder / "weights.ckpt")
    with pytest.raises(UserError, match=r"there is none in .*run/\*/checkpoints"):
        last_checkpoint(trainer(tmp_path))


@pytest.mark.parametrize("harm", [flip_a_bit, lambda path: os.truncate(path, 500)], ids=["flipped bit", "truncated"])
def test_a_damaged_last_is_refused_and_the_one_before_offered(tmp_path: Path, harm: Any) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    before = save(folder / "a.ckpt", 1, age=10)
    save(folder / "b.ckpt", 2)
    harm(folder / "b.ckpt")
    with pytest.raises(ValueError, match=f"b.ckpt.*step 1: --ckpt_path '{before}'"):
        last_checkpoint(trainer(tmp_path))


def test_an_earlier_damaged_one_is_named_in_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    damaged = save(folder / "a.ckpt", 1)
    os.truncate(damaged, 500)
    os.utime(damaged, (1, 1))
    newest = save(folder / "b.ckpt", 2)
    with pytest.warns(UserWarning, match=r"a\.ckpt is damaged, but not the last"):
        assert last_checkpoint(trainer(tmp_path)) == newest
