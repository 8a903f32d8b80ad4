"""The Lightning data module: sources, windows, loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from datasets import Dataset, IterableDataset
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.batch import Domain, Planner
from xtoken_pl.checkpoints import DATA_KEY, DataIdentity, Run, verify
from xtoken_pl.data import part_windows
from xtoken_pl.data.collate import collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.identity import changeable_settings, describe_data
from xtoken_pl.data.mixture import Sources, read_parts, with_teachers
from xtoken_pl.data.order.mixed_order import MixedOrder
from xtoken_pl.data.order.sampler import GlobalBatchSampler, OrderedLoader, Position
from xtoken_pl.data.order.streams import State, StreamLoader
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.refusals import check_caches, check_prompts, check_split, with_answers
from xtoken_pl.data.row_servers import RowServer
from xtoken_pl.data.sources.text_source import TextSource
from xtoken_pl.data.stored_windows import SpanStore
from xtoken_pl.data.windows import Windower
from xtoken_pl.data.worker_errors import CarryingCollate
from xtoken_pl.specs import PromptSettings
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_at_least_one, check_not_negative
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import (
    discard_train_loader,
    num_batches_begun,
    num_batches_of_steps,
    step_sizes,
)
from xtoken_pl.utilities.processes import data_share, gather_shares
from xtoken_pl.utilities.seeds import run_seed


class DistillDataModule(pl.LightningDataModule):
    """Texts or conversations as batches for a student and its teachers.

    :meth:`connect` passes the tokenizers, so that they are configured once; under a Trainer the module being trained
    calls it. Tokenization and alignment are done once and cached by `datasets`, except when streaming.

    Args:
        train: Texts to learn from: one source, or several by name.
        val: Texts to validate on, one source or several.
        test: Texts to test on, one source or several.
        sequence_length: Maximum number of tokens of a window, for the student and for every teacher.
        batch_size: Number of windows of a batch on each process.
        streaming: Read, tokenize and align ``train`` while training, without a copy on disk; other splits are copied.
            There are no epochs then: set ``trainer.max_steps``, and ``trainer.val_check_interval`` to a step number.
        shuffle_buffer: Number of windows that are read and shuffled together when streaming, of all sources.
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
        train: TextSource | dict[str, TextSource],
        val: TextSource | dict[str, TextSource] | None = None,
        test: TextSource | dict[str, TextSource] | None = None,
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
        sizes = {"batch_size": batch_size, "sequence_length": sequence_length, "shuffle_buffer": shuffle_buffer}
        for name, size in {**sizes, "num_proc": num_proc}.items():
            check_at_least_one(name, size)
        check_not_negative("num_workers", num_workers, "0 loads batches in the training process")
        check_not_negative("seed", 0 if seed is None else seed, "leave it out for that of seed_everything")
        self.sources: dict[str, Sources | None] = {"train": train, "val": val, "test": test}
        #: Sources of each split that are read.
        self.splits = {split: read_parts(split, own, streaming=streaming) for split, own in self.sources.items()}
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.num_workers, self.num_proc = num_workers, num_proc
        self.packing, self.normalize, self.seed = packing, normalize, seed
        self.domains: dict[str, list[Domain]] = {}
        self._parts: dict[str, list[part_windows.PartWindows]] = {}
        self._windower: Windower | None = None
        self._collate = partial(collate, teachers=[])
        self._servers: Mapping[str, Mapping[str, RowServer]] = {}
        self._stream: StreamLoader | None = None
        self._begin: tuple[int, State | None] | None = None
        self._caches: Mapping[str, SpanStore] = {}

    @property
    def order_seed(self) -> int:
        """Seed of the order of the windows."""
        return run_seed() if self.seed is None else self.seed

    def connect(
        self,
        student: CanonicalVocabulary,
        teachers: dict[str, CanonicalVocabulary],
        planners: dict[str, Planner] | None = None,
        caches: Mapping[str, SpanStore] | None = None,
        prompts: PromptSettings | None = None,
        servers: Mapping[str, Mapping[str, RowServer]] | None = None,
    ) -> bool:
        """Sets all that the data depend on. Nothing else is taken from the module that is trained.

        Args:
            student: Vocabulary of the student.
            teachers: Vocabulary of each teacher.
            planners: Planner of each loss that plans a batch, by teacher.
            caches: Opened cache of each teacher that has one.
            prompts: How prompts are taken from the training data; None if the student writes nothing.
            servers: Servers that the loader's workers ask for the rows of batches, by split and teacher.

        Returns:
            Whether the models must keep packed documents apart.

        Raises:
            UserError: If teachers, caches or prompts do not fit the sources and settings (see `data.refusals`).
        """
        check_caches(caches or {}, streaming=self.streaming)
        check_prompts(prompts, self.packing, self.sequence_length, [student, *teachers.values()])
        splits = with_answers(with_teachers(self.splits, teachers), prompts)
        held = [part for parts in self._parts.values() for part in parts] if self._caches == (caches or {}) else []
        self._windower = Windower(student, teachers, self.sequence_length)
        self._collate = partial(collate, teachers=list(teachers), planners=planners)
        self._caches, self._servers = caches or {}, servers or {}
        options: dict[str, Any] = {"packing": self.packing, "normalize": self.normalize, "prompts": prompts}
        self._parts = part_windows.connect(splits, self._windower, before=held, **options)
        self.domains = {split: [domain for part in parts for domain in part.domains] for split, parts in splits.items()}
        return self.packing == "separate"

    @property
    def windower(self) -> Windower:
        """Maker of the windows of a text under all teachers."""
        if self._windower is None:
            raise UserError(
                "a data module must be told the tokenizers; call connect() first (MultiTeacherDistillModule calls it "
                "in configure_callbacks: a subclass that overrides this must call super().configure_callbacks())"
            )
        return self._windower

    def parts(self, split: str) -> list[part_windows.PartWindows]:
        """Returns the sources of a split with their windows, in order."""
        _ = self.windower  # refuses to go on without
        return self._parts[split]

    @property
    def datasets(self) -> dict[str, Dataset | IterableDataset]:
        """Windows made so far, by source: ``train``, or ``train_NAME`` for a source with a name."""
        parts = (part for parts in self._parts.values() for part in parts)
        return {part.part.key: part.windows for part in parts if part.windows is not None}

    def prepare_data(self) -> None:
        """Tokenizes and aligns in one process, so that the others find the result in the cache."""
        if not self.streaming:
            stage = "fit" if self.trainer is None else self.trainer.state.fn or "fit"
            for part in part_windows.read_all(self._wanted(stage), streaming=False):
                part.make(streaming=False, num_proc=self.num_proc)

    def setup(self, stage: str) -> None:
        """Makes the windows for a stage: ``fit``, ``validate`` or ``test``."""
        for part in part_windows.read_all(self._wanted(stage), streaming=self.streaming):
            part.hold(part.make(streaming=self.streaming, num_proc=self.num_proc), self._caches)
        if stage == "fit" and (order := part_windows.mixed_order(self.parts("train"))) is not None:
            rank_zero_info(str(order))

    def window(self, split: str, index: int, source: str | None = None) -> Window:
        """Returns one window of ``train``, ``val`` or ``test`` with its cached spans; needs no Trainer.

        Args:
            split: The split.
            index: Index among the windows of all its sources, one after the other, or of ``source`` alone.
            source: Name of a source.

        Raises:
            UserError: If the split has no texts, or there is no such source or window.
        """
        check_split(split, self.splits)
        parts = part_windows.chosen(self.parts(split), source)
        self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        return part_windows.window_of(parts, index)

    def teardown(self, stage: str) -> None:
        """Ends the workers of a stream, but keeps its position."""
        if self._stream is not None:
            self._stream.close()

    def _wanted(self, stage: str) -> list[part_windows.PartWindows]:
        required = {"fit": "train", "validate": "val", "test": "test"}[stage]
        if not self.splits[required]:
            raise UserError(f"{TrainerFn(stage).value} needs texts, got none; set data.{required}.path")
        return [part for split in ((required, "val") if stage == "fit" else (required,)) for part in self.parts(split)]

    # Position of a run -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint. The position in stored windows is part of the progress that Lightning saves."""
        if any(part.windows is None for part in self._parts.get("train", [])) or not self._parts:
            return {}
        state: dict[str, Any] = {"identity": self._identity()}
        state |= {"settings": alphas} if (alphas := changeable_settings(self.parts("train"))) else {}
        if self._stream is not None:
            streams = gather_shares(self._stream.state(), self.trainer)
            state |= {"num_batches": self._num_done(), "streams": streams}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to resume if the data differ from those of the checkpoint."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        run = Run(data=self._identity(), data_settings=changeable_settings(self.parts("train")))
        verify({DATA_KEY: state_dict}, run, "fit")
        if "streams" in state_dict:
            self._begin = state_dict["num_batches"], state_dict["streams"][self._processes["rank"]]
            discard_train_loader(self.trainer)

    def _identity(self) -> DataIdentity:
        return describe_data(
            self.parts("train"),
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
        if not self.streaming:
            options = {"seed": self.order_seed, "position": None if self.trainer is None else self._position}
            return self._stored_loader("train", sizes, part_windows.mixed_order(self.parts("train")), **options)
        stream = part_windows.mixed_stream(
            self.parts("train"), self.shuffle_buffer, seed=self.order_seed, **self._processes
        )
        loader = StatefulDataLoader(stream, generator=torch.Generator(), **self._loader_options("train"))
        so_far = None if self._stream is None else self._stream.state()  # a loader may be replaced during a run
        begin, self._begin = self._begin or (self._num_done(), so_far), None
        self._stream = StreamLoader(loader, self._num_done, begin, sizes)
        return self._stream

    def val_dataloader(self) -> OrderedLoader | list[Any]:
        return self._stored_loader("val") if any(part.windows for part in self.parts("val")) else []

    def test_dataloader(self) -> OrderedLoader:
        return self._stored_loader("test")

    def _stored_loader(
        self, split: str, sizes: Callable[[], Iterable[int]] = tuple, order: MixedOrder | None = None, **options: Any
    ) -> OrderedLoader:
        windows = part_windows.open_windows(self.parts(split))
        sampler = GlobalBatchSampler(len(order or windows), self.batch_size, order=order, **self._processes, **options)
        return OrderedLoader(windows, sampler=sampler, step_sizes=sizes, **self._loader_options(split))

    def _loader_options(self, split: str) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": CarryingCollate(partial(self._collate, servers=self._servers.get(split))),
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }

    @property
    def _processes(self) -> dict[str, Any]:
        """Number of processes that read different batches, and the rank of this one among them."""
        return {"rank": (share := data_share(self.trainer)).rank, "num_processes": share.number}
