"""What `inspect` shows is the alignment, W and the models' own distributions; nothing of a text can act."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.cells import cell_len
from rich.console import Console
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanAligner,
    Student,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.cli import main
from xtoken_pl.cli.report import run
from xtoken_pl.data import Windower, collate
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.inspection import Counterparts, Inspection, first_sequence, predict, visible
from xtoken_pl.inspection.page import page
from xtoken_pl.inspection.pictures import drawable, predictions_figure, spans_figure
from xtoken_pl.inspection.terminal import print_inspection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

NASTY = "<script>alert('1 & 2')</script>\n\"é数\x1b[31m\u202e 1984 $x_1^2$ | ´\u0301"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tokenizers = {"student": packing_tokenizer(), "same": packing_tokenizer(), "split": splitting_tokenizer()}
    return {name: write_model(root / name, made, seed=seed) for seed, (name, made) in enumerate(tokenizers.items())}


Make = Callable[..., MultiTeacherDistillModule]


@pytest.fixture(scope="module")
def make(folders: dict[str, str]) -> Make:
    def make(**teachers: tuple[str, dict[str, Any]]) -> MultiTeacherDistillModule:
        chosen = {
            name: Teacher(model=folders[folder], dtype="float64", **options)
            for name, (folder, options) in teachers.items()
        }
        module = MultiTeacherDistillModule(Student(model=folders["student"], dtype="float64"), chosen)
        module.setup("fit")
        module.configure_model()
        return module.eval()

    return make


def windows_of(student: CanonicalVocabulary, teachers: dict[str, CanonicalVocabulary], *texts: str) -> list[Any]:
    columns = Windower(student, teachers, 4096)(texts)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def vocabularies() -> tuple[CanonicalVocabulary, dict[str, CanonicalVocabulary]]:
    student, teacher = map(CanonicalVocabulary.from_tokenizer, (packing_tokenizer(), splitting_tokenizer()))
    return student, {"split": teacher}


def inspection_of(text: str) -> Inspection:
    student, teachers = vocabularies()
    (window,) = windows_of(student, teachers, text)
    return Inspection.from_window("title", window, student, teachers)


def with_rows_of_w(text: str) -> Inspection:
    student, teachers = vocabularies()
    shown = inspection_of(text)
    matrix = build_projection(student.tokenizer, teachers["split"].tokenizer)
    ids = [token.id for token in shown.tokens]
    return shown.with_counterparts({"split": Counterparts.of_projection(matrix, student, teachers["split"], ids)})


# Tokens and cells ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" a\n\t\r", "·a↵⇥␍"),
        ("é".encode(), "é"),
        ("é".encode()[1:] + b"x" + "数".encode()[:2], "⟨a9⟩x⟨e6 95⟩"),
        (b"\x1b[31m\x00\x9b", "⟨U+001B⟩[31m⟨U+0000⟩⟨9b⟩"),
        ("\u202e\u200b\u2028\ufeff\u00a0".encode(), "⟨U+202E⟩⟨U+200B⟩⟨U+2028⟩⟨U+FEFF⟩⟨U+00A0⟩"),
        ("\u0301".encode(), "◌\u0301"),
        (b"", ""),
    ],
)
def test_every_byte_of_a_token_can_be_seen(raw: bytes, text: str) -> None:
    assert visible(raw) == text


@pytest.mark.parametrize("text", [TEXTS[0][:300], NASTY, "12345 67", "a"])
def test_cells_hold_every_token_once_in_order(text: str) -> None:
    shown = inspection_of(text)
    view = shown.teachers["split"]
    assert [token for cell in view.cells for token in cell.student] == shown.tokens
    assert [token for cell in view.cells for token in cell.teacher] == view.tokens
    assert sum(view.kinds.values()) == sum(cell.span is not None for cell in view.cells) == view.statistics.num_spans
    for cell in view.cells:
        if cell.span is not None and not cell.student[0].is_special:
            assert b"".join(token.raw for token in cell.student) == b"".join(token.raw for token in cell.teacher)


def test_cells_are_the_spans_of_the_aligner() -> None:
    student, teachers = vocabularies()
    text = TEXTS[1][:200]
    ids, teacher_ids = student.encode([text])[0], teachers["split"].encode([text])[0]
    spans = SpanAligner(student.tokenizer, teachers["split"].tokenizer).align(ids, teacher_ids)
    cells = [cell for cell in inspection_of(text).teachers["split"].cells if cell.span is not None]
    *of_text, end = cells  # the Windower adds eos
    assert end.student[0].is_special
    shape = [(len(cell.student), len(cell.teacher)) for cell in of_text]
    lengths = (spans.student_end - spans.student_start, spans.teacher_end - spans.teacher_start)
    assert shape == list(zip(*(length.tolist() for length in lengths), strict=True))
    kinds = {(True, True): "one-to-one", (True, False): "one-to-many", (False, True): "many-to-one"}
    assert [cell.kind for cell in of_text] == [kinds.get((a == 1, b == 1), "many-to-many") for a, b in shape]


def test_what_is_not_learned_is_told_from_gaps() -> None:
    student, teachers = vocabularies()
    (window,) = windows_of(student, teachers, "some text 1984 here")
    window["loss_mask"][1:3] = [0, 0]
    first, second, *others = Inspection.from_window("", window, student, teachers).teachers["split"].cells
    assert (first.kind, first.span, first.is_learned) == ("masked", None, False)  # bos
    assert second.span == 0
    assert not second.is_learned
    assert all(cell.is_learned for cell in others[2:])
    window["split/spans"] = []
    (gap,) = Inspection.from_window("", window, student, teachers).teachers["split"].cells
    assert (gap.kind, gap.span, len(gap.student)) == ("gap", None, len(window["student_ids"]))


def test_a_batch_shows_the_spans_that_are_scored() -> None:
    student, teachers = vocabularies()
    windows = windows_of(student, teachers, TEXTS[2][:200])
    of_batch = Inspection.from_batch("", collate(windows, ["split"]), student, teachers)
    of_window = Inspection.from_window("", windows[0], student, teachers)
    assert of_batch.tokens == of_window.tokens
    scored = [cell for cell in of_batch.teachers["split"].cells if cell.span is not None]
    every = [cell for cell in of_window.teachers["split"].cells if cell.span is not None]
    # The teacher has no bos: nothing predicts its first token.
    assert [cell.student for cell in scored] == [cell.student for cell in every[1:]]
    assert [cell.teacher for cell in scored] == [cell.teacher for cell in every[1:]]


@pytest.mark.parametrize("packing", ["none", "separate"])
def test_the_first_sequence_of_a_batch_is_that_sequence_alone(packing: Packing) -> None:
    student, teachers = vocabularies()
    windows = windows_of(student, teachers, TEXTS[3][:90], TEXTS[4][:300], "x")
    if packing == "separate":
        columns = {name: [window[name] for window in windows] for name in windows[0]}
        longest = max(len(window[column]) for window in windows for column in ("student_ids", "split/ids"))
        packed = Packer({"": student, **teachers}, longest, packing)(columns)
        windows = [dict(zip(packed, row, strict=True)) for row in zip(*packed.values(), strict=True)]
        assert [len(window["student_starts"]) for window in windows] == [2, 1]
    found, alone = first_sequence(collate(windows, ["split"])), collate(windows[:1], ["split"])
    for mine, theirs in (
        (found.student, alone.student),
        (found.teachers["split"].tokens, alone.teachers["split"].tokens),
        (found.teachers["split"].spans, alone.teachers["split"].spans),
    ):
        for name, tensor in vars(theirs).items():
            if tensor is None:
                assert getattr(mine, name) is None, name
            else:
                assert torch.equal(getattr(mine, name), tensor), name
    assert (found.student.position_ids is None) == (packing == "none")
    assert found.cuts.student.tolist() == alone.cuts.student.tolist()


# Counterparts, predictions ---------------------------------------------------------------------------------------


def test_counterparts_are_the_rows_of_w() -> None:
    student, teachers = vocabularies()
    matrix = build_projection(student.tokenizer, teachers["split"].tokenizer)
    ids = [*student.encode(["a 19 19 <"])[0], student.roles["pad"]]
    rows = Counterparts.of_projection(matrix, student, teachers["split"], ids).by_id
    assert list(rows) == list(dict.fromkeys(ids))
    dense = matrix.to_teacher(torch.eye(len(student))[list(rows)])
    for row, counterpart in zip(dense, rows.values(), strict=True):
        assert {token.id: weight for token, weight in counterpart.entries} == pytest.approx(
            {int(place): row[place].item() for place in row.nonzero()}
        )
    packed = next(row for row in rows.values() if row.token.raw == b"19")
    assert packed.kind == "multi-token"
    assert str(packed) == "multi-token: 0.909 1 + 0.0909 9"


def test_counterparts_of_a_partition_are_its_pairs(make: Make) -> None:
    module = make(gold=("split", {"loss": GOLD()}), kl=("same", {"loss": TokenKL()}))
    student, teachers = module.vocabularies()
    ids = student.encode(["a 19"])[0]
    found = Counterparts.of_loss(module.losses["gold"], student, teachers["gold"], ids)  # type: ignore[arg-type]
    assert found is not None
    kinds = {row.token.raw: row.kind for row in found.by_id.values()}
    assert (kinds[b"a"], kinds[b"19"]) == ("pair", "rest")
    assert found.by_id[ids[0]].entries[0][0].raw == b"a"
    assert Counterparts.of_loss(module.losses["kl"], student, teachers["kl"], ids) is None  # type: ignore[arg-type]


def full_probs(folder: str, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0] / temperature).softmax(-1)


def test_predictions_are_the_models_own_and_the_students_go_through_w(make: Make, folders: dict[str, str]) -> None:
    module = make(
        split=("split", {"loss": ProjectionKL(), "temperature": 2.0}),
        same=("same", {"loss": TokenKL()}),
        prefix=("split", {"loss": BytePrefixKL()}),
        uld=("split", {"loss": ULD()}),
    )
    student, teachers = module.vocabularies()
    (window,) = windows_of(student, teachers, "some of 1984 and 12345 dogs, or 77 cats: see the reference")
    batch = collate([window], list(teachers))
    with torch.no_grad():
        scores = module.score(batch).spans
    found = predict(module, batch, num_spans=6, top_k=4)
    shown = Inspection.from_window("", window, student, teachers).with_predictions(found)
    matrix = build_projection(student.tokenizer, teachers["split"].tokenizer)
    for name, view in shown.teachers.items():
        assert view.predictions is not None
        assert list(view.predictions.losses.values()) == pytest.approx(scores[name].loss.tolist())
        assert len(view.predictions.spans) == 6
        assert view.predictions.is_projected == (name == "split")
        temperature = 2.0 if name == "split" else 1.0
        ours = full_probs(folders["student"], list(window["student_ids"]), temperature)
        ours = matrix.to_teacher(ours) if name == "split" else ours
        theirs = full_probs(folders["same" if name == "same" else "split"], list(window[f"{name}/ids"]), temperature)
        kinds = set()
        teacher_place = 0
        for span in view.predictions.spans:
            cell = view.cells[view.cell_at(span.student_start)]
            kinds.add(cell.kind)
            teacher_place = sum(len(before.teacher) for before in view.cells[: view.cells.index(cell)])
            for row, candidates in (
                (ours[span.student_start - 1], span.student),
                (theirs[teacher_place - 1], span.teacher),
            ):
                values, ids = row.topk(4)
                assert [candidate.token.id for candidate in candidates] == ids.tolist()
                assert [candidate.probability for candidate in candidates] == pytest.approx(values.tolist(), rel=1e-5)
        assert "one-to-one" in kinds
        assert (name == "same") == (kinds == {"one-to-one"})


# Renderers -------------------------------------------------------------------------------------------------------


class _Reader(HTMLParser):
    """The texts of the tokens, what they are hovered for, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        self._about: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._about = dict(attrs).get("data-about")

    def handle_data(self, data: str) -> None:
        if self._about is not None:
            self.tokens.append((data, self._about))
            self._about = None


