"""A student that learns by an adapter: what is trained, stored and exported, and how a run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from peft import PeftModel
from safetensors.torch import load_file
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtoken_pl import DistillDataModule, LoRA, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource
from xtoken_pl.callbacks import HFExport
from xtoken_pl.cli import main
from xtoken_pl.cli.export import export
from xtoken_pl.models import hidden_states
from xtoken_pl.models.adapters import add_adapter, check_adapter
from xtoken_pl.models.causal_lm import load_causal_lm
from xtoken_pl.models.placement import place_student
from xtoken_pl.plan import MemoryPlan, Run, single_changes, table
from xtoken_pl.plan.replay import replay
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_model(folder / "student", packing_tokenizer(), seed=1, hidden_size=64, tied=True)
    write_model(folder / "other", packing_tokenizer(), seed=9, hidden_size=64, tied=True)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    lines = [json.dumps({"text": text[:200]}) + "\n" for text in TEXTS[:3]]
    (folder / "texts.jsonl").write_text("".join(lines))
    return folder


def student_of(folder: Path, name: str = "student", **options: Any) -> Student:
    return Student(model=str(folder / name), adapter=LoRA(**{"rank": 4, "dropout": 0.1, **options}))


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["loss"].item())


def train(
    folder: Path,
    student: Student,
    *callbacks: pl.Callback,
    num_steps: int,
    ckpt_path: Path | None = None,
) -> tuple[MultiTeacherDistillModule, list[float]]:
    """A run of at most four steps, with a learned W; the module as it was left, and the losses."""
    pl.seed_everything(1, verbose=False)
    teacher = Teacher(model=str(folder / "split"), loss=ProjectionKL(), learn_projection=True)
    module = MultiTeacherDistillModule(student, {"split": teacher})
    module.optimizer_recipe = type(module.optimizer_recipe)(learning_rate=1e-2, warmup_fraction=0.0)
    data = DistillDataModule(
        TextSource(path=str(folder / "texts.jsonl")), sequence_length=64, batch_size=2, num_workers=0
    )
    losses = Losses()
    fitted = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        limit_train_batches=num_steps,
        max_epochs=1,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[losses, *callbacks],
    )
    fitted.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return module, losses.steps


def checkpoints(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.fixture(scope="module")
def whole(workspace: Path) -> tuple[MultiTeacherDistillModule, list[float]]:
    """Four steps that nothing stopped; their checkpoints are in ``whole``."""
    return train(workspace, student_of(workspace), checkpoints(workspace / "whole"), num_steps=4)


@pytest.fixture(scope="module")
def resumed(workspace: Path, whole: Any) -> tuple[MultiTeacherDistillModule, list[float]]:
    """The same from step 2 on; exported as ``merged`` and as ``adapter``."""
    exports = [HFExport(str(workspace / form), form=form) for form in ("merged", "adapter")]
    path = workspace / "whole/step=2.ckpt"
    return train(workspace, student_of(workspace), *exports, num_steps=4, ckpt_path=path)


def logits_of(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def test_every_later_loss_is_that_of_the_run_that_was_not_stopped(whole: Any, resumed: Any) -> None:
    assert len(whole[1]) == 4
    assert resumed[1] == whole[1][2:]
    for name, weight in whole[0].student.named_parameters():
        assert torch.equal(weight, dict(resumed[0].student.named_parameters())[name]), name


def test_the_adapter_learns_and_nothing_below_it(workspace: Path, whole: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(workspace / "student").state_dict()
    trained = dict(whole[0].student.named_parameters())
    for name, weight in trained.items():
        if not weight.requires_grad:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    learned = [name for name, weight in trained.items() if weight.requires_grad]
    assert len(learned) == 2 * 2 * 7  # A and B of seven linear layers in each of two layers
    assert all(trained[name].abs().max() > 0 for name in learned)  # B began at zero


def test_a_checkpoint_holds_the_adapter_and_the_learned_projection_only(workspace: Path, whole: Any) -> None:
    path = workspace / "whole/step=4.ckpt"
    state = torch.load(path, weights_only=True)
    learned = [name for name, weight in whole[0].named_parameters() if weight.requires_grad]
    assert set(learned) <= state["state_dict"].keys()
    assert all(".lora_" in name or name.startswith("losses.split.learned.") for name in state["state_dict"])
    assert len(state["optimizer_states"][0]["state"]) == len(learned)
    adapter = sum(tensor.numel() for name, tensor in state["state_dict"].items() if ".lora_" in name)
    assert adapter < 0.3 * sum(weight.numel() for weight in whole[0].student.parameters() if not weight.requires_grad)


def test_merged_export_is_the_base_with_the_adapter_is_the_trained_student(workspace: Path, resumed: Any) -> None:
    merged = AutoModelForCausalLM.from_pretrained(workspace / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    base = AutoModelForCausalLM.from_pretrained(workspace / "student")
    before = logits_of(base)
    adapted = PeftModel.from_pretrained(base, workspace / "adapter")
    expected = logits_of(resumed[0].student)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(adapted), expected, rtol=1e-5, atol=1e-5)
    for form in ("merged", "adapter"):
        assert AutoTokenizer.from_pretrained(workspace / form)("12")["input_ids"] == packing_tokenizer()("12").input_ids


def test_an_adapter_names_its_base(workspace: Path, resumed: Any) -> None:
    config = json.loads((workspace / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(workspace / "student")
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 32, "CAUSAL_LM")


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_command_and_callback_write_the_same_weights(
    workspace: Path, whole: Any, resumed: Any, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(workspace / "whole/step=4.ckpt"), "--output", str(tmp_path / "x")]
    main(["export", *arguments, "--form", form, "--dtype", "auto"])
    assert ("peft.PeftModel" in capsys.readouterr().out) == (form == "adapter")
    names = sorted(path.name for path in (workspace / form).iterdir())
    assert names == sorted(path.name for path in (tmp_path / "x").iterdir())
    weights = "model.safetensors" if form == "merged" else "adapter_model.safetensors"
    assert (tmp_path / "x" / weights).read_bytes() == (workspace / form / weights).read_bytes()


def test_a_distributed_checkpoint_gives_the_same_adapter(
    workspace: Path, whole: Any, resumed: Any, tmp_path: Path
) -> None:
    state: dict[str, Any] = torch.load(workspace / "whole/step=4.ckpt", weights_only=True)
    dcp.save({"state_dict": state.pop("state_dict")}, checkpoint_id=tmp_path / "sharded.ckpt")
    torch.save(state, tmp_path / "sharded.ckpt/meta.pt")
    export(str(tmp_path / "sharded.ckpt"), str(tmp_path / "x"), form="adapter", dtype="auto")
    name = "adapter_model.safetensors"
    assert (tmp_path / "x" / name).read_bytes() == (workspace / "adapter" / name).read_bytes()


def test_an_adapter_is_not_merged_into_other_weights(workspace: Path, whole: Any, tmp_path: Path) -> None:
    path = str(workspace / "whole/step=4.ckpt")
    with pytest.raises(ValueError, match="trained on other weights than those of"):
        export(path, str(tmp_path / "x"), student=Student(model=str(workspace / "other")))


def test_a_bare_checkpoint_is_exported_with_the_adapter_that_is_given(
    workspace: Path, whole: Any, resumed: Any, tmp_path: Path
) -> None:
    state = torch.load(workspace / "whole/step=4.ckpt", weights_only=True)
    torch.save({"state_dict": state["state_dict"]}, tmp_path / "bare.ckpt")
    bare = str(tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"does not say of which kind.*--student\.adapter\.rank"):
        export(bare, str(tmp_path / "x"), student=Student(model=str(workspace / "student")))
    export(bare, str(tmp_path / "x"), student=student_of(workspace), dtype="auto")
    merged = "model.safetensors"
    assert (tmp_path / "x" / merged).read_bytes() == (workspace / "merged" / merged).read_bytes()


# Which runs go on ---------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Callable[[Path], Student], str]] = {
    "rank": (lambda folder: student_of(folder, rank=5), "another rank than in the checkpoint: 4 there, 5 here"),
    "alpha": (lambda folder: student_of(folder, alpha=8), "another alpha than in the checkpoint: 32 there, 8 here"),
    "targets": (
        lambda folder: student_of(folder, target_modules=["v_proj", "q_proj"]),
        r"another target_modules .*: all-linear there, \['q_proj', 'v_proj'\] here",
    ),
    "base": (lambda folder: student_of(folder, "other"), "another base than in the checkpoint: sha256"),
    "quantization": (
        lambda folder: Student(model=str(folder / "student"), adapter=LoRA(rank=4), quantization="4bit"),
        "another quantization than in the checkpoint: None there, 4bit here",
    ),
    "all weights": (
        lambda folder: Student(model=str(folder / "student")),
        "holds an adapter of a student, and this run trains all weights",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_with_another_adapter_is_refused_by_name(workspace: Path, whole: Any, other: str) -> None:
    make, message = OTHERS[other]
    with pytest.raises(ValueError, match=f"{message}.*start a new run from its exported student"):
        train(workspace, make(workspace), num_steps=4, ckpt_path=workspace / "whole/step=2.ckpt")


def test_an_adapter_is_not_evaluated_on_other_weights(workspace: Path, whole: Any) -> None:
    checkpoint = torch.load(workspace / "whole/step=2.ckpt", weights_only=True)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.state.fn = TrainerFn.VALIDATING
    for student, message in (
        (student_of(workspace, rank=4, alpha=64), "another alpha"),
        (student_of(workspace, "other", rank=4), "another base"),
    ):
        module = MultiTeacherDistillModule(student, kd_weight=0)
        module.trainer = trainer
        module.setup("validate")
        with pytest.raises(ValueError, match=f"the student's adapter has {message} than in the checkpoint"):
            module.on_load_checkpoint(dict(checkpoint))


def test_a_checkpoint_of_all_weights_is_refused_by_a_run_with_an_adapter(workspace: Path, tmp_path: Path) -> None:
    student = Student(model=str(workspace / "student"))
    train(workspace, student, checkpoints(tmp_path), num_steps=1)
    with pytest.raises(ValueError, match="holds all weights of a student, and this run trains an adapter"):
        train(workspace, student_of(workspace), num_steps=2, ckpt_path=tmp_path / "step=1.ckpt")


def test_the_command_line_refuses_another_student_before_texts_are_read(
    workspace: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sharded run would have taken the weights before the module is asked."""

    def no_text_is_read(*_: object, **__: object) -> None:
        raise AssertionError("texts were read")

    monkeypatch.setattr("xtoken_pl.data.module.load_source", no_text_is_read)
    arguments = ["--model.student.model", str(workspace / "student"), "--model.kd_weight", "0"]
    arguments += ["--data.train.path", str(workspace / "texts.jsonl"), "--trainer.logger", "false"]
    arguments += ["--ckpt_path", str(workspace / "whole/step=2.ckpt")]
    with pytest.raises(ValueError, match="holds an adapter of a student, and this run trains all weights"):
        main(["fit", *arguments])
    with pytest.raises(ValueError, match="another rank than in the checkpoint: 4 there, 8 here"):
        main(["fit", *arguments, "--model.student.adapter.rank", "8"])


