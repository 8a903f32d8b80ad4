"""Packed documents: whole, the same on every side, and where attention does not cross, with the loss of each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    CanonicalVocabulary,
    DistillDataModule,
    HybridKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TextSource,
    TokenKL,
)
from xtoken_pl.batch import NO_WINDOW, DistillBatch
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.data import Windower, collate
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.order import PaddedWindows
from xtoken_pl.data.packing import Packer, Packing
from xtoken_pl.models import Head, causal_lm, load_model
from xtoken_pl.models.causal_lm import check_separation, hidden_states
from xtoken_pl.teachers.cache.teacher_rows import RowFormat, TeacherRows
from xtoken_pl.teachers.local import FrozenModel

LENGTH = 40
PACK, SPLIT, REVERSE = (
    CanonicalVocabulary.from_tokenizer(make()) for make in (packing_tokenizer, splitting_tokenizer, reversing_tokenizer)
)
SIDES = {"": PACK, "split": SPLIT, "reverse": REVERSE}
WINDOWER = Windower(PACK, {"split": SPLIT, "reverse": REVERSE}, LENGTH)
DOCUMENTS = [
    text[start : start + size] for text, start, size in zip(TEXTS, range(9), (9, 30, 14, 60, 5, 21), strict=False)
]
DOCUMENTS += [" 12 345 6789", "1", "x"]

Rows = list[dict[str, Any]]


def windows_of(documents: list[str], packing: Packing, sides: dict[str, CanonicalVocabulary] = SIDES) -> Rows:
    windower = WINDOWER if sides is SIDES else Windower(sides[""], {n: side for n, side in sides.items() if n}, LENGTH)
    columns = WindowMaker(TextSource(path="x"), windower, packing)(documents)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def text_of(vocabulary: CanonicalVocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes[token] for token in ids)


# What is packed -----------------------------------------------------------------------------------------------------


def documents_of(window: dict[str, Any], side: str) -> list[list[int]]:
    ids, starts = (
        window[f"{side}/ids" if side else "student_ids"],
        window[f"{side}/starts" if side else "student_starts"],
    )
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["a", "12345 the", "é", "数字 def f(x):", "tokenizer " * 5, ""]), max_size=20))
def test_packed_windows_hold_every_window_whole_and_the_same_ones_on_every_side(texts: list[str]) -> None:
    apart, packed = windows_of(texts, "none"), windows_of(texts, "separate")
    assert len(packed) <= len(apart)
    whole = sorted(tuple(tuple(row[f"{s}/ids" if s else "student_ids"]) for s in SIDES) for row in apart)
    found = [zip(*(map(tuple, documents_of(window, side)) for side in SIDES), strict=True) for window in packed]
    assert sorted(document for documents in found for document in documents) == whole


@pytest.mark.parametrize("packing", ["joined", "separate"])
def test_no_side_of_a_packed_window_is_longer_than_the_limit(packing: Packing) -> None:
    packed = windows_of(DOCUMENTS * 3, packing)
    longest = [max(len(row["student_ids"]), len(row["split/ids"]), len(row["reverse/ids"])) for row in packed]
    assert max(longest) <= LENGTH
    assert len(packed) < 0.6 * len(windows_of(DOCUMENTS * 3, "none"))
    assert sorted(longest)[1] > LENGTH - 12  # one may be what was left


def test_eos_stands_between_joined_documents_and_is_learned_only_where_it_is_theirs() -> None:
    eos = PACK.roles["eos"]
    with_eos, without = PACK.encode(["abc"])[0], PACK.encode(["def"])[0]
    columns = {
        "student_ids": [[*without], [*with_eos, eos]],
        "loss_mask": [[1] * len(without), [1] * (len(with_eos) + 1)],
    }
    (ids,), (mask,) = Packer({"": PACK}, 100, "joined")(columns).values()
    assert ids == [*without, eos, *with_eos, eos]
    assert mask == [*[1] * len(without), 0, *[1] * (len(with_eos) + 1)]


def test_positions_start_again_at_every_document_and_at_the_padding() -> None:
    windows = [
        {"student_ids": [5, 6, 7, 8, 9], "loss_mask": [0] * 5, "student_starts": [0, 2]},
        {"student_ids": [5, 6], "loss_mask": [0] * 2, "student_starts": [0]},
    ]
    positions = collate(windows, []).student.position_ids
    assert cast(Tensor, positions).tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]


def test_a_side_without_any_token_of_a_document_does_not_shift_the_others() -> None:
    windows = [{"student_ids": [5, 6, 7], "loss_mask": [0] * 3, "student_starts": [0, 1], "t/ids": [4], "t/spans": []}]
    windows[0]["t/starts"] = [0, 0]
    batch = collate(windows, ["t"])
    assert cast(Tensor, batch.teachers["t"].tokens.position_ids).tolist() == [[0]]


def test_windows_that_are_not_separate_have_no_positions() -> None:
    for packing in ("none", "joined"):
        assert collate(windows_of(DOCUMENTS, cast(Packing, packing)), ["split"]).student.position_ids is None


# The loss -----------------------------------------------------------------------------------------------------------

LOSSES: dict[str, tuple[str, SpanLoss]] = {
    "projection": ("split", ProjectionKL()),
    "hybrid": ("split", HybridKL()),
    "gold": ("reverse", GOLD()),
    "uld": ("reverse", ULD()),
    "bytes_of_split": ("split", BytePrefixKL()),
    "bytes_of_pack": ("pack", BytePrefixKL()),
    "token": ("another", TokenKL()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    made = {"pack": packing_tokenizer, "split": splitting_tokenizer, "reverse": reversing_tokenizer}
    made |= {"another_pack": packing_tokenizer, "another_split": splitting_tokenizer}
    for seed, (name, tokenizer) in enumerate(made.items()):
        write_model(root / name, tokenizer(), seed=seed)
    return root


@pytest.fixture(scope="module", params=["pack", "split"])
def module(request: pytest.FixtureRequest, folder: Path) -> MultiTeacherDistillModule:
    """A student with bos, or without one, that learns from every loss at once, in float64."""
    own: str = request.param
    teachers = {
        name: Teacher(model=str(folder / teacher.replace("another", f"another_{own}")), loss=loss, dtype="float64")
        for name, (teacher, loss) in LOSSES.items()
        if teacher != own
    }
    made = MultiTeacherDistillModule(Student(model=str(folder / own), dtype="float64"), teachers)
    made.setup("fit")
    made.configure_model()
    return made


def batch_of(module: MultiTeacherDistillModule, packing: Packing) -> DistillBatch:
    windows = windows_of(DOCUMENTS, packing, {"": module.student_vocabulary, **module.teacher_vocabularies})
    return collate(windows, list(module.teachers), module.planners())


def sums(module: MultiTeacherDistillModule, batch: DistillBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The summed cross-entropy and losses, and the gradient of each with respect to the student's first layer."""
    weight = module.student.get_parameter("model.layers.0.self_attn.v_proj.weight")
    scores = module.score(batch)
    summed = {"ce": scores.token_nats.sum(), **{name: spans.loss.sum() for name, spans in scores.spans.items()}}
    gradients = {name: torch.autograd.grad(loss, weight, retain_graph=True)[0] for name, loss in summed.items()}
    return {name: loss.detach() for name, loss in summed.items()}, gradients


