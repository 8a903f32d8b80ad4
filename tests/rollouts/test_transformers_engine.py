"""The engine that writes with `generate`: every text is the one that a slow loop writes, whatever is around it."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny_writers import EOS, PROMPTS, letters, requests, slowly_written, tiny_student
from transformers import (
    Gemma3ForCausalLM,
    GenerationConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MambaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3NextForCausalLM,
)

from xtoken_pl import LoRA
from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.sharding import compile_layers
from xtoken_pl.rollouts import Request, Rollout, Sampling, TransformersEngine
from xtoken_pl.utilities.errors import UserError

SAMPLING = Sampling(12, temperature=1.5)


def write(
    student: PreTrainedModel,
    *,
    texts: list[Request] | None = None,
    sampling: Sampling = SAMPLING,
    batch_size: int | None = None,
) -> list[Rollout]:
    return TransformersEngine(batch_size=batch_size).write(texts or requests(PROMPTS), sampling, student, letters())


def ids(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.ids for rollout in rollouts]


STUDENTS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, {}),
    "sliding window": (MistralForCausalLM, {"sliding_window": 4}),
    "sliding and full": (
        Gemma3ForCausalLM,
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "neox": (GPTNeoXForCausalLM, {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
    "mamba": (MambaForCausalLM, {"state_size": 4}),
    "linear and full": (
        Qwen3NextForCausalLM,
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "mlp_only_layers": [0, 1],
            "pad_token_id": 0,
        },
    ),
}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(12, temperature=0), Sampling(5, top_k=3, top_p=0.9)], ids=str)
def test_every_text_is_that_of_a_loop_without_cache_padding_or_other_texts(name: str, sampling: Sampling) -> None:
    model, options = STUDENTS[name]
    student = tiny_student(model, **options)
    expected = [slowly_written(student, request, sampling) for request in requests(PROMPTS)]
    assert len(set(map(len, expected))) > 1 or sampling.temperature == 0  # some end by eos
    assert ids(write(student, sampling=sampling)) == expected
    assert ids(write(student, sampling=sampling, batch_size=2)) == expected
    assert [ids(write(student, texts=[request], sampling=sampling))[0] for request in requests(PROMPTS)] == expected


def test_temperature_zero_is_the_greedy_search_of_transformers() -> None:
    student = tiny_student()
    for request, rollout in zip(requests(PROMPTS), write(student, sampling=Sampling(12, temperature=0)), strict=True):
        student.eval()
        options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": EOS, "suppress_tokens": [3]}
        greedy = student.generate(torch.tensor([request.prompt_ids]), **options, pad_token_id=EOS)
        assert rollout.ids == tuple(greedy[0, len(request.prompt_ids) :].tolist())


def test_each_text_ends_at_its_own_stop_tokens() -> None:
    student = tiny_student()
    stops = [frozenset({1}), frozenset({2, 4}), frozenset(), frozenset({EOS, 1, 2, 4, 5})] * 4
    texts = [Request([1, 4], stop, (0, 0, place, 0)) for place, stop in enumerate(stops)]
    for request, rollout in zip(texts, write(student, texts=texts), strict=True):
        assert rollout.ids == slowly_written(student, request, SAMPLING)
        assert not request.stop_ids & set(rollout.ids[:-1])
        assert (rollout.ended == "stop") == (rollout.ids[-1] in request.stop_ids)
        assert rollout.ended == "stop" or len(rollout.ids) == 12


def passes(student: PreTrainedModel) -> list[tuple[int, ...]]:
    """Shapes of the ids of all forward passes from now on."""
    seen: list[tuple[int, ...]] = []
    student.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


def test_writing_ends_when_all_texts_have() -> None:
    student = tiny_student()
    seen = passes(student)
    assert ids(write(student, texts=requests(PROMPTS, stop_ids=range(6))))
    assert seen == [(9, 7)]


@pytest.mark.parametrize("checkpoints", [False, True])
def test_the_cache_is_used_whatever_the_configuration_says(checkpoints: bool) -> None:
    student = tiny_student()
    student.config.use_cache = False
    if checkpoints:
        student.activation_checkpointing_enable({"use_reentrant": False})
    seen = passes(student)
    texts = requests(PROMPTS, stop_ids=())
    write(student, texts=texts)
    assert seen == [(9, 7)] + [(9, 1)] * 11
    assert not student.config.use_cache


def test_smaller_batches_have_prompts_of_similar_length() -> None:
    student = tiny_student()
    seen = passes(student)
    write(student, texts=requests(PROMPTS, stop_ids=range(6)), batch_size=4)
    assert seen == [(4, 2), (4, 6), (1, 7)]


EVERYTHING = {
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.1,
    "num_beams": 3,
    "num_return_sequences": 2,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [4],
    "bad_words_ids": [[5]],
    "forced_eos_token_id": 2,
    "max_length": 4,
    "min_new_tokens": 12,
    "eos_token_id": [1, 2],
    "use_cache": False,
    "output_scores": True,
    "return_dict_in_generate": True,
    "max_time": 0.0,
    "stop_strings": ["a"],
    "guidance_scale": 3.0,
    "sequence_bias": {(1,): -50.0},
    "exponential_decay_length_penalty": (1, 9.0),
    "prompt_lookup_num_tokens": 2,
    "prefill_chunk_size": 1,
}


def test_the_generation_configuration_of_the_model_has_no_effect() -> None:
    student = tiny_student()
    expected = write(student)
    own = GenerationConfig()
    for name, value in EVERYTHING.items():
        setattr(own, name, value)
    student.generation_config = own
    before = own.to_dict()
    assert write(student) == expected
    assert student.generation_config is own
    assert own.to_dict() == before


@contextmanager
def failing(student: PreTrainedModel) -> Iterator[None]:
    """Raises an error at the third forward pass."""
    count = 0

    def fail(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("out of memory")

    handle = student.base_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        yield
    handle.remove()


def test_the_state_of_the_student_is_restored_also_after_an_error() -> None:
    student = tiny_student(GPTNeoXForCausalLM, hidden_dropout=0.5)
    student.base_model.layers[1].eval()  # on purpose
    student.generation_config = own = GenerationConfig(temperature=0.3, do_sample=True)
    modes = [module.training for module in student.modules()]
    assert len(set(modes)) == 2
    expected = write(student)
    assert [module.training for module in student.modules()] == modes
    with failing(student):
        write(student)
    assert [module.training for module in student.modules()] == modes
    assert student.generation_config is own
    assert write(student) == expected


def test_an_adapted_student_writes_without_dropout() -> None:
    student = tiny_student()
    plain = write(student)
    add_adapter(student, LoRA(rank=2, dropout=0.5))
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    student.train()
    modes = [module.training for module in student.modules()]
    written = write(student)
    assert ids(written) == [slowly_written(student, request, SAMPLING) for request in requests(PROMPTS)]
    assert written != plain
    assert [module.training for module in student.modules()] == modes


def test_no_generator_is_read_or_changed() -> None:
    student = tiny_student(GPTNeoXForCausalLM, hidden_dropout=0.5)
    torch.manual_seed(3)
    expected = write(student)
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    assert write(student) == expected
    torch.testing.assert_close(torch.get_rng_state(), before[0], rtol=0, atol=0)
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]


def test_nothing_is_printed_or_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    student = tiny_student(max_position_embeddings=20)
    student.generation_config = GenerationConfig(do_sample=True, temperature=0.5, max_length=5, eos_token_id=1)
    student.activation_checkpointing_enable({"use_reentrant": False})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(student, texts=requests([[1], [1] * 7], stop_ids=()), sampling=Sampling(13, top_p=0.9))
        write(student, sampling=Sampling(2, temperature=0))
    logger.removeHandler(handler)
    assert not records
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_writing_inside_mixed_precision_leaves_the_gradient_alone() -> None:
    gradients = []
    for writes in (False, True):
        student = tiny_student().float()
        with torch.autocast("cpu", torch.bfloat16):
            if writes:
                write(student)
            student(input_ids=torch.tensor([[1, 2, 4]]), labels=torch.tensor([[1, 2, 4]])).loss.backward()
        gradients.append([weight.grad for weight in student.parameters()])
    for without, with_ in zip(*gradients, strict=True):
        torch.testing.assert_close(with_, without, rtol=0, atol=0)


def test_a_compiled_student_writes_without_being_compiled_again() -> None:
    student = tiny_student()
    expected = write(student)
    compile_layers(student)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert write(student) == expected
    assert not torch._dynamo.utils.counters["stats"]


def test_no_requests_give_no_texts_and_no_empty_prompt_is_accepted() -> None:
    student = tiny_student()
    assert TransformersEngine().write([], SAMPLING, student, letters()) == []
    with pytest.raises(UserError, match="at least one token"):
        write(student, texts=requests([[1], []]))
    with pytest.raises(UserError, match="batch_size must be >= 1, got 0"):
        TransformersEngine(batch_size=0)


@pytest.mark.parametrize("prompt", [(1, 4, 2), [1, 4, 2], np.array([1, 4, 2], dtype=np.int32)], ids=type)
def test_a_prompt_is_any_sequence_of_ids(prompt: Any) -> None:
    student = tiny_student()
    request = Request(prompt, frozenset({EOS}), (5, 6))
    assert ids(write(student, texts=[request])) == [slowly_written(student, request, SAMPLING)]
