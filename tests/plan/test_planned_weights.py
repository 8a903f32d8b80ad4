"""Weights that are shared, adapted, frozen or quantized take as many bytes as planned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from architectures import BALANCED, write_architecture
from peft import LoraConfig, get_peft_model
from planned import measured_passes, size_of
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl import LoRA, Student, Teacher, TokenKL
from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.models.reach import freeze_unreached
from xtoken_pl.models.router_loss import RouterLoss
from xtoken_pl.models.sharding import layers
from xtoken_pl.plan.advice import single_changes
from xtoken_pl.plan.moments import MemoryPlan, Moment
from xtoken_pl.plan.replay import replay
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.teachers.local import place_teachers
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


def plan_of(student: Student, teachers: dict[str, Teacher], **options: Any) -> MemoryPlan:
    return MemoryPlan.from_run(Run(student, teachers, 2, 64, logits_memory=1_000_000, **options))


def moment_of(plan: MemoryPlan, name: str) -> Moment:
    (moment,) = (moment for moment in plan.moments if moment.name == name)
    return moment


# Teachers on shared weights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and four adapters on it: two of layers, one of the embedding, too, and one that replaces the head."""
    folder = tmp_path_factory.mktemp("adapted")
    write_model(folder / "base", splitting_tokenizer(), hidden_size=64)
    settings = {
        "first": LoraConfig(r=4, target_modules=["q_proj"]),
        "second": LoraConfig(r=8, target_modules=["down_proj"]),
    }
    settings["embedding"] = LoraConfig(r=4, target_modules=["embed_tokens", "up_proj"])
    settings["head"] = LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"])
    for name, config in settings.items():
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).save_pretrained(
            folder / name, save_embedding_layers=False
        )
    return folder