def test_separate_documents_have_the_loss_and_the_gradient_of_each_by_itself(module: MultiTeacherDistillModule) -> None:
    apart, packed, joined = (batch_of(module, cast(Packing, kind)) for kind in ("none", "separate", "joined"))
    assert len(packed.student.input_ids) < len(apart.student.input_ids)
    assert len(packed.student.labels) == len(apart.student.labels)
    expected, ours, crossed = (sums(module, batch) for batch in (apart, packed, joined))
    for found, wanted in zip(ours, expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    # Where attention crosses, no loss is that of the documents.
    for name, value in expected[0].items():
        assert abs(crossed[0][name] - value) > 1e-5 * value.abs(), name


def test_a_cache_of_separate_documents_holds_what_the_teacher_says_of_each_by_itself(folder: Path) -> None:
    loaded = load_model(Teacher(model=str(folder / "split"), dtype="float64"), SPLIT, role="teacher")
    rows = TeacherRows("split", FrozenModel(loaded), RowFormat(4, 32, len(SPLIT), len(SPLIT)), 1.0, torch.device("cpu"))
    found = {}
    for packing in ("none", "separate", "joined"):
        of_windows, _ = rows.of(windows_of(DOCUMENTS, cast(Packing, packing)), "here")
        found[packing] = np.sort(np.concatenate([window["log_span"] for window in of_windows]))
    np.testing.assert_allclose(found["separate"], found["none"], rtol=1e-6)
    assert len(found["joined"]) != len(found["none"])


def test_a_cache_tells_separate_documents_from_joined_ones() -> None:
    window = windows_of(["abc", "def"], "separate")[0]
    joined = {name: values for name, values in window.items() if not name.endswith("starts")}
    assert window_checksum(window, "split") != window_checksum(joined, "split")
    assert window_checksum(window | {"split/starts": [0, 3]}, "split") != window_checksum(window, "split")


# Models -------------------------------------------------------------------------------------------------------------


def test_a_model_that_separates_documents_passes(folder: Path) -> None:
    for attention in ("eager", "sdpa"):
        source = Teacher(model=str(folder / "split"), attn_implementation=attention)
        assert load_model(source, SPLIT, role="teacher", separates=True)


@pytest.mark.parametrize("takes_positions", [True, False])
def test_a_model_whose_states_cross_documents_is_refused(takes_positions: bool) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(SPLIT), hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config).eval()
    if not takes_positions:
        forward = model.backbone.forward
        model.backbone.forward = lambda input_ids, attention_mask=None, use_cache=None: forward(input_ids)
    with pytest.raises(ValueError, match=r"the teacher 'm'.* set data.packing to joined or none") as error:
        check_separation(model, Head.from_model(model, SPLIT), role="teacher 'm'")
    assert ("differ from those of each document alone by" in str(error.value)) == takes_positions


