"""The memory plan against what torch really holds on the CPU, and against the published sizes of models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from xtoken_pl import (
    BytePrefixKL,
    ConfidenceWeighting,
    DistillDataModule,
    HybridKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TokenKL,
    Weighting,
)
from xtoken_pl.cli import main
from xtoken_pl.data import TextSource, Windower, collate
from xtoken_pl.models import hidden_states
from xtoken_pl.models.causal_lm import load_causal_lm
from xtoken_pl.plan import MemoryPlan, Run, single_changes, usable_bytes, way_to_fit
from xtoken_pl.plan.replay import replay
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.utilities.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a teacher of another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "student", packing_tokenizer(), hidden_size=64)
    write_model(folder / "tied", packing_tokenizer(), hidden_size=64, tied=True)
    write_model(folder / "teacher", splitting_tokenizer(), hidden_size=64)
    return folder


def run_of(models: Path, **changes: Any) -> Run:
    teachers = {"t": Teacher(model=str(models / "teacher"), loss=HybridKL())}
    run = Run(Student(model=str(models / "student")), teachers, 8, 128, logits_memory=10_000_000)
    return replace(run, **changes)


# Terms against real tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("name", ["student", "tied"])
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(models: Path, name: str, precision: str) -> None:
    student = Student(model=str(models / name))
    model = load_causal_lm(student, role="student")
    model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    optimizer = AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    measured = {
        "student: weights": sum(parameter.nbytes for parameter in parameters),
        "student: gradients": sum(parameter.grad.nbytes for parameter in parameters),  # type: ignore[union-attr]
        "student: optimizer": sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
    }
    alone = MemoryPlan.of(run_of(models, student=student, precision=precision)).peak.terms
    sharded = MemoryPlan.of(
        run_of(models, student=student, precision=precision, spread="sharded", num_gpus=2, data_parallel_size=2)
    ).peak.terms
    for term, num_bytes in measured.items():
        assert alone[term] == pytest.approx(num_bytes, rel=0.01)
        assert sharded[term] == pytest.approx(num_bytes / 2, rel=0.01)


def real_peak(model: Any, batch_size: int, length: int, *, autocast: bool) -> tuple[int, int]:
    """What autograd keeps, and the most that a forward and backward pass allocates, on the CPU."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    input_ids = torch.zeros(batch_size, length, dtype=torch.long)
    mask = torch.ones_like(input_ids)
    mask[0, length // 2 :] = 0  # with padding there is an attention mask
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), keeping:
            rows = hidden_states(model, input_ids, mask).flatten(0, 1)
        rows.backward(torch.zeros_like(rows))
    return sum(kept.values()), most_allocated(profiler)