def test_another_dropout_and_a_moved_base_go_on(workspace: Path, whole: Any, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(workspace / "student", workspace / "moved", dirs_exist_ok=True)
    student = student_of(workspace, "moved", dropout=0.2)
    with caplog.at_level("INFO"):
        train(workspace, student, num_steps=3, ckpt_path=workspace / "whole/step=2.ckpt")
    assert "going on with another dropout of the adapter: 0.2, 0.1 in the checkpoint" in caplog.text


def test_a_checkpoint_without_a_part_of_the_adapter_is_refused(workspace: Path, whole: Any, tmp_path: Path) -> None:
    """Lightning does not look, since the frozen weights are missing in any case."""
    state = torch.load(workspace / "whole/step=2.ckpt", weights_only=True)
    lost = next(name for name in state["state_dict"] if ".lora_B." in name)
    del state["state_dict"][lost]
    torch.save(state, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=f"1 are here only, '{lost}' among them"):
        train(workspace, student_of(workspace), num_steps=4, ckpt_path=tmp_path / "cut.ckpt")


# Other ways to train ------------------------------------------------------------------------------------------------


def test_activation_checkpointing_has_the_same_losses(workspace: Path) -> None:
    plain, saving = student_of(workspace, dropout=0.0), student_of(workspace, dropout=0.0)
    saving.activation_checkpointing = True
    assert train(workspace, saving, num_steps=2)[1] == train(workspace, plain, num_steps=2)[1]


def test_an_adapter_on_half_precision_weights_is_trained_in_single(workspace: Path) -> None:
    student = student_of(workspace)
    student.dtype = "bfloat16"
    module, _ = train(workspace, student, num_steps=1)
    dtypes = {weight.requires_grad: weight.dtype for weight in module.student.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize(("bits", "tolerance"), [("4bit", 1e-5), pytest.param("8bit", 5e-3, marks=pytest.mark.slow)])
def test_a_quantized_student_goes_on_and_is_exported_as_it_was_trained(
    workspace: Path, tmp_path: Path, bits: Any, tolerance: float
) -> None:
    """Products in 8 bits round what goes into a layer, too; the merged model does not."""
    student = Student(model=str(workspace / "student"), adapter=LoRA(rank=4), quantization=bits)
    _, losses = train(workspace, student, checkpoints(tmp_path), num_steps=4)
    exports = [HFExport(str(tmp_path / form), form=form) for form in ("merged", "adapter")]
    module, later = train(workspace, student, *exports, num_steps=4, ckpt_path=tmp_path / "step=2.ckpt")
    assert later == losses[2:]
    assert all(".lora_" in n or "losses." in n for n in torch.load(tmp_path / "step=2.ckpt")["state_dict"])
    expected = logits_of(module.student)
    scale = expected.abs().max()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert (logits_of(merged) - expected).abs().max() < tolerance * scale
    adapted = PeftModel.from_pretrained(load_causal_lm(student, role="student"), tmp_path / "adapter")
    assert (logits_of(adapted) - expected).abs().max() < 1e-5 * scale
    unquantized = AutoModelForCausalLM.from_pretrained(workspace / "student")
    difference = (logits_of(PeftModel.from_pretrained(unquantized, tmp_path / "adapter")) - expected).abs().max()
    assert difference > (1e-3 if bits == "4bit" else 1e-4) * scale  # the quantization matters


# What it needs ------------------------------------------------------------------------------------------------------


def plan_of(student: Student, **options: Any) -> MemoryPlan:
    return MemoryPlan.from_run(Run(student, {}, batch_size=4, sequence_length=64, logits_memory=10_000_000, **options))


def test_plan_counts_gradients_and_optimizer_of_the_adapter_alone(workspace: Path) -> None:
    source = student_of(workspace)
    model = load_causal_lm(source, role="student")
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    weights = sum(weight.nbytes for weight in model.parameters())
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    for spread, shards in (("alone", 1), ("sharded", 2)):
        options = {"spread": spread, "num_gpus": shards, "data_parallel_size": shards}
        plan, full = plan_of(source, **options), plan_of(replace(source, adapter=None), **options)
        terms = plan.peak.terms
        assert terms["student: weights"] == pytest.approx(weights / shards, rel=0.01)  # and buffers
        assert terms["student: gradients"] == trained // shards
        assert terms["student: optimizer"] == 2 * trained // shards
        assert not any("student: gradient of the head" in moment.terms for moment in plan.moments)
        assert plan.peak.total < full.peak.total


def test_planned_activations_are_those_that_a_pass_with_an_adapter_keeps(workspace: Path) -> None:
    """Frozen layers keep no inputs; those of A do, and its outputs."""
    source = student_of(workspace, dropout=0.0)
    model: Any = load_causal_lm(source, role="student").train()
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    input_ids = torch.zeros(8, 128, dtype=torch.long)
    mask = torch.ones_like(input_ids)
    mask[0, 64:] = 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = hidden_states(model, input_ids, mask)
    assert states.requires_grad
    planned = replay(Skeleton.from_source(source, role="student"), 8, 128, autocast=None, trains=True)
    assert planned.in_step.total == pytest.approx(sum(kept.values()), rel=0.1)


def test_plan_offers_to_quantize_what_is_not_trained(workspace: Path) -> None:
    source = student_of(workspace)
    plan = plan_of(source)
    changes = {change.text: change.saves for change in single_changes(plan)}
    assert changes["model.student.quantization: 4bit"] > changes["model.student.quantization: 8bit"] > 0
    quantized = plan_of(replace(source, quantization="4bit"))
    assert not any("Strategy" in change.text for change in single_changes(quantized))
    assert "4bit" in table(quantized, 10**9, [], None)
    assert "of them are trained (adapter)" in table(plan, 10**9, [], None)


# Several processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_store_and_export_the_adapter_of_one(workspace: Path) -> None:
    """Sharded or not, and from a checkpoint of one process, too."""
    script, root = Path(__file__).parents[1] / "helpers/adapted_processes.py", workspace / "processes"
    for name in ("one", "ddp", "fsdp2", "distributed"):
        command = [sys.executable, str(script), name, str(workspace)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    found = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/losses.json")}
    one = found["one"]["whole"]
    assert len(one) == 4
    for name, runs in found.items():
        tolerance = 1e-2 if name == "distributed" else 1e-5  # in bfloat16
        for run, steps in runs.items():
            for mine, theirs in zip(one[-len(steps) :], steps, strict=True):
                assert theirs == pytest.approx(mine, rel=tolerance), (name, run)
        assert runs["resumed"] == runs["whole"][2:]
    assert "after one" in found["fsdp2"]
    for name in ("ddp", "fsdp2"):
        state = torch.load(root / name / "step=4.ckpt", weights_only=True)["state_dict"]
        assert state.keys() == torch.load(root / "one/step=4.ckpt", weights_only=True)["state_dict"].keys()
        for file in ("merged/model.safetensors", "adapter/adapter_model.safetensors"):
            mine, theirs = load_file(root / "one" / file), load_file(root / name / file)
            assert mine.keys() == theirs.keys()
            for weight in mine:
                torch.testing.assert_close(theirs[weight], mine[weight], rtol=1e-4, atol=1e-5)


# What is refused before time is spent -------------------------------------------------------------------------------


def test_specifications_without_sense_are_refused_with_the_ways_out() -> None:
    with pytest.raises(ValueError, match="rank of an adapter must be >= 1, got 0"):
        LoRA(rank=0)
    with pytest.raises(ValueError, match="alpha of an adapter must be >= 1, got 0"):
        LoRA(alpha=0)
    with pytest.raises(ValueError, match=r"dropout of an adapter must be in \[0, 1\), got 1"):
        LoRA(dropout=1.0)
    with pytest.raises(ValueError, match=r"must name layers, got \[\]; 'all-linear'"):
        LoRA(target_modules=[])
    with pytest.raises(ValueError, match="weights='random'; use pretrained weights, or leave the adapter out"):
        Student(model="x", weights="random", adapter=LoRA())
    with pytest.raises(ValueError, match=r"give it one \(adapter: \{rank: 16\}\), or leave quantization out"):
        Student(model="x", quantization="4bit")


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["q_proj", "query"], "got 'query': there is no layer of that name"),
        ("model.*query", r"got 'model\.\*query': there is no layer of that name"),
        (["lm_head"], "'lm_head' is the head, which the losses apply by themselves"),
        (["embed_tokens"], "'model.embed_tokens' is of type Embedding"),
    ],
)
def test_targets_that_are_no_layers_below_the_head_are_refused_before_texts_are_read(
    workspace: Path, targets: Any, reason: str
) -> None:
    module = MultiTeacherDistillModule(student_of(workspace, target_modules=targets), {}, kd_weight=0.0)
    with pytest.raises(ValueError, match=rf"{reason}\. .* called down_proj, gate_proj, k_proj"):
        module.vocabularies()  # which the data module asks for first