def test_the_check_is_made_where_the_data_are_separate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(causal_lm, "check_separation", lambda *_, role: checked.append(role))
    for packing in ("joined", "separate"):
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
        source = TextSource(path=str(folder / "texts.jsonl"))
        data = DistillDataModule(source, sequence_length=LENGTH, num_workers=0, packing=cast(Packing, packing))
        trainer = pl.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        teachers = {"t": Teacher(model=str(folder / "split"), loss=ProjectionKL())}
        trainer.fit(MultiTeacherDistillModule(Student(model=str(folder / "pack")), teachers), data)
        assert checked == ([] if packing == "joined" else ["student", "teacher 't'"])


def test_one_row_for_flash_attention_gives_the_same_states(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(Teacher(model=str(folder / "split")), SPLIT, role="teacher").model
    ids = torch.arange(12).reshape(2, 6)
    positions = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]])
    expected = hidden_states(model, ids, torch.ones_like(ids), positions)
    seen: list[torch.Size] = []
    model.model.embed_tokens.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    monkeypatch.setattr(causal_lm, "is_flash_attention_requested", lambda _: True)
    torch.testing.assert_close(hidden_states(model, ids, torch.ones_like(ids), positions), expected)
    assert seen == [(1, 12)]


# The data module ----------------------------------------------------------------------------------------------------


def data_of(folder: Path, **options: Any) -> DistillDataModule:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    source = TextSource(path=str(path))
    data = DistillDataModule(source, source, sequence_length=LENGTH, batch_size=2, num_workers=0, **options)
    data.connect(PACK, {"split": SPLIT})
    data.setup("fit")
    return data


@pytest.mark.parametrize("packing", ["joined", "separate"])
def test_streams_and_stored_windows_are_packed_alike(tmp_path: Path, packing: Packing) -> None:
    stored, streamed = data_of(tmp_path, packing=packing), data_of(tmp_path, packing=packing, streaming=True)
    batches = [list(cast(Any, data.val_dataloader())) for data in (stored, streamed)]
    expected = [batch.student.input_ids.tolist() for batch in batches[0]]
    assert [batch.student.input_ids.tolist() for batch in batches[1]] == expected
    first = next(iter(streamed.train_dataloader()))
    assert (first.student.position_ids is not None) == (packing == "separate")


def test_a_run_goes_on_only_with_the_packing_that_it_had(tmp_path: Path) -> None:
    identities = [
        data_of(tmp_path, packing=cast(Packing, kind)).state_dict()["identity"]
        for kind in ("none", "joined", "separate")
    ]
    assert [identity.get("data.packing") for identity in identities] == [None, "joined", "separate"]
    windows = "windows (texts, tokenizers, sequence_length)"
    assert len({identity[windows] for identity in identities}) == 3


def test_a_process_without_a_window_of_a_batch_gets_an_empty_document(tmp_path: Path) -> None:
    data = data_of(tmp_path, packing="separate")
    windows = PaddedWindows(cast(Any, data.datasets["train"]), ["split"])
    batch = collate([windows[NO_WINDOW], windows[0]], ["split"])
    assert cast(Tensor, batch.student.position_ids)[0, :3].tolist() == [0, 0, 1]
    assert len(collate([windows[NO_WINDOW]], ["split"]).student.labels) == 0
