"""Measures the memory of a model's passes by replaying them on fake tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.integrations import hub_kernels

from xtoken_pl.models.causal_lm import body_of, states_of_body
from xtoken_pl.models.router_loss import balance_of
from xtoken_pl.plan.ledger import Held, Ledger
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.utilities.errors import UserError

# B windows, T tokens of each, H hidden size

_WITH_LOGITS = {"output_router_logits": True}
#: Arguments by which models take their cache; Mamba's come second.
_CACHES = ("past_key_values", "cache_params")


@dataclass(frozen=True)
class Footprint:
    """Memory of the passes of one batch.

    Attributes:
        forward: Peak of the forward pass.
        in_step: After the forward pass, the hidden states ``[B * T, H]`` included.
        router_loss: Peak of the load balancing loss of a mixture of experts; zero without it.
        until_backward: After leaving autocast.
        backward: Peak of the backward pass, including weight gradients that are not yet accumulated; zero for a model
            that is not trained.
    """

    forward: Held
    in_step: Held
    router_loss: Held
    until_backward: Held
    backward: Held


@dataclass(frozen=True)
class WritingFootprint:
    r"""Memory of writing a batch of texts behind their prompts, without that of drawing tokens.

    A layer that attends to all positions caches a key and a value for each of them,
    :math:`2 \cdot B T H_{kv} D \cdot \text{itemsize}` bytes for :math:`H_{kv}` heads of size D; one with a sliding
    window of W tokens holds :math:`\min(T, W)` positions.

    Attributes:
        prompts: Peak of the pass over the prompts, with the cache that it fills.
        cache: Cache of whole texts.
        last_token: Peak of the pass over the last token in addition to the cache.
    """

    prompts: Held
    cache: int
    last_token: Held


@lru_cache(maxsize=64)
def replay(
    skeleton: Skeleton,
    batch_size: int,
    length: int,
    *,
    autocast: torch.dtype | None,
    trains: bool,
    activation_checkpointing: bool = False,
    balances_experts: bool = False,
) -> Footprint:
    """Replays a model's forward pass and, if it is trained, its backward pass, and counts the bytes alive; cached.

    Nothing is computed: the operations are those of training (with attention masks, as for batches with padding), but
    the tensors only have shapes. Kernels are those of the CPU, without the workspaces that only a CPU has; scans are
    those that transformers has itself, for which packages with kernels need less.

    Args:
        skeleton: The model.
        batch_size: B.
        length: T.
        autocast: Autocast dtype, or None without autocast.
        trains: Whether a backward pass follows.
        activation_checkpointing: Checkpoint the activations of every layer.
        balances_experts: Whether the load balancing loss of a mixture of experts is added, for which the logits of its
            routers are kept.

    Raises:
        UserError: If the model has an operation that depends on values, or no load balancing loss.
    """
    model: Any = skeleton.model
    model.train(trains).requires_grad_(False)
    for parameter in skeleton.trained:
        parameter.requires_grad_(trains)
    if activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        with (
            _replaying(skeleton) as ledger,
            torch.set_grad_enabled(trains),
            _router_logits(model, balances_experts) as logits,
        ):
            with _autocast(autocast):
                input_ids = torch.zeros(batch_size, length, dtype=torch.long)
                mask = torch.ones_like(input_ids)
                states = states_of_body(model, input_ids, mask)  # [B, T, H]
                roots = [states.flatten(0, 1).index_select(0, torch.arange(batch_size * length))]
                del states
                in_step, forward, routed = ledger.held(), ledger.peak, Held(0, 0)
                if balances_experts:
                    ledger.peak = in_step
                    roots.append(balance_of(model)(logits.pop(), mask))
                    routed = ledger.peak
            until_backward = ledger.held()
            backward = _backward(skeleton, roots, ledger) if trains else Held(0, 0)
            return Footprint(forward, in_step, routed, until_backward, backward)
    finally:
        if activation_checkpointing:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()  # left behind


@lru_cache(maxsize=64)
def replay_writing(
    skeleton: Skeleton, batch_size: int, prompt_length: int, length: int, *, autocast: torch.dtype | None
) -> WritingFootprint:
    """Replays what a student does to write texts: one pass over all prompts, and one over the last token; cached.

    Args:
        skeleton: The student.
        batch_size: Number of texts that are written at a time.
        prompt_length: Number of tokens of a prompt.
        length: Number of tokens of a prompt and of the text behind it, at least 3.
        autocast: Autocast dtype, or None without autocast.

    Raises:
        UserError: If the model has an operation that depends on values.
    """
    skeleton.model.eval()
    for parameter in skeleton.trained:
        parameter.requires_grad_(True)  # autocast keeps copies of these alone
    with _replaying(skeleton) as ledger, torch.no_grad(), _autocast(autocast):
        _read(skeleton.model, batch_size, prompt_length, cache=None)
        prompts = ledger.peak
        cache = _read(skeleton.model, batch_size, length - 2, cache=None)
        # A sliding window holds the whole prompt until the token behind it.
        cache = _read(skeleton.model, batch_size, 1, cache, num_before=length - 2)
        ledger.peak = ledger.held()
        _read(skeleton.model, batch_size, 1, cache, num_before=length - 1)
        num_bytes = ledger.held().activations
        last_token = Held(ledger.peak.activations - num_bytes, ledger.peak.weight_copies)
        return WritingFootprint(prompts, num_bytes, last_token)


def _read(model: Any, batch_size: int, length: int, cache: Any, *, num_before: int = 0) -> Any:
    """Runs a model over tokens as ``generate`` does, and returns the cache; None if the model's layers hold it."""
    input_ids = torch.zeros(batch_size, length, dtype=torch.long)
    options: dict[str, Any] = {"attention_mask": torch.ones(batch_size, num_before + length, dtype=torch.long)}
    known = inspect.signature(model.forward).parameters
    if "position_ids" in known:  # of every text by itself, since the prompts are padded
        options["position_ids"] = torch.zeros_like(input_ids)
    if "logits_to_keep" in known:
        options["logits_to_keep"] = 1
    name = next((name for name in _CACHES if name in known), None)
    if name is not None:
        options[name] = cache
    output = model(input_ids=input_ids, use_cache=True, return_dict=True, **options)
    return None if name is None else getattr(output, name, None)


