"""Training steps on what the student writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from module_steps import batch_for, step_of
from torch import Tensor
from written_steps import ScriptedEngine, prompt_of, prompts_batch, tiny_tokenizer, write_double, written_step

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TokenKL
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import whole_steps
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.processes import DataShare

LETTERS = tiny_tokenizer("abcdefgh")
PAIRS = tiny_tokenizer("hgfedcba", ("a", "b"), ("c", "d"))
END = LETTERS.eos_token_id
TEXTS = [(0, 1, END), (2, 3, 0, 0), (END,)]

MakeWriter = Callable[..., MultiTeacherDistillModule]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, tokenizer) in enumerate({"student": LETTERS, "same": LETTERS, "pairs": PAIRS}.items()):
        write_double(folder / name, tokenizer, seed=seed)
    return folder


@pytest.fixture
def make(folder: Path) -> MakeWriter:
    def make(
        *names: str, loss: Any = None, share: float = 1.0, temperature: float = 1.0, **options: Any
    ) -> MultiTeacherDistillModule:
        teachers = {
            name: Teacher(
                model=str(folder / name),
                dtype="float64",
                temperature=temperature,
                loss=loss or (TokenKL() if name == "same" else ProjectionKL()),
            )
            for name in names or ("same", "pairs")
        }
        sampling = {key: options.pop(key) for key in ("max_new_tokens", "num_samples", "seed") if key in options}
        rollouts = Rollouts(share=share, **{"max_new_tokens": 8, "seed": 0, **sampling})
        student = Student(model=str(folder / "student"), dtype="float64")
        module = MultiTeacherDistillModule(student, teachers, rollouts=rollouts, **options)
        module.setup("fit")
        module.configure_model()
        return module.train()

    return make


def gradients(module: MultiTeacherDistillModule) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.student.parameters() if parameter.grad is not None]


def log_probs(model: Any, prompt: list[int], ids: list[int]) -> Tensor:
    return model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def test_reverse_token_kl_is_the_on_policy_loss_of_gkd(make: MakeWriter) -> None:
    """The mean over all generated tokens of KL(student || teacher), in texts that the student has sampled."""
    module = make("same", loss=TokenKL(divergence="reverse"), num_samples=3)
    prompts = [prompt_of(module, text) for text in ("ab", "c", "hgfed")]
    step = step_of(module, prompts_batch(module, [prompts[0], None, *prompts[1:]]))
    step["loss"].backward()
    found = gradients(module)

    written = module.written
    assert written is not None
    assert [prompt.ids[""] for prompt in written.prompts] == [p.ids[""] for p in prompts for _ in range(3)]
    assert len({len(rollout.ids) for rollout in written.rollouts}) > 1  # padding
    assert {rollout.ended for rollout in written.rollouts} == {"stop", "length"}
    module.zero_grad()
    losses: list[Tensor] = []
    for prompt, rollout in zip(written.prompts, written.rollouts, strict=True):
        student = log_probs(module.student, prompt.ids[""], list(rollout.ids))
        with torch.no_grad():
            teacher = log_probs(module.loaded_teachers["same"].model, prompt.ids[""], list(rollout.ids))
        for ours, theirs in zip(student, teacher, strict=True):
            losses.append(sum(p * (p.log() - q.log()) for p, q in zip(ours.exp(), theirs.exp(), strict=True)))
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(step["total"], expected.detach(), rtol=0, atol=1e-10)
    for ours, theirs in zip(found, gradients(module), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_likelihoods_are_per_byte_of_the_spans_and_of_the_own_text(make: MakeWriter) -> None:
    """At temperature 1, whatever the losses compare."""
    module = make("same", "pairs", temperature=2.0)
    step = written_step(module, TEXTS, [prompt_of(module, "ab")] * 3)
    sides: dict[str, Any] = {"": (LETTERS, module.student), "same": (LETTERS, module.loaded_teachers["same"].model)}
    sides["pairs"] = PAIRS, module.loaded_teachers["pairs"].model
    found = {"": step["student_nats_per_byte"], **step["teacher_nats_per_byte"]}
    for name, (tokenizer, model) in sides.items():
        nats, num_bytes = 0.0, 0
        for text in ("ab", "cdaa"):
            ids = tokenizer.encode(text)
            with torch.no_grad():
                rows = log_probs(model, tokenizer.encode("ab"), ids)
            nats -= float(rows.gather(1, torch.tensor(ids)[:, None]).sum())
            num_bytes += len(text)
        assert float(found[name]) == pytest.approx(nats / num_bytes, abs=1e-12)


def test_an_on_policy_step_learns_from_teachers_alone_at_the_fixed_weight(make: MakeWriter) -> None:
    module = make(ce_weight=3.0, kd_weight=0.5)
    module.kd_scale = lambda ce, kd: pytest.fail("the scale needs a cross-entropy")  # type: ignore[assignment]
    step = written_step(module, TEXTS, [prompt_of(module, "ab")] * 3)
    assert step["is_rollout"]
    assert step["kd_scale"] == 0.5
    torch.testing.assert_close(step["total"], 0.5 * step["kd"])
    torch.testing.assert_close(step["loss"].detach(), step["total"])


def test_batches_of_a_step_share_its_counts_and_its_places(make: MakeWriter) -> None:
    whole, cut = make(num_samples=2), make(num_samples=2)
    prompts = [prompt_of(whole, text) for text in ("ab", "c", "hgfed", "a")]
    rows = [prompts[0], None, prompts[1], None, None, *prompts[2:]]
    expected = step_of(whole, prompts_batch(whole, rows))
    expected["loss"].backward()
    batches = [prompts_batch(cut, rows[begin:end]) for begin, end in ((0, 3), (3, 5), (5, 7))]
    for batch in whole_steps(batches, [3]):
        step = step_of(cut, batch)
        step["loss"].backward()
    assert cut.written is not None
    assert cut.written.rollouts == whole.written.rollouts  # type: ignore[union-attr]
    assert cut.written.prompts == whole.written.prompts  # type: ignore[union-attr]
    del step["loss"], expected["loss"]
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients(cut), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_draws_depend_on_the_seed_the_step_the_place_and_the_sample(make: MakeWriter) -> None:
    module = make("same", num_samples=2, seed=7)
    prompt = prompt_of(module, "ab")
    written_step(module, [(0, END)] * 4, [prompt, None, prompt])
    engine = module.rollouts.engine  # type: ignore[union-attr]
    assert isinstance(engine, ScriptedEngine)
    assert [request.seed for request in engine.requests] == [(7, 0, 0, 0), (7, 0, 0, 1), (7, 0, 2, 0), (7, 0, 2, 1)]
    assert all(request.stop_ids == {END} for request in engine.requests)
    assert all(list(request.prompt_ids) == prompt.ids[""] for request in engine.requests)


def test_draws_differ_between_steps_and_processes(make: MakeWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("same", seed=7)
    prompts = [prompt_of(module, "ab")] * 2
    monkeypatch.setattr(MultiTeacherDistillModule, "global_step", 5)
    monkeypatch.setattr("xtoken_pl.training.on_policy.data_share", lambda _: DataShare(rank=1, number=3))
    assert [request.seed for _, _, request in module._requests([prompts, prompts])] == [
        (7, 5, place, 0) for place in (1, 4, 7, 10)
    ]


def test_a_step_without_a_prompt_or_a_span_learns_nothing_and_says_so(make: MakeWriter) -> None:
    module = make("pairs")
    none = r"an on-policy step has no span in common with teacher 'pairs'"
    for prompts in ([None, None], [prompt_of(module, "a")]):
        prompt = prompts[0]
        if prompt is not None:
            del prompt.ids["pairs"]  # of a source that it does not teach on
        with pytest.warns(UserWarning, match=none):
            step = written_step(module, [TEXTS[0]] * (prompt is not None), prompts)
        assert step["loss"] == step["kd"] == 0
        found = [parameter.grad for parameter in module.student.parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in found)  # DDP waits for all of them


def test_data_of_a_foreign_loader_must_have_prompts(make: MakeWriter) -> None:
    module = make()
    with pytest.raises(
        UserError, match=r"writes from prompts, and the batches of an on-policy step have none; use Dis"
    ):
        step_of(module, batch_for(module, 2))


def test_an_engine_that_loses_a_text_is_named(make: MakeWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("same")
    monkeypatch.setattr(ScriptedEngine, "write", lambda *_: [])
    with pytest.raises(UserError, match=r"one rollout for each request, but ScriptedEngine.write returned 0 for 1"):
        written_step(module, TEXTS[:1], [prompt_of(module, "ab")])


def test_weights_that_are_nan_write_nothing(make: MakeWriter) -> None:
    module = make("same")
    module._finite.note(0, {"student's gradient": torch.tensor(torch.nan)})
    with pytest.raises(UserError, match=r"the student's gradient was not at step 0"):
        written_step(module, TEXTS[:1], [prompt_of(module, "ab")])
    engine = module.rollouts.engine  # type: ignore[union-attr]
    assert isinstance(engine, ScriptedEngine)
    assert not engine.requests


@pytest.mark.parametrize("is_scaled", [False, True])
def test_it_is_said_what_the_losses_of_both_kinds_of_steps_are(
    make: MakeWriter, caplog: pytest.LogCaptureFixture, is_scaled: bool
) -> None:
    module = make("same", share=0.25, ce_weight=1.0, kd_weight=1.0 if is_scaled else 0.5)
    if is_scaled:
        module.kd_scale = DynamicLossScaling.scale
    caplog.clear()
    module.setup("fit")
    weight, scale = ("1", "DynamicLossScaling.scale") if is_scaled else ("0.5", "0.5")
    assert (
        f"in a share of 0.25 of the optimizer steps the student learns its own text, at {weight} KD without CE; in the "
        f"others it learns the data, at 1 CE + {scale} KD"
    ) in caplog.text


def test_the_time_of_writing_is_taken_around_the_engine(make: MakeWriter) -> None:
    module, seen = make("same"), list[str]()

    @contextmanager
    def around() -> Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    module.around_writing = around
    written_step(module, TEXTS[:1], [prompt_of(module, "ab")])
    assert seen == ["in", "out"]


def test_a_share_of_zero_is_a_run_without_rollouts(make: MakeWriter) -> None:
    module, plain = make("same", share=0), make("same", share=0)
    plain.rollouts = None
    assert module.rollouts is None
    assert "rollouts" in module.run_identity.settings
    assert module.run_identity == plain.run_identity
    assert not module.is_on_policy_step
    assert make("same", share=0.5).run_identity.settings["rollouts"].startswith("share=0.5, warm_up_steps=0, ")


def test_kinds_of_spans_are_weighted_in_an_on_policy_step(make: MakeWriter) -> None:
    """The student writes ``ab``, which the teacher packs; ``ef``, which both spell out; and the stop token."""
    texts, module, plain = [(0, 1, 4, 5, END)], make("pairs"), make("pairs")
    module.teachers["pairs"].spans = {"many_to_one": 0, "one_to_one": 0.25}
    step = written_step(module, texts, [prompt_of(module, "c")])
    written_step(plain, texts, [prompt_of(plain, "c")])
    batch = plain._written_batches[0]
    spans, loss = batch.teachers["pairs"].spans, plain.score(batch).spans["pairs"].loss
    is_one = spans.student_length == 1
    assert 0 < is_one.sum() < len(spans)
    torch.testing.assert_close(step["kd"], loss[is_one].mean().detach(), rtol=1e-12, atol=0)
