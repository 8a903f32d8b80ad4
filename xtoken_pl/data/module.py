"""The Lightning data module: sources, windows, loaders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
from datasets import Dataset, IterableDataset
from lightning.pytorch.trainer.states import TrainerFn

from xtoken_pl.batch import Planner
from xtoken_pl.checkpoints import DATA_KEY, DataIdentity, Run, verify
from xtoken_pl.data.cached_windows import CachedWindows, SpanStore, StoredSpans
from xtoken_pl.data.identity import describe_data
from xtoken_pl.data.loaders import Loaders
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.order import OrderedLoader, PaddedWindows, Position
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.sources import TextSource, load_source
from xtoken_pl.data.streams import BlockStream, State, StreamLoader
from xtoken_pl.data.tokenized import DOCUMENTS_PER_CALL, check_windows, stored_stream, stored_windows, streamed_windows
from xtoken_pl.data.windows import Window, Windower
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import discard_train_loader, num_batches_begun, num_batches_trained
from xtoken_pl.utilities.processes import gather


class DistillDataModule(pl.LightningDataModule):
    """Texts or conversations as batches for a student and its teachers.

    The tokenizers are handed over by :meth:`connect`, so that they are named once; with a Trainer the module that is
    trained calls it. Tokenization and alignment are done once and cached by `datasets`, except when streaming.

    Args:
        train: Texts to learn from.
        val: Texts to validate on.
        test: Texts to test on.
        sequence_length: Most tokens of a window, on the student's and on every teacher's side.
        batch_size: Windows of a batch, on each process.
        streaming: Read, tokenize and align ``train`` while training, without a copy on disk; of the other splits, which
            are read whole, a run makes a temporary one. Training then has no epochs: set ``trainer.max_steps``, and
            ``trainer.val_check_interval`` to a number of steps.
        shuffle_buffer: Windows to shuffle among when streaming: they are read, and shuffled, in blocks of so many.
        num_workers: Loader processes.
        num_proc: Processes that tokenize and align; None for this one.
        packing: Whether short windows are put together into full ones, those of a hundred documents at a time.
            ``joined``: what a model reads of a document depends on those before it in the window, and eos stands
            between; ``separate``: attention does not cross documents, and the loss is that of documents by themselves.
        seed: Of the order of the windows; None for that of ``seed_everything``. With the epoch it decides the order,
            whatever the number of processes and workers.

    A run that resumes from a checkpoint continues after the windows that were learned. The checkpoint stores what must
    stay the same for that: the windows, the global batch size (processes times ``batch_size``) and the seed.
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
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("sequence_length", sequence_length),
            ("shuffle_buffer", shuffle_buffer),
            ("num_proc", 1 if num_proc is None else num_proc),
        ):
            check_at_least_one(name, value)
        if num_workers < 0:
            raise UserError(f"num_workers must be >= 0, got {num_workers}; 0 loads batches in the training process")
        self.sources = {"train": train, "val": val, "test": test}
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.packing = packing
        self.seed = seed
        self.datasets: dict[str, Dataset | IterableDataset] = {}
        self._windower: Windower | None = None
        self._planners: dict[str, Planner] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._stream: StreamLoader | None = None
        self._begin: tuple[int, State | None] | None = None
        self._caches: Mapping[str, SpanStore] = {}
        self._cached: dict[str, dict[str, StoredSpans]] = {}  # by split and teacher

    @property
    def order_seed(self) -> int:
        """The seed of the order of the windows."""
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
        source = self.sources[split]
        assert source is not None
        return WindowMaker(source, self.windower, self.packing)

    def prepare_data(self) -> None:
        """Tokenizes and aligns in one process, so that the others find the result in the cache."""
        stage = "fit" if self.trainer is None else self.trainer.state.fn or "fit"
        if not self.streaming:
            for split in self._wanted(stage):
                self._windows(split)

    def setup(self, stage: str) -> None:
        """Makes the windows that a stage needs: ``fit``, ``validate`` or ``test``."""
        for split in self._wanted(stage):
            if split not in self.datasets:
                windows = self.datasets[split] = self._windows(split)
                check_windows(windows, split, self._maker(split))
                caches = self._caches.items()
                self._cached[split] = {
                    name: cache.split(split, windows, self.sequence_length) for name, cache in caches
                }

    def window(self, split: str, index: int) -> Window:
        """One window of ``train``, ``val`` or ``test``, with what caches store of its spans; needs no Trainer.

        Raises:
            UserError: If the split has no texts, or there is no such window.
        """
        if self.sources.get(split) is None:
            known = ", ".join(name for name, source in self.sources.items() if source is not None)
            raise UserError(f"split must be one with texts ({known}), got {split!r}; set data.{split}.path, or another")
        self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        windows = self.datasets[split]
        if isinstance(windows, Dataset):
            if 0 <= index < len(windows):
                padded = PaddedWindows(windows, list(self.windower.teachers))
                return CachedWindows(padded, self._cached.get(split, {}))[index]
            how_many = f"{len(windows):,}"
        else:
            if index >= 0 and (found := list(windows.skip(index).take(1))):
                return found[0]
            how_many = "a stream of"
        raise UserError(
            f"window must be one of {how_many} windows of {split}, counted from 0, got {index}; choose one of them"
        )

    def teardown(self, stage: str) -> None:
        """Ends the workers of a stream; where it stands is kept."""
        if self._stream is not None:
            self._stream.close()

    def _wanted(self, stage: str) -> list[str]:
        required = {"fit": "train", "validate": "val", "test": "test"}[stage]
        if self.sources[required] is None:
            raise UserError(f"{TrainerFn(stage).value} needs texts, got none; set data.{required}.path")
        splits = (required, "val") if stage == "fit" else (required,)
        return [split for split in splits if self.sources[split] is not None]

    def _windows(self, split: str) -> Dataset | IterableDataset:
        maker = self._maker(split)  # before the texts: what does not fit is refused here
        texts = load_source(maker.source, streaming=self.streaming)
        if isinstance(texts, Dataset):
            return stored_windows(texts, maker, self.num_proc)
        windows = streamed_windows(texts, maker)
        if split == "train":
            return windows
        # Processes validate together, and have to know how many batches there are: these are stored, for this run.
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="xtoken_pl_")
        return stored_stream(windows, self._scratch.name)

    # Where a run stands ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint; of a stored data set the progress that Lightning keeps says the rest."""
        if "train" not in self.datasets:
            return {}
        state: dict[str, Any] = {"identity": self._identity()}
        if self._stream is not None:
            state |= {"num_batches": self._num_done(), "streams": gather(self._stream.state())}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to resume where the data are not those of the checkpoint."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        verify({DATA_KEY: state_dict}, Run(data=self._identity()), "fit")
        if "streams" in state_dict:
            self._begin = state_dict["num_batches"], state_dict["streams"][self.trainer.global_rank]
            discard_train_loader(self.trainer)

    def _identity(self) -> DataIdentity:
        windows, maker = self.datasets["train"], self._maker("train")
        return describe_data(windows, maker, self._loaders(), seed=self.order_seed, shuffle_buffer=self.shuffle_buffer)

    def _position(self) -> Position:
        """Where the run stands; asked when the first batch of an epoch, or of a resumed run, is."""
        assert self.trainer is not None
        # Not the epoch that Lightning gives to samplers: it counts one more where a run of a number of steps resumes
        # at the end of an epoch.
        return Position(self.trainer.current_epoch, num_batches_begun(self.trainer))

    def _num_done(self) -> int:
        """Batches that are done since training began."""
        return 0 if self.trainer is None else num_batches_trained(self.trainer)

    # Loaders ---------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> OrderedLoader | StreamLoader:
        windows = self.datasets["train"]
        if isinstance(windows, Dataset):
            position = None if self.trainer is None else self._position
            return self._stored_loader("train", seed=self.order_seed, position=position)
        maker, loaders = self._maker("train"), self._loaders()
        stream = BlockStream(
            load_source(maker.source, streaming=True),
            maker,
            block_size=self.shuffle_buffer,
            documents_per_call=DOCUMENTS_PER_CALL,
            seed=self.order_seed,
            num_processes=loaders.num_processes,
            rank=loaders.rank,
        )
        so_far = None if self._stream is None else self._stream.state()  # made anew every so many epochs
        begin, self._begin = self._begin or (self._num_done(), so_far), None
        self._stream = StreamLoader(loaders.of_stream(stream), self._num_done, begin)
        return self._stream

    def val_dataloader(self) -> OrderedLoader | list[Any]:
        return self._stored_loader("val") if "val" in self.datasets else []

    def test_dataloader(self) -> OrderedLoader:
        return self._stored_loader("test")

    def _stored_loader(self, split: str, **order: Any) -> OrderedLoader:
        windows = cast(Dataset, self.datasets[split])
        return self._loaders().of_windows(windows, self._cached.get(split, {}), **order)

    def _loaders(self) -> Loaders:
        shared = (None if self.trainer is None else self.trainer.distributed_sampler_kwargs) or {}
        return Loaders(
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            teachers=list(self.windower.teachers),
            planners=self._planners,
            num_processes=shared.get("num_replicas", 1),
            rank=shared.get("rank", 0),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