def test_page_shows_every_token_and_nothing_of_the_text_acts() -> None:
    shown = with_rows_of_w(NASTY)
    content = page(shown)
    reader = _Reader()
    reader.feed(content)
    view = shown.teachers["split"]
    expected = [token for cell in view.cells for token in (*cell.student, *cell.teacher)]
    assert [text for text, _ in reader.tokens] == [token.text for token in expected]
    for token, (_, about) in zip(expected, reader.tokens, strict=True):
        assert f"id {token.id}" in about
        assert token.raw.hex(" ") in about
    assert not reader.tags & {"script", "link", "img", "iframe"}
    assert not reader.attributes & {"src", "href", "onclick", "onload"}
    assert "url(" not in content
    assert "\x1b" not in content


def test_title_and_names_are_escaped() -> None:
    student, teachers = vocabularies()
    (window,) = windows_of(student, teachers, "a b")
    assert "<b>" not in page(Inspection.from_window("<b>&", window, student, teachers)).split("<body>")[0]


def printed(shown: Inspection, **options: Any) -> str:
    file = io.StringIO()
    print_inspection(shown, Console(file=file, highlight=False, **options))
    return file.getvalue()


def test_terminal_without_colours_puts_spans_in_brackets() -> None:
    output = printed(with_rows_of_w("1984 is"), width=70)
    assert "\x1b" not in output
    (above,) = [line.split() for line in output.splitlines() if line.startswith("student  ")]
    (below,) = [line.split() for line in output.splitlines() if line.startswith("split  ")]
    assert above == ["student", "(<|begin_of_text|>)", "[198]", "[4]", "[·is]", "[<|end_of_text|>]"]
    assert below == ["split", "()", "[1│9│8]", "[4]", "[·i│s]", "[<|end_of_text|>]"]
    assert "multi-token: 0.9" in output