@pytest.mark.parametrize(
    "targets", [["q_proj", "mlp.up_proj"], r"model\.layers\.\d+\.(self_attn\.q_proj|mlp\.up_proj)"]
)
def test_targets_are_the_ends_of_names_or_a_regular_expression(workspace: Path, targets: Any) -> None:
    source = student_of(workspace, target_modules=targets)
    model = load_causal_lm(source, role="student")
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    adapted = sorted(name for name, part in model.named_modules() if hasattr(part, "lora_A"))
    assert adapted == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("mlp.up_proj", "self_attn.q_proj")]


@pytest.mark.parametrize(
    ("library", "place", "package"),
    [
        ("peft", "xtoken_pl.models.adapters", r"'xtoken_pl\[adapters\]'"),
        ("bitsandbytes", "xtoken_pl.models.causal_lm", "bitsandbytes"),
    ],
)
def test_a_library_that_is_missing_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, library: str, place: str, package: str
) -> None:
    monkeypatch.setattr(f"{place}.find_spec", lambda name: None)
    source = Student(model=str(workspace / "student"), adapter=LoRA(), quantization="4bit")
    with pytest.raises(UserError, match=rf"(?i)needs {library}.* not installed; install it \(pip install {package}"):
        check_adapter(source)


def test_a_quantized_student_is_not_sharded(workspace: Path) -> None:
    source = Student(model=str(workspace / "student"), adapter=LoRA(), quantization="4bit")
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    with pytest.raises(ValueError, match="use strategy ddp, or leave quantization out"):
        place_student(source, vocabulary, mesh=object(), device="cpu")  # type: ignore[arg-type]


def test_an_adapter_that_is_not_there_is_not_exported(workspace: Path) -> None:
    module = MultiTeacherDistillModule(Student(model=str(workspace / "student")), {}, kd_weight=0.0)
    with pytest.raises(ValueError, match="all weights of this one are trained; leave form out"):
        HFExport(form="adapter").check_module(module)
