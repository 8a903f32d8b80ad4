"""What every loss must do; a subclass parametrizes it with cases of :mod:`loss_cases`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from loss_cases import LossCase, LossRows, Size
from places import Place, alone_in_groups
from torch import Tensor

SIZES: tuple[Size, ...] = ("many", "one")


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


def weights(rows: LossRows) -> Tensor:
    """A weight for every span, so that its gradient cannot be mistaken for another's."""
    return torch.linspace(0.5, 1.5, len(rows.spans), dtype=torch.float64)


def scored(case: LossCase, rows: LossRows, student: Tensor, **other: Any) -> tuple[Tensor, Tensor]:
    """The loss of every span, and the gradient of their weighted sum."""
    leaf = student.detach().clone().requires_grad_()
    losses = case.loss(rows.block(leaf, **other)).loss
    (gradient,) = torch.autograd.grad((weights(rows) * losses).sum(), leaf)
    return losses.detach(), gradient


def evaluated(case: LossCase, rows: LossRows, **options: Any) -> tuple[Tensor, Tensor]:
    """The same by the whole path of a training step."""
    leaf = rows.student.clone().requires_grad_()
    losses = rows.evaluate(case.loss, leaf, **options).spans["t"].loss
    (gradient,) = torch.autograd.grad((weights(rows) * losses).sum(), leaf)
    return losses.detach(), gradient


