"""The load balancing loss of a mixture of experts, as the model's own class in transformers defines it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import body_of, relative_tolerance
from xtoken_pl.utilities.errors import UserError

# B sequences, T tokens, E experts

#: Loss of the logits ``[B T, E]`` of each layer, under a mask ``[B, T]``.
Balance = Callable[[tuple[Tensor, ...], Tensor], Tensor]

_FUNCTION = "load_balancing_loss_func"
_WAY_OUT = "leave out student.router_aux_loss_coef"


class RouterLoss:
    """Balances how many tokens a student's experts get.

    .. math::
        L = \\gamma E \\sum_e f_e p_e

    f_e is the number of times that a token is routed to expert e, and p_e the router's mean probability of e, both over
    the tokens of a batch in all layers and per token; padding does not count. Only p has a gradient. L is least if
    all experts get the same number of tokens. Source: Switch Transformer (arXiv 2101.03961, equations 4 to 6).

    While a model in training mode runs with gradients, the logits of its routers are kept until they are taken.

    Args:
        model: The student, before it is sharded.
        coefficient: Factor γ; config.json has what the model was trained with as ``router_aux_loss_coef``.

    Raises:
        UserError: If the model has no load balancing loss in transformers, or reports another one on a short input.
    """

    def __init__(self, model: PreTrainedModel, coefficient: float) -> None:
        self.coefficient = coefficient
        self._balance = balance_of(model)
        self._num_layers = _check(model, self._balance)
        self._logits: tuple[Tensor, ...] = ()  # [B T, E] of each layer
        body = body_of(model)
        body.register_forward_pre_hook(self._ask, with_kwargs=True)
        body.register_forward_hook(self._keep)

    def take(self, attention_mask: Tensor) -> Tensor:
        """Computes the loss of the last forward pass, and forgets its logits.

        Args:
            attention_mask: ``[B, T]``, 1 for tokens, 0 for padding.

        Raises:
            UserError: If routers did not report their logits, which would change the loss.
        """
        logits, self._logits = self._logits, ()
        if len(logits) != self._num_layers:
            raise UserError(
                f"with router_aux_loss_coef every router of the student must report its logits, but "
                f"{len(logits)} of {self._num_layers} did; {_WAY_OUT}, or student.compile if it is on"
            )
        return self.coefficient * self._balance(logits, attention_mask)

    def _ask(self, body: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (arguments, {**options, "output_router_logits": True}) if _learns(body) else None

    def _keep(self, body: nn.Module, arguments: Any, output: Any) -> None:
        if _learns(body):
            self._logits = output.router_logits


def _learns(body: nn.Module) -> bool:
    return body.training and torch.is_grad_enabled()


def balance_of(model: Any) -> Balance:
    """Returns the load balancing loss of the model's class in transformers.

    Raises:
        UserError: If it has none.
    """
    function = getattr(sys.modules[type(model).__module__], _FUNCTION, None)
    # Doge's experts are pairs of keys: its function has an argument more.
    if function is None or not hasattr(model, "num_experts_per_tok") or len(signature(function).parameters) != 4:
        raise _no_such_loss(model)
    num_experts, top_k = model.num_experts, model.num_experts_per_tok
    return lambda logits, attention_mask: cast(Tensor, function(logits, num_experts, top_k, attention_mask))


@torch.no_grad()
def _check(model: PreTrainedModel, balance: Balance) -> int:
    """Checks on a short input that the loss is the one that the model itself reports; returns the number of routers."""
    ids = torch.arange(8, device=model.device).view(2, 4) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    mask[1, 3] = 0
    options = {"attention_mask": mask, "output_router_logits": True, "use_cache": False, "return_dict": True}
    logits = body_of(model)(input_ids=ids, **options).router_logits
    if not logits:  # a configuration of such a class may have no experts
        raise _no_such_loss(model)
    expected = model(input_ids=ids, **options).aux_loss
    ours = balance(logits, mask)
    if not float((ours - expected).abs()) <= relative_tolerance(model.dtype) * float(expected):
        raise UserError(
            f"the student's load balancing loss must be the one that its model reports, but for {type(model).__name__} "
            f"it is {float(ours):.4g} in place of {float(expected):.4g}; {_WAY_OUT}"
        )
    return len(logits)


def _no_such_loss(model: PreTrainedModel) -> UserError:
    return UserError(
        "router_aux_loss_coef is for mixtures of experts whose class in transformers has a load balancing loss, but "
        f"the student's ({type(model).__name__}) has none; {_WAY_OUT}"
    )