def most_allocated(profiler: Any) -> int:
    """The most bytes that the profiled code held at a time, of those that it allocated."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_replayed_pass_holds_what_a_real_one_does(models: Path, autocast: bool, checkpointing: bool) -> None:
    """Within 10%, on two layers; the peak with activation checkpointing, too."""
    source, batch_size, length = Student(model=str(models / "student")), 8, 128
    model: Any = load_causal_lm(source, role="student").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    kept, peak = real_peak(model, batch_size, length, autocast=autocast)
    planned = replay(
        Skeleton.of(source, role="student"),
        batch_size,
        length,
        autocast=torch.bfloat16 if autocast else None,
        trains=True,
        activation_checkpointing=checkpointing,
    )
    assert planned.backward.total == pytest.approx(peak, rel=0.05)
    if not checkpointing:
        assert planned.until_backward.total == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_of_a_real_step_is_at_most_the_planned_one_and_near_it(models: Path, checkpointing: bool) -> None:
    """A whole training step with a teacher, but for what is allowed for CUDA and fragmentation."""
    student = Student(model=str(models / "tied"), activation_checkpointing=checkpointing)
    teachers = {"t": Teacher(model=str(models / "student"), loss=TokenKL())}
    module = MultiTeacherDistillModule(student, teachers, logits_memory=0.005)
    module.setup("fit")
    module.configure_model()
    windows = Windower(module.student_vocabulary, module.teacher_vocabularies, 128)([" ".join(TEXTS[:4])])
    batch = collate([{key: values[place] for key, values in windows.items()} for place in range(8)], ["t"])
    optimizer = AdamW(module.parameters(), foreach=True)

    def step() -> None:
        loss = module.training_step(batch, 0)["loss"]  # type: ignore[call-overload,index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    there_before = sum(4 * parameter.nbytes for parameter in module.student.parameters())  # gradients, Adam's moments
    there_before += sum(parameter.nbytes for parameter in module._loaded_teachers["t"].model.parameters())
    there_before += sum(matrix.nbytes for matrix in module.logit_memory._free)
    measured = there_before + most_allocated(profiler)
    peak = MemoryPlan.of(Run(student, teachers, 8, 128, logits_memory=5_000_000)).peak.terms
    planned = sum(size for term, size in peak.items() if not term.startswith("allowance"))
    assert measured <= planned <= 1.25 * measured


def test_flash_attention_is_planned_where_it_is_not_installed(models: Path) -> None:
    """Without the attention mask, which sdpa keeps for every layer of a batch with padding."""
    source = Student(model=str(models / "student"))
    sdpa, flash = (
        replay(
            Skeleton.of(replace(source, attn_implementation=name), role="student"), 2, 256, autocast=None, trains=True
        )
        for name in ("sdpa", "flash_attention_2")
    )
    masks = 2 * 2 * 256 * 256 * 4  # layers, windows, places of float32
    difference = sdpa.until_backward.total - flash.until_backward.total
    assert difference == pytest.approx(masks, rel=0.3)


# Moments -------------------------------------------------------------------------------------------------------------


def test_teacher_from_a_cache_needs_no_weights_but_room_for_its_rows(models: Path) -> None:
    run = run_of(models)
    run.teachers["t"].cache = "to be built"
    plan = MemoryPlan.of(run)
    of_teacher = {term for moment in plan.moments for term in moment.terms if term.startswith("teacher t")}
    assert {term.removeprefix("teacher t: ") for term in of_teacher} <= {"W and what its loss holds", "cached rows"}
    assert plan.peak.terms["teacher t: cached rows"] == run.batch_size * run.sequence_length * (64 * 6 + 12)


def test_offloaded_teacher_is_there_in_its_own_pass_only(models: Path) -> None:
    run = run_of(models)
    run.teachers["t"].cpu_offload = True
    weights = [moment.name for moment in MemoryPlan.of(run).moments if "teacher t: weights" in moment.terms]
    assert weights == ["pass of teacher t"]


@pytest.mark.parametrize(("quantization", "share"), [("8bit", 1 / 2), ("4bit", 1 / 4)])
def test_quantized_teacher_has_small_linear_layers_and_a_whole_head(
    models: Path, quantization: str, share: float
) -> None:
    teacher = Teacher(model=str(models / "teacher"), loss=TokenKL(), dtype="bfloat16")
    whole = MemoryPlan.of(run_of(models, teachers={"t": teacher}))
    teacher = replace(teacher, quantization=quantization)
    small = MemoryPlan.of(run_of(models, teachers={"t": teacher}))
    linear = sum(layer.weight.nbytes for layer in whole.teachers["t"].linear_layers)
    saved = whole.peak.terms["teacher t: weights"] - small.peak.terms["teacher t: weights"]
    assert saved == pytest.approx(linear * (1 - share), rel=0.15)


def test_ddp_holds_the_gradients_twice_unless_they_are_views(models: Path) -> None:
    plans = {spread: MemoryPlan.of(run_of(models, spread=spread, num_gpus=2)) for spread in ("views", "buckets")}
    term = "student: gradients in DDP's buckets"
    assert plans["buckets"].peak.terms[term] == plans["buckets"].peak.terms["student: gradients"]
    assert term not in plans["views"].peak.terms


# What a configuration says -------------------------------------------------------------------------------------------


def planned_run(models: Path, trainer: dict[str, Any], num_gpus: int | None = None) -> Run:
    module = MultiTeacherDistillModule(Student(model=str(models / "student")), kd_weight=0.0)
    data = DistillDataModule(TextSource(path="texts.jsonl"))
    return Run.of(module, data, trainer, num_gpus)


def model_parallel(size: int | str, tensor: int | str = 1) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": size, "tensor_parallel_size": tensor},
    }


@pytest.mark.parametrize(
    ("trainer", "num_gpus", "expected"),
    [
        ({}, None, (1, "alone", 1)),
        ({"devices": "auto", "strategy": "auto"}, None, (1, "alone", 1)),
        ({"devices": 8, "num_nodes": 2, "strategy": "auto"}, None, (16, "buckets", 1)),
        ({"devices": "0,1", "strategy": "ddp_find_unused_parameters_true"}, None, (2, "buckets", 1)),
        ({"devices": 8, "num_nodes": 16, "strategy": model_parallel(128)}, None, (128, "sharded", 128)),
        ({"devices": 8, "strategy": model_parallel(8)}, 64, (64, "sharded", 64)),
    ],
)
def test_gpus_and_strategy_are_read_from_the_trainer(
    models: Path, trainer: dict[str, Any], num_gpus: int | None, expected: tuple[int, str, int]
) -> None:
    run = planned_run(models, trainer, num_gpus)
    assert (run.num_gpus, run.spread, run.data_parallel_size) == expected


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"strategy": "fsdp"}, "got 'fsdp'; plan with one of them: --trainer.strategy ddp"),
        ({"devices": 0}, "num_gpus must be >= 1, got 0"),
        ({"precision": "transformer-engine"}, "got 'transformer-engine'; plan with one of them"),
        ({"devices": 8, "strategy": model_parallel("auto", "auto")}, "tensor_parallel_size must be 1, got 'auto'"),
        ({"devices": 8, "strategy": model_parallel(4, 2)}, "tensor_parallel_size must be 1, got 2"),
    ],
)
def test_what_cannot_be_planned_is_named(models: Path, trainer: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        planned_run(models, trainer)


# Advice --------------------------------------------------------------------------------------------------------------


def test_each_change_saves_what_the_plan_with_it_has_less(models: Path) -> None:
    plan = MemoryPlan.of(run_of(models))
    changes = single_changes(plan)
    assert [change.saves for change in changes] == sorted((change.saves for change in changes), reverse=True)
    (halved,) = (change for change in changes if change.text.startswith("data.batch_size: 4"))
    assert halved.saves == plan.peak.total - MemoryPlan.of(run_of(models, batch_size=4)).peak.total > 0


def test_way_to_fit_ends_below_the_limit_or_says_that_there_is_none(models: Path) -> None:
    plan = MemoryPlan.of(run_of(models, teachers={}, batch_size=4))
    limit = MemoryPlan.of(run_of(models, teachers={}, batch_size=1)).peak.total
    way = way_to_fit(plan, limit)
    assert way is not None
    assert way.texts
    assert way.peak <= limit
    smallest = Student(model=str(models / "tied"), activation_checkpointing=True)
    assert way_to_fit(MemoryPlan.of(run_of(models, student=smallest, teachers={}, batch_size=1)), 0) is None


def test_what_costs_nothing_but_time_is_changed_first_and_more_gpus_last(models: Path) -> None:
    plan = MemoryPlan.of(run_of(models, teachers={}, batch_size=1))
    way = way_to_fit(plan, MemoryPlan.of(run_of(models, teachers={}, batch_size=1, precision="bf16-true")).peak.total)
    assert way is not None
    assert way.texts[0] == "model.student.activation_checkpointing: true"
    assert not any("ModelParallelStrategy" in text for text in way.texts)


# The command ---------------------------------------------------------------------------------------------------------

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
}
#: The public architectures, by the hub's names.
CONFIGS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B": _LLAMA
    | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    "meta-llama/Llama-3.2-3B": _LLAMA
    | {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
    "microsoft/Phi-4-mini-instruct": {
        "model_type": "phi3",
        "vocab_size": 200064,
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 199999,
        "dtype": "bfloat16",
    },
}
PAPER = ["configs/paper/base.yaml", "configs/paper/llama1b_from_phi4mini_llama3b.yaml"]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's configurations, and its models' config.json without any weights."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, config in CONFIGS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


Plan = Callable[..., str]


@pytest.fixture
def plan(paper: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    monkeypatch.chdir(paper)

    def plan(*arguments: str, configs: list[str] = PAPER) -> str:
        main(["plan", *(word for config in configs for word in ("--config", config)), *arguments])
        return capsys.readouterr().out

    return plan


def test_papers_best_run_is_planned_for_one_gpu_from_its_configs_alone(plan: Plan, paper: Path) -> None:
    """On a machine without a GPU, weights or tokenizers; the numbers of parameters are the published ones."""
    printed = plan("--trainer.accelerator", "gpu", "--json_output", "plan.json")
    written = json.loads((paper / "plan.json").read_text())
    published = {"student": 1.24e9, "teacher phi": 3.84e9, "teacher llama": 3.21e9}
    assert written["parameters"] == {name: pytest.approx(count, rel=0.005) for name, count in published.items()}
    peak = written["moments"][written["peak_moment"]]
    assert sum(peak.values()) == written["peak_bytes"]
    assert peak["student: weights"] == pytest.approx(4 * 1.2358e9, rel=1e-3)
    assert peak["teacher phi: weights"] == pytest.approx(2 * 3.836e9, rel=1e-3)
    assert usable_bytes(80) == written["usable_bytes"]
    assert re.search(rf"fits: {written['peak_bytes'] / 1e9:.2f} of 84\.61 GB at the peak", printed)
    shown = re.search(
        r"^```text\n(on each of .*?)^```", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert shown is not None
    assert shown[1] in printed
    with pytest.raises(UserError, match=r"plan\.json exists and is not overwritten"):
        plan("--json_output", "plan.json")


def test_losses_and_weightings_decide_who_can_be_cached(models: Path) -> None:
    def cacheable(loss: SpanLoss, weighting: Weighting | None = None) -> frozenset[str]:
        teachers = {"t": Teacher(model=str(models / "student"), loss=loss)}
        module = MultiTeacherDistillModule(Student(model=str(models / "student")), teachers, weighting)
        return Run.of(module, DistillDataModule(TextSource(path="x")), {}).cacheable

    assert cacheable(ProjectionKL()) == {"t"}
    assert cacheable(BytePrefixKL()) == frozenset()
    assert cacheable(ProjectionKL(merge="mean")) == frozenset()
    assert cacheable(ProjectionKL(), ConfidenceWeighting("entropy")) == frozenset()


def test_wrong_input_is_named_before_models_are_built(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: Any, **__: Any) -> Skeleton:
        raise AssertionError("a model was built")

    with monkeypatch.context() as patch:
        patch.setattr(Skeleton, "of", no_model)
        with pytest.raises(ValueError, match="gpu_memory must be > 0 GB, got 0"):
            plan("--gpu_memory", "0")
        with pytest.raises(UserError, match="a file is to be written"):
            plan("--json_output", str(tmp_path))
    with pytest.raises(ValueError, match="the model of the student must be a folder or a hub id with the config"):
        Skeleton.of(Student(model=str(tmp_path / "nowhere")), role="student")


def test_model_whose_pass_depends_on_numbers_is_refused_by_name(tmp_path: Path) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 4, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(experts | sizes))
    with pytest.raises(ValueError, match="MixtralForCausalLM cannot be planned"):
        replay(Skeleton.of(Student(model=str(tmp_path)), role="student"), 2, 8, autocast=None, trains=True)


def test_what_does_not_fit_says_what_to_change(plan: Plan, models: Path, paper: Path) -> None:
    config = {
        "model": {
            "student": {"model": str(models / "student")},
            "teachers": {"t": {"model": str(models / "teacher"), "loss": "xtoken_pl.HybridKL"}},
        },
        "data": {"train": {"path": "texts.jsonl"}, "batch_size": 256, "sequence_length": 512},
    }
    (paper / "tiny.yaml").write_text(yaml.safe_dump(config))
    printed = plan("--gpu_memory", "2", configs=["tiny.yaml"])
    assert "does not fit" in printed
    assert "model.teachers.t.cache: a folder" in printed
    of_a_stream = plan("--gpu_memory", "2", "--data.streaming", "true", configs=["tiny.yaml"])
    assert "does not fit" in of_a_stream
    assert ".cache: a folder" not in of_a_stream  # windows of a stream have no places to go by
    assert re.search(r"data\.batch_size: 128 \(and trainer\.accumulate_grad_batches x 2\) saves [0-9.]+ GB", printed)
    assert re.search(r"fits with [0-2]\.\d\d GB after:", printed)
