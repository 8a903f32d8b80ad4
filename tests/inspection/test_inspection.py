"""Inspections hold the alignment, W and the models' own distributions."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from inspected import NASTY, inspection_of, make_module, vocabularies, windows_of, write_models
from small_models import TEXTS
from transformers import AutoModelForCausalLM

from xtoken_pl import GOLD, ULD, BytePrefixKL, ProjectionKL, SpanAligner, TokenKL, build_projection
from xtoken_pl.data import collate
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.inspection import Counterparts, Inspection, first_sequence, predict, visible
from xtoken_pl.losses import SpanLoss
from xtoken_pl.losses.counterparts import counterparts_in_projection


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


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
    assert sum(cell.span is not None for cell in view.cells) == view.statistics.num_spans
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


def test_unlearned_tokens_are_distinguished_from_gaps() -> None:
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
def test_first_sequence_equals_a_batch_of_that_sequence(packing: Packing) -> None:
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
    found = Counterparts.from_loss(counterparts_in_projection(matrix, ids), student, teachers["split"])
    assert found is not None
    rows = found.by_id
    assert list(rows) == list(dict.fromkeys(ids))
    dense = matrix.to_teacher(torch.eye(len(student))[list(rows)])
    for row, counterpart in zip(dense, rows.values(), strict=True):
        assert {token.id: weight for token, weight in counterpart.entries} == pytest.approx(
            {int(place): row[place].item() for place in row.nonzero()}
        )
    packed = next(row for row in rows.values() if row.token.raw == b"19")
    assert packed.kind == "multi-token"
    assert str(packed) == "multi-token: 0.909 1 + 0.0909 9"


def test_counterparts_of_a_partition_are_its_pairs(folders: dict[str, str]) -> None:
    module = make_module(folders, gold=("split", {"loss": GOLD()}), kl=("same", {"loss": TokenKL()}))
    student, teachers = module.vocabularies()
    ids = student.encode(["a 19"])[0]
    gold, kl = (cast(SpanLoss, module.losses[name]).counterparts(ids) for name in ("gold", "kl"))
    found = Counterparts.from_loss(gold, student, teachers["gold"])
    assert found is not None
    kinds = {row.token.raw: row.kind for row in found.by_id.values()}
    assert (kinds[b"a"], kinds[b"19"]) == ("pair", "rest")
    assert found.by_id[ids[0]].entries[0][0].raw == b"a"
    assert Counterparts.from_loss(kl, student, teachers["kl"]) is None


def full_probs(folder: str, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0] / temperature).softmax(-1)


def test_predictions_are_the_models_distributions(folders: dict[str, str]) -> None:
    module = make_module(
        folders,
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
        for span, cell in zip(view.predictions.spans, (shown.cell for shown in view.predicted_spans), strict=True):
            assert cell.student_start == span.student_start
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
