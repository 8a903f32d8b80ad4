"""The Lightning data module: sources, windows, loaders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from datasets import Dataset, IterableDataset
from lightning.pytorch.trainer.states import TrainerFn
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.batch import Domain, Planner
from xtoken_pl.checkpoints import DATA_KEY, DataIdentity, Run, verify
from xtoken_pl.data.collate import collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.identity import describe_data
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.order import GlobalBatchSampler, OrderedLoader, Position
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.sources import TextSource, load_source
from xtoken_pl.data.stored_windows import SpanStore, StoredSpans, StoredWindows
from xtoken_pl.data.streams import BlockStream, State, StreamLoader
from xtoken_pl.data.tokenized import check_windows, make_windows, stored_stream, window_at
from xtoken_pl.data.windows import Windower
from xtoken_pl.data.worker_errors import CarryingCollate
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_at_least_one, check_not_negative
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import (
    discard_train_loader,
    num_batches_begun,
    num_batches_of_steps,
    step_sizes,
)
from xtoken_pl.utilities.processes import gather


class DistillDataModule(pl.LightningDataModule):
    """Texts or conversations as batches for a student and its teachers.

    :meth:`connect` passes the tokenizers, so that they are configured once; under a Trainer the module being trained
    calls it. Tokenization and alignment are done once and cached by `datasets`, except when streaming.

    Args:
        train: Texts to learn from.
        val: Texts to validate on.
        test: Texts to test on.
        sequence_length: Maximum number of tokens of a window, for the student and for every teacher.
        batch_size: Number of windows of a batch on each process.
        streaming: Read, tokenize and align ``train`` while training, without a copy on disk; other splits are copied.
            There are no epochs then: set ``trainer.max_steps``, and ``trainer.val_check_interval`` to a step number.
        shuffle_buffer: Number of windows that are read and shuffled together when streaming.
        num_workers: Number of loader workers.
        num_proc: Number of processes that tokenize and align; None for the process of the run.
        packing: How short windows are packed into full ones, a hundred documents at a time. ``none`` does not pack;
            ``joined``: documents attend to the documents before them in the window, and eos separates them;
            ``separate``: attention does not cross documents, and the loss is that of each document by itself.
        normalize: Rewrite texts as the normalizers of all tokenizers do (NFC, say), so that all read the same bytes.
        seed: Seed of the order of the windows, for any number of processes; None for that of ``seed_everything``.

    A run that resumes from a checkpoint continues after the windows that it was trained on. The checkpoint stores what
    must stay the same for that: the windows, the global batch size (processes times ``batch_size``) and the seed.
    """

    def __init__(
        self,
        train: TextSource,
        val: TextSource | None = None,
        test: TextSource | None = None,
        *,
        sequence_length: int = 512,
        batch_size: int = 8,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        num_workers: int = 2,
        num_proc: int | None = None,
        packing: Packing = "none",
        normalize: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least_one("batch_size", batch_size)
        check_at_least_one("sequence_length", sequence_length)
        check_at_least_one("shuffle_buffer", shuffle_buffer)
        check_at_least_one("num_proc", 1 if num_proc is None else num_proc)
        check_not_negative("num_workers", num_workers, "0 loads batches in the training process")
        check_not_negative("seed", 0 if seed is None else seed, "leave it out for that of seed_everything")
        self.sources = {"train": train, "val": val, "test": test}
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.packing = packing
        self.normalize = normalize
        self.seed = seed
        self.datasets: dict[str, Dataset | IterableDataset] = {}
        self.domains: dict[str, list[Domain]] = {}
        self._windower: Windower | None = None
        self._planners: dict[str, Planner] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._stream: StreamLoader | None = None
        self._begin: tuple[int, State | None] | None = None
        self._caches: Mapping[str, SpanStore] = {}
        self._cached: dict[str, dict[str, StoredSpans]] = {}  # by split and teacher

    @property
    def order_seed(self) -> int:
        """Seed of the order of the windows."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def connect(
        self,
        student: CanonicalVocabulary,
        teachers: dict[str, CanonicalVocabulary],
        planners: dict[str, Planner] | None = None,
        caches: Mapping[str, SpanStore] | None = None,
    ) -> bool:
        """Sets all that the data depend on. Nothing else is taken from the module that is trained.

        Args:
            student: Vocabulary of the student.
            teachers: Vocabulary of each teacher.
            planners: Planner of each loss that plans a batch, by teacher.
            caches: Opened cache of each teacher that has one.

        Returns:
            Whether the models must keep packed documents apart.

        Raises:
            UserError: If there is a cache when streaming.
        """
        if caches and self.streaming:
            raise UserError(
                f"a cache knows windows by their place, and a stream has none, but teacher {next(iter(caches))!r} has "
                "a cache; set data.streaming to false, or leave `cache` out"
            )
        before = self._windower
        self._windower = Windower(student, teachers, self.sequence_length)
        if before is not None and (before.fingerprint, self._caches) != (self._windower.fingerprint, caches or {}):
            self.datasets.clear()  # made for other tokenizers
        self._planners, self._caches = planners or {}, caches or {}
        return self.packing == "separate"

    @property
    def windower(self) -> Windower:
        """Maker of the windows of a text."""
        if self._windower is None:
            raise UserError(
                "a data module must be told the tokenizers; call connect() first (MultiTeacherDistillModule calls it "
                "in configure_callbacks: a subclass that overrides this must call super().configure_callbacks())"
            )
        return self._windower

    def _maker(self, split: str) -> WindowMaker:
        source = cast(TextSource, self.sources[split])
        return WindowMaker(source, self.windower, self.packing, normalize=self.normalize)

    def prepare_data(self) -> None:
        """Tokenizes and aligns in one process, so that the others find the result in the cache."""
        stage = "fit" if self.trainer is None else self.trainer.state.fn or "fit"
        if not self.streaming:
            for split in self._wanted(stage):
                self._windows(split)

    def setup(self, stage: str) -> None:
        """Makes the windows for a stage: ``fit``, ``validate`` or ``test``."""
        for split in self._wanted(stage):
            if split not in self.datasets:
                windows = self.datasets[split] = self._windows(split)
                check_windows(windows, split, self._maker(split))
                length = self.sequence_length
                self._cached[split] = {name: c.split(split, windows, length) for name, c in self._caches.items()}

    def window(self, split: str, index: int) -> Window:
        """Returns one window of ``train``, ``val`` or ``test`` with its cached spans; needs no Trainer.

        Raises:
            UserError: If the split has no texts, or there is no such window.
        """
        if self.sources.get(split) is None:
            known = ", ".join(name for name, source in self.sources.items() if source is not None)
            raise UserError(f"split must be one with texts ({known}), got {split!r}; set data.{split}.path, or another")
        self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        windows = self.datasets[split]
        return window_at(self._stored(split) if isinstance(windows, Dataset) else windows, split, index)

    def teardown(self, stage: str) -> None:
        """Ends the workers of a stream, but keeps its position."""
        if self._stream is not None:
            self._stream.close()

    def _wanted(self, stage: str) -> list[str]:
        required = {"fit": "train", "validate": "val", "test": "test"}[stage]
        if self.sources[required] is None:
            raise UserError(f"{TrainerFn(stage).value} needs texts, got none; set data.{required}.path")
        splits = (required, "val") if stage == "fit" else (required,)
        return [split for split in splits if self.sources[split] is not None]

    def _windows(self, split: str) -> Dataset | IterableDataset:
        maker = self._maker(split)  # before the texts, since it refuses a configuration that does not fit
        windows = make_windows(load_source(maker.source, streaming=self.streaming), maker, self.num_proc)
        if isinstance(windows, Dataset) or split == "train":
            return windows
        # Processes validate together, and must know the number of batches, so these windows are stored for this run.
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="xtoken_pl_")
        return stored_stream(windows, self._scratch.name)

    # Position of a run -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint. The position in stored windows is part of the progress that Lightning saves."""
        if "train" not in self.datasets:
            return {}
        state: dict[str, Any] = {"identity": self._identity()}
        if self._stream is not None:
            state |= {"num_batches": self._num_done(), "streams": gather(self._stream.state())}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to resume if the data differ from those of the checkpoint."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        verify({DATA_KEY: state_dict}, Run(data=self._identity()), "fit")
        if "streams" in state_dict:
            self._begin = state_dict["num_batches"], state_dict["streams"][self.trainer.global_rank]
            discard_train_loader(self.trainer)

    def _identity(self) -> DataIdentity:
        return describe_data(
            self.datasets["train"],
            self._maker("train"),
            seed=self.order_seed,
            batch_size=self.batch_size,
            num_processes=self._processes["num_processes"],
            num_workers=self.num_workers,
            shuffle_buffer=self.shuffle_buffer,
        )

    def _position(self) -> Position:
        """Position of the run; called for the first batch of an epoch, or of a resumed run."""
        assert self.trainer is not None
        # Not the epoch that Lightning gives to samplers: it is one too high if a run with a number of steps resumes at
        # the end of an epoch.
        return Position(self.trainer.current_epoch, num_batches_begun(self.trainer))

    def _num_done(self) -> int:
        """Number of batches of all optimizer steps since training began."""
        return 0 if self.trainer is None else num_batches_of_steps(self.trainer)

    # Loaders ---------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> OrderedLoader | StreamLoader:
        sizes = tuple if self.trainer is None else partial(step_sizes, self.trainer)
        if isinstance(self.datasets["train"], Dataset):
            position = None if self.trainer is None else self._position
            return self._stored_loader("train", sizes, seed=self.order_seed, position=position)
        maker = self._maker("train")
        texts = load_source(maker.source, streaming=True)
        stream = BlockStream(texts, maker, block_size=self.shuffle_buffer, seed=self.order_seed, **self._processes)
        loader = StatefulDataLoader(stream, generator=torch.Generator(), **self._loader_options())
        so_far = None if self._stream is None else self._stream.state()  # a loader may be replaced during a run
        begin, self._begin = self._begin or (self._num_done(), so_far), None
        self._stream = StreamLoader(loader, self._num_done, begin, sizes)
        return self._stream

    def val_dataloader(self) -> OrderedLoader | list[Any]:
        return self._stored_loader("val") if "val" in self.datasets else []

    def test_dataloader(self) -> OrderedLoader:
        return self._stored_loader("test")

    def _stored_loader(self, split: str, sizes: Callable[[], Iterable[int]] = tuple, **order: Any) -> OrderedLoader:
        windows = self._stored(split)
        sampler = GlobalBatchSampler(len(windows), self.batch_size, **self._processes, **order)
        return OrderedLoader(windows, sampler=sampler, step_sizes=sizes, **self._loader_options())

    def _stored(self, split: str) -> StoredWindows:
        windows = cast(Dataset, self.datasets[split])
        return StoredWindows(windows, list(self.windower.teachers), self._cached.get(split, {}))

    def _loader_options(self) -> dict[str, Any]:
        teachers = list(self.windower.teachers)
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": CarryingCollate(partial(collate, teachers=teachers, planners=self._planners)),
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }

    @property
    def _processes(self) -> dict[str, Any]:
        """Number of processes that train together, and the rank of this one."""
        shared = (None if self.trainer is None else self.trainer.distributed_sampler_kwargs) or {}
        return {"num_processes": shared.get("num_replicas", 1), "rank": shared.get("rank", 0)}
