"""``python -m xtoken_pl inspect``: a text under two tokenizers, or a window of a run's data under all its models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from xtoken_pl.batch import STUDENT_IDS, Prompt
from xtoken_pl.checkpoints import Run, verify
from xtoken_pl.checkpoints.export import read_checkpoint
from xtoken_pl.cli.config_files import config_paths
from xtoken_pl.cli.outputs import check_output, write_output
from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.cli.usage import run_function
from xtoken_pl.data import DistillDataModule
from xtoken_pl.data.collate import collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.windows import Windower
from xtoken_pl.inspection.counterparts import Counterparts
from xtoken_pl.inspection.inspection import Inspection
from xtoken_pl.inspection.page import page
from xtoken_pl.inspection.predictions import Predictions, predict
from xtoken_pl.inspection.rollouts import prompt_text
from xtoken_pl.inspection.terminal import print_inspection
from xtoken_pl.losses import SpanLoss
from xtoken_pl.losses.counterparts import counterparts_in_projection
from xtoken_pl.models.placement import default_device
from xtoken_pl.projection import Projection, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.tokenization.normalization import CommonNormalizer, Normalizer, rewritten_share
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import read_text
from xtoken_pl.utilities.words import percent

_NO_LIMIT = 2**62  # the text is not cut into windows


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
    normalize: bool = False,
    html: str | None = None,
    overwrite: bool = False,
) -> None:
    """Show a text as two tokenizers see it: spans of equal bytes, and the rows of W of its tokens.

    With --config FILE it shows a window of a run's data instead, under all its teachers, with the models' predictions;
    it then takes the options of fit (see `python -m xtoken_pl inspect --config FILE --help`).

    Args:
        student: Directory or hub id of the student's tokenizer.
        teacher: Directory or hub id of the teacher's tokenizer.
        text: The text.
        text_file: A text file (UTF-8) to read instead.
        projection: A file with W; built by default.
        normalize: Rewrite the text as the normalizers of both tokenizers do, as data.normalize does.
        html: An HTML file to write in addition.
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
    check_output("html", html, overwrite=overwrite)
    student_vocabulary, vocabulary = (
        CanonicalVocabulary.from_tokenizer(load_tokenizer(source)) for source in (student, teacher)
    )
    if projection is None:
        matrix = build_projection(student_vocabulary.tokenizer, vocabulary.tokenizer)
    else:
        matrix = Projection.load(projection)
        matrix.check_belongs_to(student_vocabulary, vocabulary)
    teachers = {"teacher": vocabulary}
    windower = Windower(student_vocabulary, teachers, _NO_LIMIT)
    columns = windower([CommonNormalizer(windower.named_sides)(content) if normalize else content])
    window = {column: values[0] for column, values in columns.items()}
    rows = Counterparts.from_loss(
        counterparts_in_projection(matrix, window[STUDENT_IDS]), student_vocabulary, vocabulary
    )
    shown = Inspection.from_window(text_file or "a text", window, student_vocabulary, teachers)
    shown = replace(shown, notes=_describe_rewriting(content, windower.named_sides, normalize=normalize))
    _show(shown.with_counterparts({"teacher": rows}), html, overwrite=overwrite)


def _describe_rewriting(text: str, sides: Mapping[str, CanonicalVocabulary], *, normalize: bool) -> tuple[str, ...]:
    """Describes the share of a text that each side's normalizer rewrites; leaves out sides that rewrite nothing."""
    normalizers = {name: Normalizer(vocabulary) for name, vocabulary in sides.items()}
    shares = {name: rewritten_share(normalizer, text) for name, normalizer in normalizers.items()}
    rest = "; both sides read the rewritten text" if normalize else "; where bytes differ, tokens are in no span"
    return tuple(
        f"the normalizer of the {name} ({normalizers[name].name or '▁ as a space'}) rewrites {percent(share)} of the "
        f"text, in whole words{rest}"
        for name, share in shares.items()
        if share
    )


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of ``inspect`` in addition to those of ``fit``.

    Attributes:
        split: Split of the data: train, val or test.
        window: Index of the window, from 0, among those of the split: all its sources, one after the other.
        source: Name of a source of the split, to count its windows alone.
        weights: Load the models and show their predictions; otherwise show the alignment and W alone.
        ckpt_path: A checkpoint of the run with the student's weights.
        num_spans: Number of spans of each teacher whose most probable tokens are shown.
        top_k: Number of tokens of each side.
        html: An HTML file to write in addition.
        overwrite: Replace a file that exists.

    Raises:
        UserError: If a number is out of range, or a checkpoint is given without weights.
    """

    split: Literal["train", "val", "test"] = "val"
    window: int = 0
    source: str | None = None
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
    check_output("html", options.html, overwrite=options.overwrite)
    verify(options.ckpt_path, Run(), "validate")
    module.connect(data)
    student, teachers = module.vocabularies()
    window = data.window(options.split, options.window, options.source)
    where = options.split if options.source is None else f"{options.split}.{options.source}"
    title = f"{where}, window {options.window}"
    prompt = Prompt.from_window(window, list(teachers))
    if prompt is not None and not len(window[STUDENT_IDS]):
        if options.html is not None:
            raise UserError(
                f"a page shows a window with spans, and {title} is a prompt alone, behind which the student writes "
                f"(model.rollouts); leave html={options.html!r} out"
            )
        print(f"{title}: a prompt alone, behind which the student writes\n{prompt_text(prompt, student, teachers)}")
        return
    shown = Inspection.from_window(title, window, student, teachers)
    if options.weights:  # a checkpoint also restores a learned W, which is shown below
        shown = shown.with_predictions(_predict(module, window, options))
    counterparts = {
        name: Counterparts.from_loss(cast(SpanLoss, loss).counterparts(window[STUDENT_IDS]), student, teachers[name])
        for name, loss in module.losses.items()
    }
    _show(shown.with_counterparts(counterparts), options.html, overwrite=options.overwrite)


def _predict(module: MultiTeacherDistillModule, window: Window, options: InspectOptions) -> dict[str, Predictions]:
    module.configure_model()
    if options.ckpt_path is not None:
        with ExitStack() as stack:
            state = read_checkpoint(Path(options.ckpt_path), stack)
            module.on_load_checkpoint(state)
            module.load_state_dict(state["state_dict"], strict=module.strict_loading)
    elif module.student_source.weights == "random":
        print("the student's weights are random, as at the start of the run; give --ckpt_path for trained weights\n")
    device = default_device()
    module.to(device).eval()
    batch = collate([window], list(module.teachers), module.planners()).to(device)
    return predict(module, batch, num_spans=options.num_spans, top_k=options.top_k)


def _show(inspection: Inspection, html: str | None, *, overwrite: bool) -> None:
    print_inspection(inspection)
    write_output(html, lambda part: part.write_text(page(inspection), encoding="utf-8"), overwrite=overwrite)