def teachers_of(adapted: Path, **options: Any) -> dict[str, Teacher]:
    base = Teacher(model=str(adapted / "base"), loss=TokenKL(), **options)
    return {"plain": base, **{name: replace(base, adapter=str(adapted / name)) for name in ("first", "second")}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_teachers_of_one_model_have_its_weights_once_and_each_its_adapter(adapted: Path, dtype: Any) -> None:
    teachers = teachers_of(adapted, dtype=dtype)
    vocabulary = CanonicalVocabulary.from_tokenizer(splitting_tokenizer())
    placed = place_teachers(teachers, dict.fromkeys(teachers, vocabulary), None, "cpu")
    measured = size_of(*(model.model for model in placed.values()))
    plan = plan_of(Student(model=str(adapted / "base")), teachers)
    assert plan.peak.terms["teachers plain, first, second: weights"] == pytest.approx(measured, rel=1e-3)
    assert not any(f"teacher {name}: weights" in plan.peak.terms for name in teachers)


def test_teachers_whose_weights_differ_share_nothing(adapted: Path) -> None:
    teachers = teachers_of(adapted)
    teachers["first"] = replace(teachers["first"], dtype="bfloat16")
    terms = plan_of(Student(model=str(adapted / "base")), teachers).peak.terms
    assert {"teacher first: weights", "teachers plain, second: weights"} <= terms.keys()


def test_offloaded_shared_weights_are_on_the_gpu_with_all_adapters_while_one_teacher_runs(adapted: Path) -> None:
    teachers = teachers_of(adapted, cpu_offload=True)
    plan = plan_of(Student(model=str(adapted / "base")), teachers)
    whole = plan_of(Student(model=str(adapted / "base")), teachers_of(adapted)).peak.terms
    term = "teachers plain, first, second: weights"
    for name in teachers:
        assert moment_of(plan, f"forward pass of teacher {name}").terms[term] == whole[term]
    assert term not in moment_of(plan, "student's backward pass").terms


def test_sharded_shared_weights_are_gathered_with_all_adapters(adapted: Path) -> None:
    """Two layers and the rest during a pass, the rest until the backward pass has ended; as loaded."""
    teachers = teachers_of(adapted)
    teachers["embedding"] = replace(teachers["plain"], adapter=str(adapted / "embedding"))
    vocabulary = CanonicalVocabulary.from_tokenizer(splitting_tokenizer())
    placed = place_teachers(teachers, dict.fromkeys(teachers, vocabulary), None, "cpu")
    sizes = [size_of(layer) for layer in layers(placed["plain"].model)]
    rest = sum(weight.nbytes for weight in placed["plain"].model.parameters()) - sum(sizes)
    plan = plan_of(Student(model=str(adapted / "base")), teachers, spread="sharded", num_gpus=2, data_parallel_size=2)
    term = "teachers plain, first, second, embedding: gathered layers"
    for name in teachers:
        assert moment_of(plan, f"forward pass of teacher {name}").terms[term] == 2 * max(sizes) + rest
    assert moment_of(plan, "student's backward pass").terms[term] == rest
    assert rest > Skeleton.from_source(teachers["plain"], role="teacher 'plain'").root_bytes


def test_shared_weights_are_changed_together(adapted: Path) -> None:
    """A server cannot have an adapter; one teacher alone on other weights would cost more."""
    teachers = teachers_of(adapted)
    possible = {"servable": frozenset(teachers), "cacheable": frozenset(teachers)}
    plan = plan_of(Student(model=str(adapted / "base")), teachers, **possible)
    texts = [change.text for change in single_changes(plan)]
    assert "model.teachers.{plain, first, second}.dtype: bfloat16" in texts
    assert not any(text.startswith("model.teachers.first") or ".server" in text for text in texts)
    plain = {name: replace(teacher, adapter=None) for name, teacher in teachers.items()}
    changes = single_changes(plan_of(Student(model=str(adapted / "base")), plain, **possible))
    (served,) = (change for change in changes if ".server" in change.text)
    assert served.text.startswith("model.teachers.{plain, first, second}.server: ")


def test_each_teacher_on_shared_weights_has_a_cache_of_its_own(adapted: Path) -> None:
    """Written by one call of `cache` each, and the weights are gone when all of them have one."""
    teachers = teachers_of(adapted)
    plan = plan_of(Student(model=str(adapted / "base")), teachers, cacheable=frozenset(teachers))
    (change,) = (change for change in single_changes(plan) if ".cache" in change.text)
    assert change.text == " and ".join(
        f"model.teachers.{name}.cache: a directory written by `python -m xtoken_pl cache --teacher {name}`"
        for name in ("plain", "first", "second")
    )
    assert not MemoryPlan.from_run(change.run).teachers
    some = plan_of(Student(model=str(adapted / "base")), teachers, cacheable=frozenset({"plain", "first"}))
    assert not any(".cache" in change.text for change in single_changes(some))


def test_directory_of_an_adapter_is_planned_with_the_model_that_it_names(adapted: Path) -> None:
    source = Teacher(model=str(adapted / "head"), loss=TokenKL())
    planned = Skeleton.from_source(source, role="teacher 't'")
    assert planned.weight_bytes == size_of(load_causal_lm(source, role="teacher 't'"))
    assert planned.num_adapter_parameters == 2 * 2 * (64 + 64) + 500 * 64  # two layers of rank 2, and the head


def test_adapters_that_fit_refuses_are_refused_for_the_same_reason(adapted: Path, tmp_path: Path) -> None:
    head = str(adapted / "head")
    both = shutil.copytree(adapted / "first", tmp_path / "both")
    shutil.copy(adapted / "base/config.json", both)
    for source, expected in (
        (Student(model=head), "would be frozen; merge it into its base model"),
        (Teacher(model=head, adapter=str(adapted / "first")), "is a PEFT adapter itself"),
        (Teacher(model=str(both)), "holds both"),
    ):
        for read in (Skeleton.from_source, load_causal_lm):
            with pytest.raises(UserError, match=expected):
                read(source, role="model")


# Trained weights -----------------------------------------------------------------------------------------------------


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "name",
    ["qwen3_moe", "gpt2", *(slow(name) for name in ("gpt_oss", "granitemoe", "afmoe", "deepseek_v3"))],
)
def test_student_with_an_adapter_on_fused_experts_trains_and_holds_what_is_planned(
    tmp_path: Path, name: str, checkpointing: bool
) -> None:
    """Within 1%: PEFT adds the update to all experts of a layer whenever it runs."""
    model_path = write_architecture(tmp_path, name, packing_tokenizer(), seed=1)
    source = Student(model=model_path, adapter=LoRA(rank=4), activation_checkpointing=checkpointing)
    model: Any = load_causal_lm(source, role="student").train()
    add_adapter(model, source.adapter)  # type: ignore[arg-type]
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    terms = plan_of(source, {}).peak.terms
    assert terms["student: gradients"] == trained > 0
    assert terms["student: optimizer"] == 2 * trained
    assert terms["student: weights"] == pytest.approx(size_of(model), rel=1e-3)
    planned = replay(
        Skeleton.from_source(source, role="student"),
        *(8, 64),
        autocast=None,
        trains=True,
        activation_checkpointing=checkpointing,
    )
    real = measured_passes(model, 8, 64, autocast=False)
    assert max(planned.forward.total, planned.backward.total) == pytest.approx(real.peak, rel=0.01)


