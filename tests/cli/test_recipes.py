"""The paper's recipes train two steps as they are, with small models in place of the hub's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configurations import ROOT, SMALL_TRAINER, command_of
from logged import scalars
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from xtoken_pl.cli import main
from xtoken_pl.cli.config_files import merge

#: Experiments of the paper, all of which are off-policy.
RECIPES = sorted(
    path for path in (ROOT / "configs/paper").glob("*.yaml") if path.stem != "base" and "on_policy" not in path.stem
)
STRATEGIES = sorted((ROOT / "configs/strategy").glob("*.yaml"))
#: What stands in for a model of the hub: its tokenizer relates to the student's in the same way.
STAND_INS = {
    "meta-llama/Llama-3.2-1B": lambda: packing_tokenizer(),
    "meta-llama/Llama-3.2-3B": lambda: packing_tokenizer(),
    "microsoft/Phi-4-mini-instruct": lambda: reversing_tokenizer(),
    "Qwen/Qwen3-4B": lambda: splitting_tokenizer(),
}


def write_stand_ins(folder: Path, tokenizers: dict[str, PreTrainedTokenizerFast], **options: Any) -> None:
    """Models at the hub's names, relative to the working folder, a text, and the configurations."""
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        write_model(folder / name, tokenizer, seed=seed, **options)
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS[:6]]
    (folder / "texts.jsonl").write_text("".join(lines))
    (folder / "configs").symlink_to(ROOT / "configs")


#: Laid over a recipe: local texts, two small steps on the CPU.
SMALL: dict[str, Any] = {
    "data": {
        "train": {"path": "texts.jsonl", "name": None},
        "val": None,
        "sequence_length": 48,
        "batch_size": 2,
        "streaming": False,
        "num_workers": 0,
    },
    "trainer": SMALL_TRAINER,
}


def train(recipe: Path, *arguments: str, overlay: dict[str, Any] | None = None) -> dict[str, list[float]]:
    """Runs a recipe by the command in its header, made small; returns what TensorBoard has."""
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    Path("overlay.yaml").write_text(yaml.safe_dump(overlay or {}))
    main([*command_of(recipe), "--config", "small.yaml", "--config", "overlay.yaml", *arguments])
    return scalars(max(Path("runs").rglob("version_*"), key=lambda folder: folder.stat().st_mtime_ns))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_stand_ins(folder, {name: make() for name, make in STAND_INS.items()})
    return folder


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def teachers_of(recipe: Path) -> dict[str, Any]:
    """The teachers in a recipe's file and in those that it is laid over."""
    found: dict[str, Any] = {}
    for word in command_of(recipe):
        if word.endswith(".yaml"):
            found |= yaml.safe_load((ROOT / word).read_text()).get("model", {}).get("teachers", {})
    return found


QWEN, PHI, LLAMA = "Qwen/Qwen3-4B", "microsoft/Phi-4-mini-instruct", "meta-llama/Llama-3.2-3B"
#: Of every recipe, by teacher: the model, the loss, alpha, and whether W is learned.
PAPER: dict[str, dict[str, tuple[str, str, float, bool]]] = {
    "llama1b_ce": {},
    "llama1b_from_qwen4b_p_kl": {"qwen": (QWEN, "ProjectionKL", 1.0, True)},
    "llama1b_from_qwen4b_gold": {"qwen": (QWEN, "GOLD", 1.0, False)},
    "llama1b_from_qwen4b_uld": {"qwen": (QWEN, "ULD", 1.0, False)},
    "llama1b_from_phi4mini_h_kl": {"phi": (PHI, "HybridKL", 1.0, False)},
    "llama1b_from_phi4mini_gold": {"phi": (PHI, "GOLD", 1.0, False)},
    "llama1b_from_phi4mini_uld": {"phi": (PHI, "ULD", 1.0, False)},
    "llama1b_from_llama3b_kl": {"llama": (LLAMA, "TokenKL", 1.0, False)},
    "llama1b_from_phi4mini_llama3b": {
        "phi": (PHI, "HybridKL", 0.8, False),
        "llama": (LLAMA, "TokenKL", 0.2, False),
    },
    "llama1b_from_phi4mini_qwen4b": {
        "phi": (PHI, "HybridKL", 0.5, False),
        "qwen": (QWEN, "ProjectionKL", 0.5, True),
    },
    "llama1b_from_three_teachers": {
        "phi": (PHI, "HybridKL", 0.6, False),
        "llama": (LLAMA, "TokenKL", 0.2, False),
        "qwen": (QWEN, "ProjectionKL", 0.2, True),
    },
    "ablation_fixed_weights": {"phi": (PHI, "HybridKL", 0.8, False), "llama": (LLAMA, "TokenKL", 0.2, False)},
    "ablation_adaptive_alpha": {"phi": (PHI, "HybridKL", 1.0, False), "llama": (LLAMA, "TokenKL", 1.0, False)},
}


