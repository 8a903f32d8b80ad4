"""No model is loaded whose files lack a weight, on either side; what they hold in addition is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from damaged_models import Weights, damaged, prefixed, renamed, rewrite, without
from small_models import packing_tokenizer, write_model
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2MoeConfig,
    Lfm2MoeForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from xtoken_pl.models import load_causal_lm
from xtoken_pl.models.loading import check_weights
from xtoken_pl.models.placement import place_student
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.teachers.local import place_teachers
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_TINY = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _builders() -> dict[str, Callable[[], Any]]:
    mixtral = {"num_key_value_heads": 2, "num_local_experts": 4, "intermediate_size": 16}
    linear = ["linear_attention", "full_attention"]
    lfm2: dict[str, Any] = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1}
    lfm2 |= {"intermediate_size": 16, "moe_intermediate_size": 16, "layer_types": ["conv", "full_attention"]}
    qwen = {"num_key_value_heads": 2, "intermediate_size": 16, "head_dim": 16}
    return {
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_TINY, **qwen)),
        "qwen3-tied": lambda: Qwen3ForCausalLM(Qwen3Config(**_TINY, **qwen, tie_word_embeddings=True)),
        "gpt2-tied": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, tie_word_embeddings=False)
        ),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_TINY, **mixtral)),
        "minimax": lambda: MiniMaxForCausalLM(MiniMaxConfig(**_TINY, **mixtral, layer_types=linear)),
        "lfm2-moe": lambda: Lfm2MoeForCausalLM(Lfm2MoeConfig(**_TINY, **lfm2)),
    }


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "llama", packing_tokenizer())
    write_model(folder / "llama-tied", packing_tokenizer(), tied=True)
    for name, build in _builders().items():
        torch.manual_seed(0)
        build().save_pretrained(folder / name)
    return folder


def refusal(folder: str, **options: Any) -> str:
    """The message with which a student and a teacher are refused, the same for both."""
    messages = []
    for source in (Student(model=folder), Teacher(model=folder, **options)):
        with pytest.raises(UserError) as error:
            load_causal_lm(source, role="model")
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    return messages[0]


@pytest.mark.parametrize("name", ["llama", "llama-tied", *_builders()])
def test_a_whole_model_is_loaded_and_nothing_is_said(
    models: Path, name: str, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(models / name)
    for source in (Student(model=folder), Teacher(model=folder)):
        check_weights(source, role="model")
        loaded = load_causal_lm(source, role="model").state_dict()
        for key, tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().items():
            torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    assert not [warning for warning in recwarn if "does not have" in str(warning.message)]
    assert "REPORT" not in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "llama",
            prefixed("base."),
            r"21 of 21 are missing.*: lm_head.* and 18 more\. The files hold 21 .*: base\.lm_",
        ),
        ("llama", without("layers.1."), r"9 of 21 are missing.*: model\.layers\.1\.input_layernorm\.weight,"),
        ("llama", renamed("k_proj", "key_proj"), r"2 of 21 .*layers\.0\.self_attn\.k_proj\.weight.*hold 2 .*key_proj"),
        ("llama", without("lm_head"), r"1 of 21 are missing.*: lm_head\.weight\. .*set tie_word_embeddings to true"),
        ("llama-tied", without("embed_tokens"), r"2 of 21 .*: lm_head\.weight, model\.embed_tokens\.weight\."),
        ("llama", lambda _: {"other": torch.zeros(1)}, r"21 of 21 are missing"),
        ("qwen3", without("q_norm"), r"2 of 25 are missing.*: model\.layers\.0\.self_attn\.q_norm\.weight, "),
        ("qwen3-tied", prefixed("module."), r"25 of 25 are missing"),
        ("gpt2-tied", without("wpe"), r"1 of 29 are missing.*: transformer\.wpe\.weight\."),
        ("gpt2-tied", without("wte"), r"2 of 29 are missing.*: lm_head\.weight, transformer\.wte\.weight\."),
        ("gpt2", without("lm_head"), r"1 of 29 are missing.*: lm_head\.weight\."),
        ("mixtral", without("layers.1.block_sparse_moe.experts"), r"2 of 21 .*layers\.1\.mlp\.experts\.down_proj, "),
    ],
)
def test_missing_weights_are_named(
    models: Path, tmp_path: Path, name: str, change: Callable[[Weights], Weights], expected: str
) -> None:
    folder = damaged(models / name, tmp_path / "damaged", change)
    message = refusal(folder)
    assert message.startswith("the weights of the model must be complete, but ")
    with pytest.raises(UserError, match=expected) as error:
        check_weights(Teacher(model=folder), role="model")  # before anything is loaded
    assert str(error.value) == message


def test_a_buffer_may_be_missing_if_the_model_computes_it(models: Path, tmp_path: Path) -> None:
    """The decays of MiniMax's linear attention follow from its configuration; transformers saves them all the same."""
    bare = damaged(
        models / "minimax", tmp_path / "bare", lambda weights: without("slope_rate")(without("decay")(weights))
    )
    check_weights(Student(model=bare), role="student")
    with pytest.warns(UserWarning, match=r"lacks buffers of the student .* \(4\): .*diagonal_decay, .* and 1 more"):
        loaded = load_causal_lm(Student(model=bare), role="student").state_dict()
    for key, tensor in AutoModelForCausalLM.from_pretrained(models / "minimax").state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    bare = damaged(
        models / "minimax",
        tmp_path / "less",
        lambda weights: without("slope_rate")(without("layers.1.self_attn.q_proj")(weights)),
    )
    assert "1 of " in (message := refusal(bare))
    assert "layers.1.self_attn.q_proj.weight. Correct" in message


