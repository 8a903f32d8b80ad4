"""``python -m xtoken_pl inspect``: a text under two tokenizers, or a window of a run's data under all its models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from xtoken_pl.batch import STUDENT_IDS
from xtoken_pl.checkpoints import check_whole
from xtoken_pl.checkpoints.export import read_checkpoint
from xtoken_pl.cli.config_files import config_paths
from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.cli.usage import run_function
from xtoken_pl.data import DistillDataModule
from xtoken_pl.data.collate import collate
from xtoken_pl.data.windows import Window, Windower
from xtoken_pl.inspection.counterparts import Counterparts
from xtoken_pl.inspection.inspection import Inspection
from xtoken_pl.inspection.page import page
from xtoken_pl.inspection.predictions import predict
from xtoken_pl.inspection.terminal import print_inspection
from xtoken_pl.losses import SpanLoss
from xtoken_pl.models.placement import default_device
from xtoken_pl.projection import Projection, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, check_target, read_text

_NO_LIMIT = 2**62  # a text is one window


def run(arguments: list[str]) -> None:
    """Runs the verb: on a run's data if a configuration is given, on a text otherwise."""
    if config_paths(arguments):
        run_with_parts(inspect_run, InspectOptions, arguments)
    else:
        run_function(inspect, arguments)


def inspect(
    student: str,
    teacher: str,
    *,
    text: str | None = None,
    text_file: str | None = None,
    projection: str | None = None,
    html: str | None = None,
    overwrite: bool = False,
) -> None:
    """Show a text as two tokenizers see it: spans of equal bytes, and the rows of W of its tokens.

    With --config FILE it shows a window of a run's data instead, under all its teachers, with what the models expect;
    it then takes the options of fit (see `python -m xtoken_pl inspect --config FILE --help`).

    Args:
        student: Folder or hub id of the student's tokenizer.
        teacher: Folder or hub id of the teacher's tokenizer.
        text: The text.
        text_file: A text file (UTF-8) instead.
        projection: A stored W; built where none is given.
        html: An HTML file to write, too.
        overwrite: Replace a file that exists.
    """
    if (text is None) == (text_file is None):
        raise UserError(
            "inspect needs one text: give --text or --text_file, got "
            f"{'neither' if text is None else 'both'}; or --config for a window of a run's data"
        )
    content = read_text(text_file, setting="text_file") if text_file is not None else cast(str, text)
    if not content:
        raise UserError("text must hold something to align, got ''; give another, or --text_file")
    _check_html(html, overwrite=overwrite)
    student_vocabulary, vocabulary = (
        CanonicalVocabulary.from_tokenizer(load_tokenizer(source)) for source in (student, teacher)
    )
    if projection is None:
        matrix = build_projection(student_vocabulary.tokenizer, vocabulary.tokenizer)
    else:
        matrix = Projection.load(projection)
        matrix.check_belongs_to(student_vocabulary, vocabulary)
    name = "teacher"
    columns = Windower(student_vocabulary, {name: vocabulary}, _NO_LIMIT)([content])
    window = {column: values[0] for column, values in columns.items()}
    result = Inspection.from_window(
        text_file or "a text", window, student_vocabulary, {name: vocabulary}
    ).with_counterparts({name: Counterparts.of_projection(matrix, student_vocabulary, vocabulary, window[STUDENT_IDS])})
    _show(result, html, overwrite=overwrite)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What is shown of a run.

    Attributes:
        split: Of the data: train, val or test.
        window: Which window of it, counted from 0.
        weights: Load the models, and show what they expect; without them alignment and W alone.
        ckpt_path: A checkpoint of the run, for the student's weights.
        num_spans: Spans of each teacher whose most probable tokens are shown.
        top_k: Tokens of each side.
        html: An HTML file to write, too.
        overwrite: Replace a file that exists.

    Raises:
        UserError: If a number is out of range, or a checkpoint is given without weights.
    """

    split: Literal["train", "val", "test"] = "val"
    window: int = 0
    weights: bool = True
    ckpt_path: str | None = None
    num_spans: int = 8
    top_k: int = 5
    html: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, value in (("num_spans", self.num_spans), ("top_k", self.top_k)):
            check_at_least_one(name, value)
        if self.ckpt_path is not None and not self.weights:
            raise UserError("ckpt_path and weights=false exclude each other; leave one out")


def inspect_run(
    module: MultiTeacherDistillModule, data: DistillDataModule, _: Mapping[str, Any], options: InspectOptions
) -> None:
    """Shows a window of a run's data."""
    if not isinstance(data, DistillDataModule):
        raise UserError(f"a window is one of DistillDataModule, got {type(data).__name__}")
    _check_html(options.html, overwrite=options.overwrite)
    checkpoint = None if options.ckpt_path is None else _existing(options.ckpt_path)
    module.connect(data)
    student, teachers = module.vocabularies()
    window = data.window(options.split, options.window)
    title = f"{options.split}, window {options.window}"
    # The checkpoint brings a learned W, too: before it is shown.
    predictions = _predict(module, window, checkpoint, options) if options.weights else None
    result = Inspection.from_window(title, window, student, teachers).with_counterparts(
        {
            name: Counterparts.of_loss(cast(SpanLoss, loss), student, teachers[name], window[STUDENT_IDS])
            for name, loss in module.losses.items()
        }
    )
    _show(
        result if predictions is None else result.with_predictions(predictions),
        options.html,
        overwrite=options.overwrite,
    )


def _predict(
    module: MultiTeacherDistillModule, window: Window, checkpoint: Path | None, options: InspectOptions
) -> Any:
    module.configure_model()
    if checkpoint is not None:
        with ExitStack() as stack:
            state = read_checkpoint(checkpoint, stack)
            module.on_load_checkpoint(state)
            module.load_state_dict(state["state_dict"], strict=module.strict_loading)
    elif module.student_source.weights == "random":
        print(
            "the student's weights are random, as the run would begin; give --ckpt_path for those that were learned\n"
        )
    device = default_device()
    module.to(device).eval()
    batch = collate([window], list(module.teachers), module.planners()).to(device)
    return predict(module, batch, num_spans=options.num_spans, top_k=options.top_k)


def _existing(ckpt_path: str) -> Path:
    if not Path(ckpt_path).exists():
        raise UserError(f"ckpt_path must be a checkpoint of the run, there is none at {ckpt_path!r}; check the path")
    check_whole(ckpt_path)
    return Path(ckpt_path)


def _check_html(html: str | None, *, overwrite: bool) -> None:
    if html is not None:
        check_target(Path(html), kind="file", overwrite=overwrite)


def _show(inspection: Inspection, html: str | None, *, overwrite: bool) -> None:
    print_inspection(inspection)
    if html is not None:
        with atomic_path(html, kind="file", overwrite=overwrite) as part:
            part.write_text(page(inspection), encoding="utf-8")
        print(f"written to {html}")