def test_every_experiment_of_the_paper_has_a_recipe() -> None:
    assert {recipe.stem for recipe in RECIPES} == PAPER.keys()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_the_papers(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        main([*command_of(recipe), "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)
    model, data, trainer = parsed["model"]["init_args"], parsed["data"]["init_args"], parsed["trainer"]
    teachers = {
        name: (
            teacher["model"],
            teacher["loss"]["class_path"].removeprefix("xtoken_pl."),
            teacher["alpha"],
            teacher["learn_projection"],
        )
        for name, teacher in (model["teachers"] or {}).items()
    }
    assert teachers == PAPER[recipe.stem]
    assert model["student"]["model"] == "meta-llama/Llama-3.2-1B"
    assert model["kd_weight"] == (0.0 if recipe.stem == "llama1b_ce" else 1.0)
    assert (model["weighting"] is not None) == (recipe.stem == "ablation_adaptive_alpha")
    callbacks = [callback["class_path"].rsplit(".", 1)[1] for callback in trainer["callbacks"]]
    assert ("DynamicLossScaling" in callbacks) == (recipe.stem not in ("llama1b_ce", "ablation_fixed_weights"))
    assert ("ProjectionExport" in callbacks) == any(learned for *_, learned in teachers.values())
    assert (trainer["max_steps"], trainer["gradient_clip_val"]) == (30_000, 1.0)
    assert data["batch_size"] * trainer["accumulate_grad_batches"] == 768
    assert data["sequence_length"] == 4096


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_two_steps(inside: Path, recipe: Path) -> None:
    tags = train(recipe)
    teachers = teachers_of(recipe)
    assert bool(teachers) == (recipe.stem != "llama1b_ce")
    expected = ["train/loss", "train/ce", *["train/kd", "train/kd_scale"] * bool(teachers)]
    expected += [f"train/{tag}/{name}" for name in teachers for tag in ("kd", "alpha", "scale", "unmapped_mass")]
    for tag in expected:
        assert len(tags[tag]) == 2
        assert all(math.isfinite(value) for value in tags[tag])
    for name in teachers:
        assert tags[f"train/kd/{name}"][0] > 0
        assert 0 < tags[f"train/spans_per_token/{name}"][0] <= 1
    assert all(value > 0 for value in tags["throughput/tokens_per_second"])
    if recipe.stem not in ("llama1b_ce", "ablation_fixed_weights"):  # dynamic scaling
        assert tags["train/loss"] == pytest.approx([2 * ce for ce in tags["train/ce"]], rel=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda path: path.stem)
def test_strategy_keeps_the_papers_batch_over_all_its_gpus(strategy: Path) -> None:
    base = yaml.safe_load((ROOT / "configs/paper/base.yaml").read_text())
    config = merge(base, yaml.safe_load(strategy.read_text()))
    trainer, data = config["trainer"], config["data"]
    num_gpus = trainer["devices"] * trainer.get("num_nodes", 1)
    strategy_given = trainer.get("strategy", "auto")
    options = strategy_given["init_args"] if isinstance(strategy_given, dict) else {}
    group = options.get("tensor_parallel_size", 1)  # its GPUs read the same windows
    assert data["batch_size"] * trainer["accumulate_grad_batches"] * num_gpus == 768 * group
    assert data["sequence_length"] == 4096
    assert trainer["val_check_interval"] == 500 * trainer["accumulate_grad_batches"]  # micro-batches
    if options:
        assert options["data_parallel_size"] * group == num_gpus
    elif num_gpus > 1:
        assert strategy_given == "fsdp2"  # over all of them


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda path: path.stem)
def test_strategy_trains_two_steps_with_one_process_in_place_of_its_gpus(inside: Path, strategy: Path) -> None:
    tags = train(strategy, overlay={"trainer": {"devices": 1, "num_nodes": 1, "strategy": "auto"}})
    assert all(math.isfinite(value) for value in tags["train/loss"])
    assert len(tags["train/loss"]) == 2


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_adapter_laid_over_a_recipe_trains_two_steps_and_is_merged(inside: Path, name: str) -> None:
    tags = train(ROOT / f"configs/{name}.yaml")
    assert all(math.isfinite(value) for value in tags["train/loss"])
    assert len(tags["train/loss"]) == 2
    run = max(Path("runs").rglob("version_*"), key=lambda folder: folder.stat().st_mtime_ns)
    (checkpoint,) = (run / "checkpoints").glob("last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(".lora_" in key or key.startswith("losses.qwen.learned.") for key in state)
    assert type(AutoModelForCausalLM.from_pretrained(run / "export")).__name__ == "LlamaForCausalLM"


def test_fixed_weights_instead_of_dynamic_scaling_are_a_change_of_yaml_only(inside: Path) -> None:
    """The same seed gives the same batches, weights and losses; only what the losses are multiplied by differs."""
    dynamic = train(ROOT / "configs/paper/llama1b_from_phi4mini_llama3b.yaml")
    fixed = train(ROOT / "configs/paper/ablation_fixed_weights.yaml", overlay={"model": {"kd_weight": 0.25}})
    for tag in ("train/ce", "train/kd", "train/kd/phi", "train/kd/llama"):
        assert fixed[tag][0] == pytest.approx(dynamic[tag][0], rel=1e-6)
    assert fixed["train/kd_scale"] == [0.25, 0.25]
    assert dynamic["train/kd_scale"][0] == pytest.approx(dynamic["train/ce"][0] / dynamic["train/kd"][0], rel=1e-5)


def test_adaptive_weights_sum_to_one_and_static_ones_are_those_of_the_recipe(inside: Path) -> None:
    static = train(ROOT / "configs/paper/llama1b_from_phi4mini_llama3b.yaml")
    assert static["train/alpha/phi"] == pytest.approx([0.8, 0.8])
    assert static["train/alpha/llama"] == pytest.approx([0.2, 0.2])
    adaptive = train(ROOT / "configs/paper/ablation_adaptive_alpha.yaml")
    for phi, llama in zip(adaptive["train/alpha/phi"], adaptive["train/alpha/llama"], strict=True):
        assert phi + llama == pytest.approx(1.0, abs=1e-5)
        assert 0.01 < phi < 0.99


def test_loss_of_a_recipe_is_changed_on_the_command_line(inside: Path) -> None:
    """As the header of the recipe says: P-KL with W fixed, and H-KL."""
    recipe = ROOT / "configs/paper/llama1b_from_qwen4b_p_kl.yaml"
    fixed_w = ["--model.teachers.qwen.learn_projection", "false"]
    projected = train(recipe, *fixed_w)
    hybrid = train(recipe, *fixed_w, "--model.teachers.qwen.loss", "xtoken_pl.HybridKL")
    assert projected["train/kd/qwen"][0] != hybrid["train/kd/qwen"][0]
    assert projected["train/ce"][0] == pytest.approx(hybrid["train/ce"][0], rel=1e-6)


def test_byte_prefix_kl_trains_as_the_papers_losses_do(inside: Path) -> None:
    tags = train(ROOT / "configs/llama1b_from_qwen4b_byte_prefix_kl.yaml")
    assert tags["train/loss"] == pytest.approx([2 * ce for ce in tags["train/ce"]], rel=1e-4)
    assert all(0 < value < math.inf for value in tags["train/kd/qwen"])
    assert all(0 <= value < 0.5 for value in tags["train/unmapped_mass/qwen"])
    projected = train(ROOT / "configs/paper/llama1b_from_qwen4b_p_kl.yaml")
    assert tags["train/ce"][0] == pytest.approx(projected["train/ce"][0], rel=1e-6)


def test_cross_entropy_alone_beside_a_teacher_learns_nothing_from_it_and_does_not_run_it(inside: Path) -> None:
    """Laid over a run with teachers, the baseline sees that run's very windows."""
    recipe = ROOT / "configs/paper/llama1b_from_llama3b_kl.yaml"
    with_teacher = train(recipe)
    alone = train(recipe, overlay=yaml.safe_load((ROOT / "configs/paper/llama1b_ce.yaml").read_text()))
    assert alone["train/ce"][0] == pytest.approx(with_teacher["train/ce"][0], rel=1e-6)
    assert "train/kd/llama" in with_teacher.keys() - alone.keys()
    assert alone["train/loss"] == alone["train/ce"]


@pytest.mark.slow
def test_three_teachers_on_real_tokenizers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    llama3: PreTrainedTokenizerFast,
    qwen3: PreTrainedTokenizerFast,
    o200k: PreTrainedTokenizerFast,
) -> None:
    """P-KL, H-KL and KL at once, from YAML alone, over the vocabularies of Llama 3, Qwen 3 and o200k."""
    monkeypatch.chdir(tmp_path)
    tokenizers = dict(zip(STAND_INS, (llama3, llama3, o200k, qwen3), strict=True))
    write_stand_ins(tmp_path, tokenizers, hidden_size=8)
    tags = train(ROOT / "configs/paper/llama1b_from_three_teachers.yaml")
    for name, alpha in (("phi", 0.6), ("llama", 0.2), ("qwen", 0.2)):
        assert tags[f"train/alpha/{name}"] == pytest.approx([alpha, alpha])
        assert all(0 < value < math.inf for value in tags[f"train/kd/{name}"])
        scales = [alpha * scale for scale in tags["train/kd_scale"]]
        assert tags[f"train/scale/{name}"] == pytest.approx(scales, rel=1e-5)
        assert all(value > 0.9 for value in tags[f"train/span_coverage/{name}"])
    exported = next(Path("runs").rglob("export"))
    assert AutoModelForCausalLM.from_pretrained(exported, dtype="auto").dtype == torch.bfloat16