def test_weights_without_a_gradient_are_not_trained(tmp_path: Path) -> None:
    """The bias that balances AFMoE's experts."""
    source = Student(model=write_architecture(tmp_path, "afmoe", packing_tokenizer(), seed=1))
    model = load_causal_lm(source, role="student")
    freeze_unreached(model)
    frozen = sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    planned = Skeleton.from_source(source, role="student")
    assert planned.trained_bytes == sum(weight.nbytes for weight in model.parameters()) - frozen
    assert frozen > 0


@pytest.mark.parametrize(("name", "layers"), [("mamba", ".layers."), ("gpt2", ".h."), ("qwen3_moe", ".layers.")])
def test_sharding_gathers_what_belongs_to_no_layer_as_one_part(tmp_path: Path, name: str, layers: str) -> None:
    """Mamba names its mixers as well as the layers around them; GPT-2's layers have no `nn.Linear`."""
    source = Student(model=write_architecture(tmp_path, name, packing_tokenizer(), seed=1))
    weights = dict(load_causal_lm(source, role="student").named_parameters())
    outside = sum(weight.nbytes for key, weight in weights.items() if layers not in key)
    skeleton = Skeleton.from_source(source, role="student")
    assert skeleton.root_bytes == outside
    assert max(skeleton.layer_bytes) == (sum(weight.nbytes for weight in weights.values()) - outside) / 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [name if name == "qwen3_moe" else slow(name) for name in BALANCED])
def test_load_balancing_loss_keeps_what_is_planned(tmp_path: Path, name: str, checkpointing: bool) -> None:
    """The routers' logits and what the loss makes of them, within 2%."""
    model_path = write_architecture(tmp_path, name, packing_tokenizer(), seed=1)
    source = Student(model=model_path, router_aux_loss_coef=0.1, activation_checkpointing=checkpointing)
    model: Any = load_causal_lm(source, role="student").train()
    router_loss = RouterLoss(model, 0.1)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    real = measured_passes(model, 8, 64, autocast=False, router_loss=router_loss)
    options: dict[str, Any] = {"autocast": None, "trains": True, "activation_checkpointing": checkpointing}
    skeleton = Skeleton.from_source(source, role="student")
    planned = replay(skeleton, 8, 64, balances_experts=True, **options)
    assert max(planned.forward.total, planned.backward.total) == pytest.approx(real.peak, rel=0.02)
    if not checkpointing:
        assert planned.until_backward.total == pytest.approx(real.saved, rel=0.02)
    without = replay(skeleton, 8, 64, **options)
    logits = 2 * 8 * 64 * 4 * 4  # layers, windows, tokens, experts, bytes
    assert planned.until_backward.total >= without.until_backward.total + logits / 2  # jamba has one layer of experts
    assert "load balancing loss" in [moment.name for moment in plan_of(source, {}).moments]


def test_student_without_a_load_balancing_loss_is_refused_by_name(tmp_path: Path) -> None:
    model = write_architecture(tmp_path, "deepseek_v3", packing_tokenizer(), seed=1)
    with pytest.raises(UserError, match=r"has none; leave out student\.router_aux_loss_coef"):
        plan_of(Student(model=model, router_aux_loss_coef=0.1), {})
