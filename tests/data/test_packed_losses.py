"""Models read packed documents as if each stood alone, with the same losses, gradients and cached rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from packed_windows import BARE, DOCUMENTS, LENGTH, SPLIT, windows_of
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from xtoken_pl import (
    ALM,
    BPM,
    ESCD,
    GOLD,
    ULD,
    BytePrefixKL,
    DistillDataModule,
    HybridKL,
    MultiTeacherDistillModule,
    PrefixPartitionKL,
    ProjectionKL,
    SimCT,
    SpanLoss,
    StrictTopK,
    Student,
    Teacher,
    TextSource,
    TokenKL,
)
from xtoken_pl.batch import DistillBatch
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.data import collate
from xtoken_pl.data.packing import Packing
from xtoken_pl.models import Head, causal_lm, load_model
from xtoken_pl.models.causal_lm import check_separation, hidden_states
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.cache.teacher_rows import ModelRows, TeacherRows
from xtoken_pl.teachers.local import place_teachers

# Losses -----------------------------------------------------------------------------------------------------------

LOSSES: dict[str, tuple[str, SpanLoss]] = {
    "projection": ("split", ProjectionKL()),
    "hybrid": ("split", HybridKL()),
    "gold": ("reverse", GOLD()),
    "uld": ("reverse", ULD()),
    "bytes_of_split": ("split", BytePrefixKL()),
    "bytes_of_pack": ("pack", BytePrefixKL()),
    "token": ("another", TokenKL()),
    "marginals_of_split": ("split", BPM()),
    "marginals_of_pack": ("pack", BPM()),
    "completions_of_split": ("split", ESCD()),
    "completions_of_pack": ("pack", ESCD()),
    "partition_of_split": ("split", PrefixPartitionKL()),
    "partition_of_reverse": ("reverse", PrefixPartitionKL()),
    "units": ("split", SimCT()),
    "strict": ("reverse", StrictTopK(8)),
    "likelihoods": ("reverse", ALM(tau=5.0)),
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
    """A student with or without bos that learns from every loss at once, in float64."""
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
    """Sums of the cross-entropy and of each loss, and their gradients with respect to the student's first layer."""
    weight = module.student.get_parameter("model.layers.0.self_attn.v_proj.weight")
    scores = module.score(batch)
    summed = {"ce": scores.token_nats.sum(), **{name: spans.loss.sum() for name, spans in scores.spans.items()}}
    gradients = {name: torch.autograd.grad(loss, weight, retain_graph=True)[0] for name, loss in summed.items()}
    return {name: loss.detach() for name, loss in summed.items()}, gradients


def test_separate_documents_have_the_losses_and_gradients_of_unpacked_ones(module: MultiTeacherDistillModule) -> None:
    apart, packed, joined = (batch_of(module, cast(Packing, kind)) for kind in ("none", "separate", "joined"))
    assert len(packed.student.input_ids) < len(apart.student.input_ids)
    assert len(packed.student.labels) == len(apart.student.labels)
    expected, ours, crossed = (sums(module, batch) for batch in (apart, packed, joined))
    for found, wanted in zip(ours, expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    # Where attention crosses documents, every loss differs.
    for name, value in expected[0].items():
        assert abs(crossed[0][name] - value) > 1e-5 * value.abs(), name


def test_cached_rows_of_separate_documents_equal_those_of_unpacked_ones(folder: Path) -> None:
    teachers = {"split": Teacher(model=str(folder / "split"), dtype="float64")}
    model = place_teachers(teachers, {"split": SPLIT}, None, "cpu")["split"]
    row_format = RowFormat("span_starts", 4, 32, len(SPLIT), len(SPLIT))
    rows = TeacherRows("split", ModelRows(model, row_format, 1.0, torch.device("cpu")))
    found = {}
    for packing in ("none", "separate", "joined"):
        of_windows, _ = rows.compute(windows_of(DOCUMENTS, cast(Packing, packing)), "here")
        found[packing] = np.sort(np.concatenate([window["log_span"] for window in of_windows]))
    np.testing.assert_allclose(found["separate"], found["none"], rtol=1e-6)
    assert len(found["joined"]) != len(found["none"])


def test_checksum_distinguishes_separate_documents_from_joined_ones() -> None:
    window = windows_of(["abc", "def"], "separate")[0]
    joined = {name: values for name, values in window.items() if not name.endswith("starts")}
    assert window_checksum(window, "split") != window_checksum(joined, "split")
    assert window_checksum(window | {"split/starts": [0, 3]}, "split") != window_checksum(window, "split")


def test_no_position_of_joined_documents_excludes_what_another_document_ends_with() -> None:
    """The student has neither bos nor eos: it would have written `1` at the end of one and `2` behind it as `12`."""
    sides = {"": BARE, "split": SPLIT}
    loss = BytePrefixKL()
    loss.bind(BARE, SPLIT, None)
    found = []
    for packing in ("none", "joined"):
        windows = windows_of([" a 1", " b 12"], cast(Packing, packing), sides)
        batch = collate(windows, ["split"], {"split": loss.planner})
        boundary = batch.teachers["split"].plan.boundary
        text = [BARE.token_bytes[label] for label in batch.student.labels[boundary.row].tolist()]
        pairs = zip(boundary.excluded_position.tolist(), boundary.excluded_token.tolist(), strict=True)
        excluded = [(position, SPLIT.token_bytes[token]) for position, token in pairs]
        found.append((text, excluded))
    assert found[1] == found[0]
    assert found[0][1]


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


def test_models_are_checked_only_for_separate_packing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
