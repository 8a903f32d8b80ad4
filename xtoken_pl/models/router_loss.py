"""The load balancing loss of a mixture of experts, as the model's own class in transformers defines it."""

from __future__ import annotations

import sys
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import body_of, relative_tolerance
from xtoken_pl.utilities.errors import UserError

# B sequences, T tokens, E experts

_FUNCTION = "load_balancing_loss_func"


class RouterLoss:
    """Balances how many tokens a student's experts get.

    .. math::
        L = \\gamma E \\sum_e f_e p_e

    f_e is the number of times that a token is routed to expert e, and p_e the router's mean probability of e, both over
    the tokens of a batch in all layers and per token; padding does not count. Only p has a gradient. L is least if
    all experts get the same number of tokens. Source: Switch Transformer (arXiv 2101.03961, equations 4 to 6).

    While a model in training mode runs with gradients, the logits of its routers are kept until they are read.

    Args:
        model: The student, before it is sharded.
        coefficient: Factor γ; config.json has what the model was trained with as ``router_aux_loss_coef``.

    Raises:
        UserError: If the model has no load balancing loss in transformers, or reports another one on a short input.
    """

    def __init__(self, model: PreTrainedModel, coefficient: float) -> None:
        _check(model)
        self.coefficient = coefficient
        self._model = model
        self._logits: tuple[Tensor, ...] = ()  # [B T, E] of each layer
        body = body_of(model)
        body.register_forward_pre_hook(self._ask, with_kwargs=True)
        body.register_forward_hook(self._keep)

    def read(self, attention_mask: Tensor) -> Tensor:
        """Computes the loss of the last forward pass, and forgets its logits.

        Args:
            attention_mask: ``[B, T]``, 1 for tokens, 0 for padding.
        """
        logits, self._logits = self._logits, ()
        return self.coefficient * _balance(self._model, logits, attention_mask)

    def _ask(self, body: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (arguments, {**options, "output_router_logits": True}) if _learns(body) else None

    def _keep(self, body: nn.Module, arguments: Any, output: Any) -> None:
        if _learns(body):
            self._logits = output.router_logits


def _learns(body: nn.Module) -> bool:
    return body.training and torch.is_grad_enabled()


def _has_balance(model: PreTrainedModel) -> bool:
    function = getattr(sys.modules[type(model).__module__], _FUNCTION, None)
    # Doge's experts are pairs of keys: its function is another one.
    return function is not None and hasattr(model, "num_experts_per_tok") and len(signature(function).parameters) == 4


def _balance(model: Any, logits: tuple[Tensor, ...], attention_mask: Tensor) -> Tensor:
    function = getattr(sys.modules[type(model).__module__], _FUNCTION)
    return cast(Tensor, function(logits, model.num_experts, model.num_experts_per_tok, attention_mask))


@torch.no_grad()
def _check(model: PreTrainedModel) -> None:
    """Checks on a short input that the loss is the one that the model itself reports."""
    way_out = "leave out student.router_aux_loss_coef"
    ids = torch.arange(8, device=model.device).view(2, 4) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    mask[1, 3] = 0
    options = {"attention_mask": mask, "output_router_logits": True, "use_cache": False, "return_dict": True}
    logits = body_of(model)(input_ids=ids, **options).router_logits if _has_balance(model) else None
    if not logits:  # a configuration of such a class may have no experts
        raise UserError(
            "router_aux_loss_coef is for mixtures of experts whose class in transformers has a load balancing loss, "
            f"but the student's ({type(model).__name__}) has none; {way_out}"
        )
    expected = model(input_ids=ids, **options).aux_loss
    ours = _balance(model, logits, mask)
    if not float((ours - expected).abs()) <= relative_tolerance(model.dtype) * float(expected):
        raise UserError(
            f"the student's load balancing loss must be the one that its model reports, but for {type(model).__name__} "
            f"it is {float(ours):.4g} in place of {float(expected):.4g}; {way_out}"
        )