def test_a_buffer_that_is_learned_may_not_be_missing(models: Path, tmp_path: Path) -> None:
    folder = damaged(models / "lfm2-moe", tmp_path / "damaged", without("expert_bias"))
    assert re.search(
        r"must be complete, but 1 of .*: model\.layers\.1\.feed_forward\.\S*expert_bias\. Correct", refusal(folder)
    )


def test_models_that_are_sharded_or_checked_without_accelerate_lack_nothing_either(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtoken_pl.models.loading.find_spec", lambda name: None)
    folder = damaged(models / "llama", tmp_path / "damaged", without("layers.1."))
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    mesh = cast(DeviceMesh, SimpleNamespace(ndim=1))
    check_weights(Student(model=folder), role="student")
    with pytest.raises(UserError, match="weights of the student must be complete"):
        place_student(Student(model=folder), vocabulary, mesh, "cpu")
    with pytest.raises(UserError, match="weights of the teacher 'x' must be complete"):
        place_teachers({"x": Teacher(model=folder)}, {"x": vocabulary}, mesh, "cpu")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("experts.3."), r"must have the shapes .* 4 of 21 .* is \[3, 32, 16\], not \[4, 32, 16\]"),
        (without("layers.1.block_sparse_moe.experts.2.w1"), r"must be complete, .*layers\.1\.mlp\.experts\.gate_up"),
    ],
)
def test_an_expert_that_is_missing_is_refused(
    models: Path, tmp_path: Path, change: Callable[[Weights], Weights], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        raise UserError(refusal(damaged(models / "mixtral", tmp_path / "damaged", change)))


def test_weights_of_another_shape_are_named_with_both_shapes(models: Path, tmp_path: Path) -> None:
    folder = damaged(models / "llama", tmp_path / "damaged", lambda weights: weights, hidden_size=64)
    assert "must have the shapes of its config.json, but 21 of 21" in refusal(folder)
    assert "lm_head.weight is [700, 32], not [700, 64]" in refusal(folder)


def test_a_head_that_is_tied_may_be_missing_and_so_may_the_prefix_of_the_body(models: Path, tmp_path: Path) -> None:
    for name in ("llama-tied", "gpt2-tied"):
        model = AutoModelForCausalLM.from_pretrained(models / name)
        body = f"{model.base_model_prefix}."
        bare = damaged(models / name, tmp_path / name, lambda weights, body=body: renamed(body, "")(weights))
        loaded = load_causal_lm(Student(model=bare), role="student")
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=0, atol=0)