@contextmanager
def _replaying(skeleton: Skeleton) -> Iterator[Ledger]:
    """Counts the memory of the operations inside, which only have shapes."""
    try:
        with _plain_pytorch(), skeleton.mode, Ledger(skeleton.model) as ledger:
            yield ledger
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # of the model's own code
        raise UserError(
            f"{type(skeleton.model).__name__} cannot be planned: its operations must not depend on values or another "
            "device (as a loop over the experts that have tokens does), since a plan has neither. Plan another "
            f"architecture of its size. Reason: {error}"
        ) from error


@contextmanager
def _plain_pytorch() -> Iterator[None]:
    """Makes transformers run its own scans where packages with GPU kernels for them are installed (fla, mamba_ssm)."""
    before = hub_kernels.is_torchdynamo_exporting
    hub_kernels.is_torchdynamo_exporting = lambda: True
    try:
        yield
    finally:
        hub_kernels.is_torchdynamo_exporting = before


def _autocast(dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


@contextmanager
def _router_logits(model: Any, is_asked: bool) -> Iterator[list[tuple[Tensor, ...]]]:
    """Keeps the logits of a model's routers, as :class:`xtoken_pl.models.router_loss.RouterLoss` does."""
    logits: list[tuple[Tensor, ...]] = []
    if not is_asked:
        yield logits
        return
    balance_of(model)  # raises if the model has no load balancing loss
    body = body_of(model)
    hooks = [
        body.register_forward_pre_hook(lambda _, args, given: (args, given | _WITH_LOGITS), with_kwargs=True),
        body.register_forward_hook(lambda _, __, output: logits.append(output.router_logits)),
    ]
    try:
        yield logits
    finally:
        for hook in hooks:
            hook.remove()


def _backward(skeleton: Skeleton, roots: list[Tensor], ledger: Ledger) -> Held:
    hooks = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in skeleton.trained]
    ledger.peak, ledger.is_in_backward = ledger.held(), True
    torch.autograd.backward(roots, [torch.zeros_like(root) for root in roots])
    for hook in hooks:
        hook.remove()
    return ledger.peak


def _drop_gradient(parameter: Tensor) -> None:
    """Drops an accumulated gradient, which is counted elsewhere."""
    parameter.grad = None