def test_terminal_colours_alternate_and_a_text_cannot_steer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    options = {"width": 70, "force_terminal": True, "color_system": "256"}
    shown = inspection_of(NASTY)
    coloured = printed(shown, **options)
    assert "48;5;153m" in coloured
    assert "48;5;222m" in coloured
    assert "\x1b[31m" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(shown, **options) == printed(shown, width=70)
    assert "\x1b" not in printed(shown, width=70)


@pytest.mark.parametrize("width", [50, 80])
def test_lines_are_wrapped_to_the_terminal(width: int) -> None:
    output = printed(inspection_of(TEXTS[0][:400].replace("\n", " ") + " 数字 café"), width=width)
    rows = [line for line in output.splitlines() if line.startswith(("student  ", "split    "))]
    assert len(rows) > 8
    assert all(cell_len(row) <= width for row in rows)
    # A span's two sides begin in one column.
    for above, below in zip(rows[::2], rows[1::2], strict=True):
        starts = [
            [cell_len(row[: opening.start()]) for opening in re.finditer(r"(?<= )\[(?=[^ ])", row)]
            for row in (above, below)
        ]
        assert starts[0] == starts[1]
        assert starts[0]


def test_pictures_are_drawn_without_a_warning(make: Make) -> None:
    module = make(split=("split", {"loss": ProjectionKL()}))
    student, teachers = module.vocabularies()
    (window,) = windows_of(student, teachers, NASTY + TEXTS[0][:400])
    batch = collate([window], ["split"])
    shown = Inspection.from_batch("", batch, student, teachers).with_predictions(
        predict(module, batch, num_spans=4, top_k=3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (spans_figure(shown, "split"), predictions_figure(shown, "split")):
            figure.savefig(io.BytesIO(), dpi=30)
    assert len(predictions_figure(shown, "split").axes) == 8
    assert drawable("a数é") == "a⟨U+6570⟩é"


# The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, folder in folders.items():
        (tmp_path / name).symlink_to(folder)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text[:300]}) + "\n" for text in TEXTS[:3]))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    teachers = {"split": {"model": "split", "loss": "xtoken_pl.ProjectionKL"}, "same": {"model": "same"}}
    config = {
        "seed_everything": 1,
        "model": {"student": {"model": "student"}, "teachers": teachers},
        "data": {"train": {"path": "texts.jsonl"}, "val": {"path": "texts.jsonl"}, "sequence_length": 48},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_text_is_shown_and_written(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--student", "student", "--teacher", "split"]
    main(["inspect", *pair, "--text", "in 1984 <b>", "--html", "out.html"])
    output = capsys.readouterr().out
    assert "rows of W" in output
    assert "written to out.html" in output
    assert "&lt;" in Path("out.html").read_text()
    with pytest.raises(UserError, match=r"out.html exists and is not overwritten unasked"):
        main(["inspect", *pair, "--text", "a", "--html", "out.html"])
    main(["project", *pair, "--output", "w.safetensors"])
    Path("text.txt").write_text("in 1984 <b>")
    capsys.readouterr()
    stored = ["--projection", "w.safetensors", "--html", "out.html", "--overwrite", "true"]
    main(["inspect", *pair, "--text_file", "text.txt", *stored])
    assert capsys.readouterr().out.splitlines()[1:] == output.splitlines()[1:]


def test_a_window_of_a_run_is_shown_with_what_its_models_expect(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", "--config", "run.yaml", "--split", "train", "--window", "1", "--html", "out.html"])
    output, content = capsys.readouterr().out, Path("out.html").read_text()
    assert "train, window 1" in output
    assert "student through W" in output
    assert output.count(" nats") == content.count(" nats</span></header>") == 16
    assert "<h2>same</h2>" in content
    main(["inspect", "--config", "run.yaml", "--weights", "false"])
    without = capsys.readouterr().out
    assert "rows of W" in without
    assert "nats" not in without


def test_a_checkpoint_gives_the_students_weights(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.logger", "false"]
    quick += ["--model.optimizer.learning_rate", "0.1", "--trainer.enable_progress_bar", "false"]
    main(["fit", "--config", "run.yaml", *quick, "--data.num_workers", "0", "--data.batch_size", "2"])
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")
    capsys.readouterr()
    main(["inspect", "--config", "run.yaml"])
    before = capsys.readouterr().out
    main(["inspect", "--config", "run.yaml", "--ckpt_path", str(checkpoint)])
    after = capsys.readouterr().out
    assert before != after
    aligned = [
        [line for line in output.splitlines() if line.startswith(("student  ", "split    "))]
        for output in (before, after)
    ]
    assert aligned[0] == aligned[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--student", "student", "--teacher", "split"], "give --text or --text_file, got neither"),
        (["--student", "student", "--teacher", "split", "--text", "a", "--text_file", "b"], "got both"),
        (["--student", "student", "--teacher", "split", "--text", ""], "text must hold something to align"),
        (["--student", "student", "--teacher", "split", "--text_file", "no.txt"], "there is none at 'no.txt'"),
        (["--student", "student", "--teacher", "split", "--text_file", "empty.txt"], "'empty.txt' is empty"),
        (["--student", "student", "--teacher", "split", "--text_file", "latin.txt"], "must be UTF-8, 'latin.txt' is"),
        (["--config", "run.yaml", "--split", "test"], "split must be one with texts (train, val), got 'test'"),
        (["--config", "run.yaml", "--split", "dev"], "must be one of train, val, test, got 'dev'"),
        (["--config", "run.yaml", "--window", "999"], "counted from 0, got 999"),
        (["--config", "run.yaml", "--window", "-1"], "counted from 0, got -1"),
        (["--config", "run.yaml", "--top_k", "0"], "top_k must be >= 1, got 0"),
        (["--config", "run.yaml", "--ckpt_path", "no.ckpt"], "there is none at 'no.ckpt'"),
        (["--config", "run.yaml", "--ckpt_path", "no.ckpt", "--weights", "false"], "exclude each other"),
        (["--config", "run.yaml", "--html", "student"], "student is a folder"),
        (["--config=missing.yaml"], "there is none at 'missing.yaml'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_named(
    workspace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(main, ["inspect", *arguments]) in (1, 2)
    (message,) = re.findall("^error: .*", capsys.readouterr().err, flags=re.MULTILINE)
    assert expected in message


def test_a_stream_has_windows_too(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streamed = ["--config", "run.yaml", "--split", "train", "--data.streaming", "true", "--weights", "false"]
    main(["inspect", *streamed, "--window", "2"])
    assert "train, window 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="window must be one of a stream of windows of train"):
        main(["inspect", *streamed, "--window", "99999"])
