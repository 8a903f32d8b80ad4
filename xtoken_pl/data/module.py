"""The Lightning data module: sources, windows, loaders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, cast

import lightning.pytorch as pl
import torch
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.batch import Planner
from xtoken_pl.data.cached_windows import CachedWindows, SpanStore, StoredSpans
from xtoken_pl.data.collate import collate
from xtoken_pl.data.identity import DataIdentity, check_same_data, windows_fingerprint
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.order import GlobalBatchSampler, OrderedLoader, PaddedWindows, Position
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.sources import TextSource, load_source
from xtoken_pl.data.streams import BlockStream, State, StreamLoader
from xtoken_pl.data.windows import Window, Windower
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.processes import gather

_NUM_CHECKED_WINDOWS = 100
_DOCUMENTS_PER_CALL = 100


class DistillDataModule(pl.LightningDataModule):
    """Texts or conversations as batches for a student and its teachers.

    The tokenizers come from the module that is trained (or from :meth:`connect`), so that they are named once.
    Tokenization and alignment are done once and cached by `datasets`, except when streaming.

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

    A run that goes on from a checkpoint reads on behind the windows that were learned. What that needs to stay the
    same is in the checkpoint: the windows, the global batch size (processes times ``batch_size``) and the seed.
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
    def _train_source(self) -> TextSource:
        source = self.sources["train"]
        assert source is not None
        return source

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
    ) -> None:
        """Sets the tokenizers, and what plans batches. The Trainer's module is asked where this was not called.

        Args:
            student, teachers: Of the tokenizers.
            planners: By teacher, of the losses that plan a batch.
            caches: Of the teachers that have one.

        Raises:
            UserError: If there is a cache when streaming.
        """
        if caches and self.streaming:
            raise UserError(
                f"a cache knows windows by their place, and a stream has none, but teacher {next(iter(caches))!r} has "
                "a cache; set data.streaming to false, or leave `cache` out"
            )
        self._caches = caches or {}
        self._windower = Windower(student, teachers, self.sequence_length)
        self._planners = planners or {}

    @property
    def windower(self) -> Windower:
        """Makes the windows."""
        if self._windower is None:
            if self.trainer is None or self.trainer.lightning_module is None:
                raise UserError("a data module without a Trainer must be told its tokenizers; call connect() first")
            module = cast(Any, self.trainer.lightning_module)
            student, teachers = module.vocabularies()
            self.connect(student, teachers, module.planners(), module.caches)
        assert self._windower is not None
        return self._windower

    def _maker(self, source: TextSource) -> WindowMaker:
        return WindowMaker(source, self.windower, self.packing)

    def prepare_data(self) -> None:
        """Tokenizes and aligns in one process, so that the others find the result in the cache."""
        stage = "fit" if self.trainer is None else self.trainer.state.fn or "fit"
        if not self.streaming:
            for split, source in self._wanted(stage).items():
                self._windows(split, source)

    def setup(self, stage: str) -> None:
        """Makes the windows that a stage needs: ``fit``, ``validate`` or ``test``."""
        for split, source in self._wanted(stage).items():
            if split not in self.datasets:
                self.datasets[split] = self._windows(split, source)
                self._check_spans(split)
                self._cached[split] = self._open_caches(split)

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

    def _wanted(self, stage: str) -> dict[str, TextSource]:
        required = {"fit": "train", "validate": "val", "test": "test"}[stage]
        if self.sources[required] is None:
            raise UserError(f"{TrainerFn(stage).value} needs texts, got none; set data.{required}.path")
        splits = (required, "val") if stage == "fit" else (required,)
        return {split: source for split in splits if (source := self.sources[split]) is not None}

    def _windows(self, split: str, source: TextSource) -> Dataset | IterableDataset:
        maker = self._maker(source)  # before the texts: what does not fit is refused here
        texts = load_source(source, streaming=self.streaming)
        options: dict[str, Any] = {
            "function": maker,
            "batched": True,
            "batch_size": _DOCUMENTS_PER_CALL,
            "input_columns": maker.columns,
            "remove_columns": texts.column_names or list(next(iter(texts))),
        }
        if isinstance(texts, IterableDataset):
            windows = texts.map(**options)
            if split == "train":
                return windows
            # Processes validate together, and have to know how many batches there are: these are stored, for this run.
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="xtoken_pl_")
            stored = Dataset.from_generator(_each, gen_kwargs={"windows": windows}, cache_dir=self._scratch.name)
            return stored.with_format("numpy")
        windows = texts.map(
            **options,
            num_proc=self.num_proc,
            desc=f"tokenize and align {source.path}",
            new_fingerprint=Hasher.hash([texts._fingerprint, maker.fingerprint, *maker.columns, *self._grouping()]),
        )
        return windows.with_format("numpy")

    def _grouping(self) -> list[int | None]:
        """What decides which documents are packed together, beside their order."""
        return [] if self.packing == "none" else [self.num_proc]

    def _check_spans(self, split: str) -> None:
        windows = self.datasets[split]
        first = list(islice(windows, _NUM_CHECKED_WINDOWS))
        if not first:
            source = cast(TextSource, self.sources[split])
            raise UserError(
                f"a data set must hold some text, every text of {source.path!r} is empty; give another file"
            )
        if isinstance(windows, Dataset):
            rank_zero_info(f"{split}: {len(windows):,} windows of at most {self.sequence_length} tokens")
        for name, view in collate(first, list(self.windower.teachers)).teachers.items():
            if len(view.spans) == 0:
                raise UserError(
                    f"the first {len(first)} windows of {split} have no span in common with teacher {name!r}. "
                    f"Raise sequence_length (now {self.sequence_length}), or check that both tokenizers write this "
                    "text unchanged"
                )

    def _open_caches(self, split: str) -> dict[str, StoredSpans]:
        windows = self.datasets[split]
        return {name: cache.split(split, windows, self.sequence_length) for name, cache in self._caches.items()}

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
        """Refuses to train on where the data are not those of the checkpoint."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_same_data(state_dict["identity"], self._identity())
        if "streams" in state_dict:
            self._begin = state_dict["num_batches"], state_dict["streams"][self.trainer.global_rank]
            # A sharded run has made its loaders by now, to count the steps.
            self.trainer.fit_loop._combined_loader = None

    def _identity(self) -> DataIdentity:
        windows = self.datasets["train"]
        shared = self._processes()
        maker = self._maker(self._train_source)
        seed: DataIdentity = {"seed of the order (data.seed, else seed_everything)": self.order_seed}
        if self.packing != "none":
            seed["data.packing"] = self.packing
        if isinstance(windows, Dataset):
            return seed | {
                "number of windows": len(windows),
                "windows (texts, tokenizers, sequence_length)": windows_fingerprint(windows, maker.fingerprint),
                "global batch size (processes x batch_size)": shared["num_processes"] * self.batch_size,
            }
        return seed | {
            "texts (data.train)": str(self._train_source),
            "windows (tokenizers, sequence_length)": maker.fingerprint,
            "number of processes": shared["num_processes"],
            "data.num_workers": self.num_workers,
            "data.batch_size": self.batch_size,
            "data.shuffle_buffer": self.shuffle_buffer,
        }

    def _position(self) -> Position:
        """Where the run stands; asked when the first batch of an epoch, or of a resumed run, is."""
        assert self.trainer is not None
        # Not the epoch that Lightning gives to samplers: it counts one more where a run of a number of steps goes on
        # from the end of an epoch.
        return Position(self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _num_done(self) -> int:
        """Batches that are done since training began."""
        return 0 if self.trainer is None else cast(Any, self.trainer).fit_loop.epoch_loop.batch_progress.total.processed

    def _processes(self) -> dict[str, int]:
        """Among how many processes the data are shared out, and which this one is."""
        shared = (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}
        return {"num_processes": shared.get("num_replicas", 1), "rank": shared.get("rank", 0)}

    # Loaders ---------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> OrderedLoader | StreamLoader:
        windows = self.datasets["train"]
        if isinstance(windows, Dataset):
            position = None if self.trainer is None else self._position
            return self._stored_loader("train", windows, seed=self.order_seed, position=position)
        source = self._train_source
        stream = BlockStream(
            load_source(source, streaming=True),
            self._maker(source),
            block_size=self.shuffle_buffer,
            documents_per_call=_DOCUMENTS_PER_CALL,
            seed=self.order_seed,
            **self._processes(),
        )
        loader = StatefulDataLoader(stream, generator=torch.Generator(), **self._loader_options())
        so_far = None if self._stream is None else self._stream.state()  # made anew every so many epochs
        begin, self._begin = self._begin or (self._num_done(), so_far), None
        self._stream = StreamLoader(loader, self._num_done, begin)
        return self._stream

    def val_dataloader(self) -> OrderedLoader | list[Any]:
        return self._stored_loader("val", cast(Dataset, self.datasets["val"])) if "val" in self.datasets else []

    def test_dataloader(self) -> OrderedLoader:
        return self._stored_loader("test", cast(Dataset, self.datasets["test"]))

    def _stored_loader(self, split: str, windows: Dataset, **order: Any) -> OrderedLoader:
        sampler = GlobalBatchSampler(len(windows), self.batch_size, **{**self._processes(), **order})
        options = self._loader_options() | {"persistent_workers": self.num_workers > 0}
        padded = PaddedWindows(windows, list(self.windower.teachers))
        return OrderedLoader(CachedWindows(padded, self._cached.get(split, {})), sampler=sampler, **options)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": partial(collate, teachers=list(self.windower.teachers), planners=self._planners),
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }


def _each(windows: IterableDataset) -> Iterator[Window]:
    yield from windows