class LossTester:
    """Runs a loss through its properties: values, gradients, precisions, masks, blocks, temperature, edges."""

    @pytest.fixture(autouse=True)
    def training(self, case: LossCase) -> Iterator[None]:
        yield
        case.loss.train()

    @pytest.mark.parametrize("size", SIZES)
    def test_equals_the_slow_reference(self, case: LossCase, size: Size) -> None:
        # A text has dozens of rows, and the same places and spans under every seed.
        for seed in range(1 if case.is_of_text else 3):
            rows = case.rows(size, seed)
            losses, gradient = scored(case, rows, rows.student)
            leaf = rows.student.clone().requires_grad_()
            slow = case.slow(rows, leaf)
            assert len(losses) == len(rows.spans) > 0
            close(losses, slow.detach())
            if slow.requires_grad:
                (expected,) = torch.autograd.grad((weights(rows) * slow).sum(), leaf)
                assert expected.abs().max() > 1e-3
                close(gradient, expected)

    @pytest.mark.parametrize("size", SIZES)
    def test_gradient_is_that_of_finite_differences(self, case: LossCase, size: Size) -> None:
        rows = case.rows(size)
        student = rows.student.clone().requires_grad_()
        is_large = student.numel() > 1000
        assert torch.autograd.gradcheck(lambda x: case.loss(rows.block(x)).loss, student, fast_mode=is_large)

    def test_single_precision_is_close_to_double(self, case: LossCase) -> None:
        rows = case.rows()
        double, gradient = scored(case, rows, rows.student)
        single, single_gradient = scored(case, rows, rows.student.float(), teacher=rows.teacher.float())
        assert single.dtype == torch.float32
        close(single, double, 1e-5)
        close(single_gradient, gradient, 1e-4)

    def test_bf16_logits_lose_no_more_than_their_own_rounding(self, case: LossCase) -> None:
        """The loss is in single precision; the gradient is rounded once, when it reaches the logits."""
        rows = case.rows()
        student, teacher = rows.student.bfloat16(), rows.teacher.bfloat16()
        ours, gradient = scored(case, rows, student, teacher=teacher)
        assert (ours.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
        exact, expected = scored(case, rows, student.double(), teacher=teacher.double())
        close(ours, exact, 1e-5)
        epsilon = torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(gradient.double(), expected, rtol=epsilon, atol=1e-4)

    def test_rows_of_no_span_are_not_read(self, case: LossCase) -> None:
        rows = case.rows()
        masked = rows.spans.student_span == len(rows.spans)
        assert masked.any()
        losses, gradient = scored(case, rows, rows.student)
        other = rows.student.clone()
        other[masked] = other[masked].flip(-1) - 7
        close(scored(case, rows, other)[0], losses, 1e-12)
        assert not gradient[masked].any()
        assert gradient[rows.spans.student_first].abs().amax(-1).max() > 1e-3

    def test_blocks_and_padded_heads_change_nothing(self, case: LossCase) -> None:
        rows = case.rows()
        expected = scored(case, rows, rows.student)
        pieces = rows.cuts.blocks(1, 1)
        assert len(pieces) > 2
        for memory in (1.0, 20.0 * rows.student.shape[1] * 8, 1e9):
            losses, gradient = evaluated(case, rows, memory=memory, num_padded=3)
            close(losses, expected[0])
            close(gradient, expected[1])

    @pytest.mark.parametrize("temperature", [0.5, 3.0])
    def test_temperature_divides_the_logits_and_its_square_is_a_factor(
        self, case: LossCase, temperature: float
    ) -> None:
        rows = case.rows()
        losses, gradient = evaluated(case, rows, temperature=temperature)
        warm, of_warm = scored(case, rows, rows.student / temperature, teacher=rows.teacher / temperature)
        close(losses, temperature**2 * warm)
        close(gradient, temperature * of_warm)

    def test_no_span_gives_no_loss_and_a_gradient_of_zero(self, case: LossCase) -> None:
        rows = case.rows("none")
        student = rows.student.clone().requires_grad_()
        scores = case.loss(rows.block(student))
        assert scores.loss.shape == scores.unmapped_mass.shape == (0,)
        scores.loss.sum().backward()
        assert torch.equal(cast(Tensor, student.grad), torch.zeros_like(student))

    @pytest.mark.slow  # all cases together
    def test_shares_of_the_rows_add_up_to_all_of_them(self, case: LossCase, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the processes of a tensor-parallel group score them; only one of these three has the span."""
        rows = case.rows("one")
        expected = evaluated(case, rows)
        alone_in_groups(monkeypatch)
        shares = [evaluated(case, rows, group=Place(rank, 3)) for rank in range(3)]
        for place, whole in enumerate(expected):
            close(torch.stack([share[place] for share in shares]).sum(0), whole)
        assert sum(bool(gradient.any()) for _, gradient in shares) == 1

    def test_loss_is_not_negative_unless_it_says_so(self, case: LossCase) -> None:
        for seed in range(3 if case.is_of_text else 20):
            rows = case.rows(seed=seed)
            if not case.loss.can_be_negative:
                assert (case.loss(rows.block()).loss >= -1e-12).all()

    def test_unmapped_mass_is_a_share(self, case: LossCase) -> None:
        rows = case.rows()
        mass = case.loss(rows.block(rows.student.clone().requires_grad_())).unmapped_mass
        assert mass.shape == (len(rows.spans),)
        assert not mass.requires_grad
        assert ((mass >= 0) & (mass <= 1 + 1e-12)).all()

    def test_agreement_is_reported_in_evaluation_only(self, case: LossCase) -> None:
        rows = case.rows()
        assert case.loss.train()(rows.block()).agreement is None
        agreement = case.loss.eval()(rows.block()).agreement
        assert set(agreement.tolist()) <= {0.0, 1.0}
        assert agreement.shape == (len(rows.spans),)

    def test_a_probability_that_underflows_gives_a_finite_loss_and_gradient(self, case: LossCase) -> None:
        rows = case.rows()
        losses, gradient = scored(case, rows, 200 * rows.student.float(), teacher=rows.teacher.float())
        assert losses.isfinite().all()
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("gap", [80.0, 87.0, 200.0])
    def test_a_certain_student_gives_a_finite_gradient_under_a_gradient_scaler(
        self, case: LossCase, gap: float
    ) -> None:
        """All of its mass on one token (that W has no place for), the others far below, or underflowed."""
        rows = case.rows()
        student = torch.zeros_like(rows.student, dtype=torch.float32)
        student[:, -1] = gap
        losses, gradient = scored(case, rows, student.requires_grad_(), teacher=rows.teacher.float())
        assert losses.isfinite().all()
        assert (65536 * gradient).isfinite().all()