def test_weights_without_a_use_are_named_in_one_line(models: Path, tmp_path: Path) -> None:
    extra = {"critic.weight": torch.zeros(2), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    folder = damaged(models / "llama", tmp_path / "extra", lambda weights: weights | extra)
    with pytest.warns(UserWarning, match=r"does not have and does not use \(1\): critic\.weight$") as warnings:
        load_causal_lm(Teacher(model=folder), role="teacher 'x'")
    assert len(warnings) == 1


def test_tied_weights_that_differ_are_refused_for_a_student(models: Path, tmp_path: Path) -> None:
    """Its export would tie them again. A teacher is loaded with both."""
    folder = damaged(models / "llama", tmp_path / "differ", lambda weights: weights, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"must be equal, but .*lm_head\.weight.*tie_word_embeddings to false"):
        load_causal_lm(Student(model=folder), role="student")
    head = load_causal_lm(Teacher(model=folder), role="teacher 'x'").get_output_embeddings()
    original = AutoModelForCausalLM.from_pretrained(models / "llama").lm_head.weight
    torch.testing.assert_close(head.weight, original, rtol=0, atol=0)  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(models: Path, tmp_path: Path, value: float) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.embed_tokens.weight"][5, 3] = value
        return weights

    message = refusal(damaged(models / "llama", tmp_path / "spoiled", spoil))
    assert "must be numbers, but 1 of its tensors" in message
    assert "model.embed_tokens.weight; copy or download" in message


def test_a_dtype_in_which_weights_overflow_is_named(models: Path, tmp_path: Path) -> None:
    folder = damaged(models / "llama", tmp_path / "large", lambda weights: weights | {
        "model.norm.weight": torch.full((32,), 1e5)
    })  # fmt: skip
    assert load_causal_lm(Teacher(model=folder, dtype="bfloat16"), role="teacher 'x'")
    with pytest.raises(UserError, match=r"infinity as torch\.float16: model\.norm\.weight; .*float16 overflows"):
        load_causal_lm(Teacher(model=folder, dtype="float16"), role="teacher 'x'")


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(models: Path, tmp_path: Path) -> Path:
    """A model in several files."""
    model = AutoModelForCausalLM.from_pretrained(models / "llama")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def test_a_whole_model_in_several_files_is_loaded(models: Path, shards: Path) -> None:
    loaded = load_causal_lm(Student(model=str(shards)), role="student").state_dict()
    for key, tensor in AutoModelForCausalLM.from_pretrained(models / "llama").state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)


def test_a_weight_that_its_file_lacks_is_named(shards: Path) -> None:
    rewrite(min(shards.glob("*.safetensors")), lambda weights: dict(list(weights.items())[1:]))
    assert "1 of 21 are missing" in refusal(str(shards))


def test_a_file_that_the_index_does_not_name_is_not_loaded(shards: Path) -> None:
    index, last = shards / "model.safetensors.index.json", max(shards.glob("*.safetensors")).name
    content = json.loads(index.read_text())
    content["weight_map"] = {key: file for key, file in content["weight_map"].items() if file != last}
    index.write_text(json.dumps(content))
    assert "are missing" in refusal(str(shards))


def test_a_file_that_does_not_exist_or_is_cut_is_refused(shards: Path) -> None:
    last = max(shards.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-100])
    assert "must be whole" in refusal(str(shards))
    last.unlink()
    assert last.name in refusal(str(shards))


def test_weights_of_torch_are_checked_too(models: Path, tmp_path: Path) -> None:
    folder = Path(damaged(models / "gpt2", tmp_path / "torch", lambda weights: weights))
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    assert "no file named model.safetensors, or pytorch_model.bin" in refusal(str(folder))
    torch.save(state, folder / "pytorch_model.bin")
    assert load_causal_lm(Student(model=str(folder)), role="student")
    torch.save(without("h.1.mlp")(state), folder / "pytorch_model.bin")
    assert "4 of 29 are missing" in refusal(str(folder))
