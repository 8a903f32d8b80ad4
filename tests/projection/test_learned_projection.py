"""Learned weights of W: they stay stochastic on their support, learn, and are saved and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from fake_vocabularies import V_S, V_T, bound, random_projection
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, block_of, random_rows
from torch import Tensor
from torch.utils.data import DataLoader

from xtoken_pl import (
    GOLD,
    ULD,
    HybridKL,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    Projection,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.callbacks import ProjectionExport
from xtoken_pl.data import Windower, collate
from xtoken_pl.projection import LearnedProjection
from xtoken_pl.utilities.errors import UserError


def learning() -> ProjectionKL:
    loss = cast(ProjectionKL, bound(ProjectionKL(), random_projection()))
    loss.learn_projection()
    return loss


def learned_of(loss: ProjectionKL) -> LearnedProjection:
    assert loss.learned is not None
    return loss.learned


def test_learned_projection_starts_at_w() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    block = block_of(student, teacher, LABELS, SPANS)
    fixed = bound(ProjectionKL(), random_projection())(block).loss
    torch.testing.assert_close(learning()(block).loss, fixed, rtol=1e-6, atol=1e-7)
    exported = learned_of(learning()).to_projection()
    torch.testing.assert_close(exported.weights, random_projection().weights, rtol=0, atol=1e-6)


def test_rows_stay_stochastic_on_their_support_whatever_is_learned() -> None:
    learned = learned_of(learning())
    with torch.no_grad():
        learned.logits.copy_(5 * torch.randn(learned.logits.shape, generator=torch.Generator().manual_seed(0)))
    start, exported = random_projection(), learned.to_projection()
    assert torch.equal(exported.indices, start.indices)
    assert torch.equal(exported.weights > 0, start.weights > 0)
    torch.testing.assert_close(exported.weights.sum(1), (start.weights.sum(1) > 0).float(), rtol=0, atol=1e-6)
    single = (start.weights > 0).sum(1) == 1
    assert torch.equal(exported.weights[single], start.weights[single])
    assert not torch.allclose(exported.weights, start.weights, atol=0.05)


def test_a_weight_that_underflows_stays_in_the_support() -> None:
    learned = learned_of(learning())
    with torch.no_grad():
        learned.logits[:, 0] += 200.0
    exported = learned.to_projection()
    assert torch.equal(exported.weights > 0, random_projection().weights > 0)
    again = bound(ProjectionKL(), exported)
    cast(ProjectionKL, again).learn_projection()


def test_gradient_of_the_logits_passes_gradcheck() -> None:
    loss = learning().double()
    learned = learned_of(loss)
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    block = block_of(student, teacher, LABELS, SPANS)
    learned.logits = torch.nn.Parameter(learned.logits.detach().double())
    learned.base = learned.base.double()

    def value(logits: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"learned.logits": logits}, (block,)).loss

    assert torch.autograd.gradcheck(value, learned.logits)


def test_learning_w_lowers_the_loss() -> None:
    loss = learning()
    block = block_of(random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2), LABELS, SPANS)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    values = []
    for _ in range(50):
        optimizer.zero_grad()
        value = loss(block).loss.sum()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.1


def test_w_without_a_row_of_several_tokens_is_refused() -> None:
    loss = bound(
        ProjectionKL(), Projection(torch.zeros(V_S, 1).long(), torch.ones(V_S, 1), torch.ones(V_S) > 0, 1, "", "")
    )
    with pytest.raises(ValueError, match="must have rows of several teacher tokens, got none"):
        cast(ProjectionKL, loss).learn_projection()


# In the module --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "student": write_model(root / "student", packing_tokenizer(), seed=1),
        "split": write_model(root / "split", splitting_tokenizer(), seed=2),
    }


MakeModule = Callable[..., MultiTeacherDistillModule]


@pytest.fixture
def make(folders: dict[str, str]) -> MakeModule:
    def make(*, learn: bool = True, **options: Any) -> MultiTeacherDistillModule:
        teacher = Teacher(model=folders["split"], loss=ProjectionKL(), learn_projection=learn, **options)
        recipe = OptimizerRecipe(learning_rate=1e-4, warmup_fraction=0.0, projection_learning_rate=0.05)
        return MultiTeacherDistillModule(Student(model=folders["student"]), {"split": teacher}, optimizer=recipe)

    return make


def loader(module: MultiTeacherDistillModule) -> DataLoader[Any]:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([TEXTS[0][:400]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(4)]
    return DataLoader(cast(Any, rows), batch_size=2, collate_fn=lambda part: collate(part, ["split"]))


def fit(module: MultiTeacherDistillModule, folder: Path, **options: Any) -> pl.Trainer:
    options = {"max_steps": 4, "callbacks": []} | options
    checkpoint = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1e-6,
        **options,
    )
    trainer.fit(module, loader(module), ckpt_path=checkpoint)
    return trainer


def test_learned_w_has_its_own_learning_rate_no_decay_and_no_clipping(tmp_path: Path, make: MakeModule) -> None:
    module = make()
    trainer = fit(module, tmp_path, max_steps=1)
    groups = trainer.optimizers[0].param_groups
    assert [group["initial_lr"] for group in groups] == [1e-4, 1e-4, 0.05]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    learned = learned_of(cast(ProjectionKL, module.losses["split"]))
    assert [id(p) for p in groups[2]["params"]] == [id(learned.logits)]
    assert len({id(p) for group in groups for p in group["params"]}) == len(list(module.parameters()))
    # The student's gradient was clipped to a norm of 1e-6, that of W was left as it was.
    student_norm = torch.stack([p.grad.norm() for p in module.student.parameters() if p.grad is not None]).norm()
    assert float(student_norm) == pytest.approx(1e-6, rel=1e-3)
    assert learned.logits.grad is not None
    assert float(learned.logits.grad.norm()) > 1e-4


def test_learned_w_moves_and_is_in_the_checkpoint(tmp_path: Path, make: MakeModule) -> None:
    module = make()
    trainer = fit(module, tmp_path)
    start = build_projection(packing_tokenizer(), splitting_tokenizer())
    now = module.learned_projections()["split"]
    assert (now.weights - start.weights).abs().max() > 0.01
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    others = {key for key in state if not key.startswith("student.")}
    assert others == {f"losses.split.learned.{part}" for part in ("logits", "rows", "support")}

    resumed = make()
    fit(resumed, tmp_path, max_steps=4, ckpt_path=tmp_path / "run.ckpt")
    torch.testing.assert_close(resumed.learned_projections()["split"].weights, now.weights, rtol=0, atol=0)


def test_training_can_start_from_an_exported_w(tmp_path: Path, make: MakeModule) -> None:
    module = make()
    fit(module, tmp_path, callbacks=[ProjectionExport(str(tmp_path / "w"))])
    path = tmp_path / "w/split.safetensors"
    exported = Projection.load(path)
    torch.testing.assert_close(exported.weights, module.learned_projections()["split"].weights, rtol=0, atol=0)
    further = make(projection=str(path))
    further.setup("fit")
    torch.testing.assert_close(further.learned_projections()["split"].weights, exported.weights, rtol=0, atol=1e-6)


def test_fixed_w_has_no_parameters(tmp_path: Path, make: MakeModule) -> None:
    module = make(learn=False)
    trainer = fit(module, tmp_path, max_steps=1)
    assert module.learned_projections() == {}
    assert len(trainer.optimizers[0].param_groups) == 2
    assert not list(module.losses.parameters())


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [HybridKL(), GOLD(), ULD(), TokenKL()], ids=lambda loss: type(loss).__name__)
def test_learning_w_under_a_loss_that_gives_it_no_gradient_is_refused(loss: SpanLoss) -> None:
    with pytest.raises(ValueError, match=f"{type(loss).__name__} gives them none.* or use ProjectionKL"):
        Teacher(model="x", loss=loss, learn_projection=True)


def test_learning_w_under_a_loss_that_auto_chose_is_refused(folders: dict[str, str]) -> None:
    teacher = Teacher(model=folders["student"], loss="auto", learn_projection=True)
    module = MultiTeacherDistillModule(Student(model=folders["student"]), {"itself": teacher})
    with pytest.raises(ValueError, match="TokenKL gives them none"):
        module.setup("fit")


def test_exporting_without_a_learned_w_warns(tmp_path: Path, make: MakeModule) -> None:
    with pytest.warns(UserWarning, match="ProjectionExport will write nothing"):
        fit(make(learn=False), tmp_path, callbacks=[ProjectionExport(str(tmp_path / "w"))])
    assert not (tmp_path / "w").exists()


def test_export_does_not_overwrite_by_default(tmp_path: Path, make: MakeModule) -> None:
    (tmp_path / "split.safetensors").write_text("precious")
    with pytest.raises(UserError, match=r"split\.safetensors exists and is not overwritten"):
        fit(make(), tmp_path, callbacks=[ProjectionExport(str(tmp_path))])
    assert (tmp_path / "split.safetensors").read_text() == "precious"
