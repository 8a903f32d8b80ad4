"""Scales the distillation loss to the magnitude of the cross-entropy."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.callbacks.shared import distill_module
from xtoken_pl.losses import SpanLoss
from xtoken_pl.training.module import KDScale
from xtoken_pl.utilities.errors import UserError


class DynamicLossScaling(pl.Callback):
    r"""Gives the distillation loss the same magnitude as the cross-entropy at every step.

    .. math:: L = \mathrm{sg}(L_{CE} / L_{KD}) \, L_{KD} + L_{CE}

    where sg is the stop-gradient. Both losses are means over the whole optimizer step and all processes, so that every
    process uses the same factor. Without the callback the module's fixed ``kd_weight`` applies. If the distillation
    loss of a step is zero (no span, or both sides agree) or negative by rounding, the factor is 0.

    With ``accumulate_grad_batches`` the losses of the whole step are known only at its last batch. For the batches
    before, the tokens not yet seen are expected to have the mean losses of the step before, which checkpoints store;
    in the first step they are expected to have those of the batches so far. Both losses themselves stay exact, as does
    the logged factor, which is that of the whole step. On the quickstart, the gradient of 32 windows in 4 or 32 batches
    deviates by 0.4 and 0.5 % (medians; at most 1.0 %) from that of the unsplit step, for which the formula is exact.

    On-policy steps (``model.rollouts``) have no cross-entropy: their distillation loss is not scaled, and the factors
    of the other steps do not depend on them.

    Raises:
        UserError: Before training, if the module's fixed weights are not 1, a teacher's loss can be negative, or all
            steps are on-policy.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, dynamic scaling.
    """

    def __init__(self) -> None:
        self._before: KDScale | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.check_module(pl_module)
        module = distill_module(pl_module, self)
        self._before = module.kd_scale
        module.kd_scale = self.scale

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Checks that the module's losses can be scaled. The command line calls this before it reads any data."""
        module = distill_module(pl_module, self)
        if module.ce_weight != 1.0 or module.kd_weight != 1.0:
            raise UserError(
                "DynamicLossScaling and fixed weights exclude each other, got "
                f"ce_weight={module.ce_weight} and kd_weight={module.kd_weight}; remove the callback, or the weights"
            )
        if module.rollouts is not None and not module.rollouts.learns_data:
            raise UserError(
                "DynamicLossScaling scales to the cross-entropy, and with model.rollouts.share=1 no step has one; "
                "remove the callback, or lower the share"
            )
        for name, teacher in module.teachers.items():
            if isinstance(teacher.loss, SpanLoss) and teacher.loss.can_be_negative:
                raise UserError(
                    f"DynamicLossScaling divides by the distillation loss, but that of teacher {name!r} can be "
                    f"negative ({type(teacher.loss).__name__}: {teacher.loss.extra_repr()}); choose other "
                    "options (for HybridKL and GOLD uld_weight >= kl_weight), or remove the callback and set kd_weight"
                )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._before is not None:
            distill_module(pl_module, self).kd_scale = self._before
            self._before = None

    @staticmethod
    def scale(ce: Tensor, kd: Tensor) -> Tensor:
        """Returns the scalar :math:`L_{CE} / L_{KD}`, detached; 0 if the distillation loss is zero."""
        is_zero = kd <= torch.finfo(kd.dtype).tiny
        return torch.where(is_zero, 0.0, ce / kd.masked_fill(is_zero, 1.0)).detach()
