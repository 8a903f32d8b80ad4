"""A teacher that reads tokens which the text does not have, from the cached states of the text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from xtoken_pl.batch import TokenBatch
from xtoken_pl.models.causal_lm import body_of, hidden_states, relative_tolerance
from xtoken_pl.models.head import Head
from xtoken_pl.scoring.tasks import HiddenRows
from xtoken_pl.utilities.errors import UserError

# B sequences, T tokens, M appended tokens of a sequence, A all tokens appended so far, K of them, H hidden size


class CachedBranches:
    """Reads tokens behind any rows of a batch, one pass for all that are appended at a time.

    The tokens that are appended to a sequence lie side by side: each has the position behind its predecessor, and a
    mask under which it sees the text up to there, the appended tokens before it on its own branch, and itself.

    Args:
        model: The teacher's model.
        head: Its head.
        tokens: The batch.
        temperature: Temperature of the log-probabilities.
        running: Context in which the model may run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        tokens: TokenBatch,
        temperature: float = 1.0,
        running: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.head, self.tokens, self.temperature, self.running = model, head, tokens, temperature, running
        self.labels, self.vocabulary_size = tokens.labels, head.vocabulary_size
        # Without the configuration all layers keep all states, also those that attend to a window.
        self.cache = DynamicCache()
        #: ``[B, T, H]`` hidden states of the batch.
        self.states = self._run(tokens.input_ids, attention_mask=tokens.attention_mask)
        self.hidden = self.states.flatten(0, 1).index_select(0, tokens.rows)  # [Q + A, H]
        num_sequences, length = tokens.input_ids.shape
        self.sequence, self.position = tokens.rows // length, tokens.rows % length  # [Q + A]
        self.key_position = torch.arange(length, device=tokens.rows.device).expand(num_sequences, -1)  # [B, keys]
        self.num_seen = self.position + 1  # [Q + A] tokens of the text
        # The appended keys that a row sees: only appended rows see any.
        self.sees = torch.zeros(len(tokens.rows), 0, dtype=torch.bool, device=tokens.rows.device)  # [Q + A, keys - T]

    @torch.no_grad()
    def _run(self, input_ids: Tensor, **arguments: Any) -> Tensor:
        with self.running():
            body, cache = body_of(self.model), {"past_key_values": self.cache, "use_cache": True}
            output = body(input_ids=input_ids, return_dict=True, **cache, **arguments)
        return cast(Tensor, output.last_hidden_state)

    def append(self, behind: Tensor, tokens: Tensor) -> Tensor:
        """Reads one token behind each of some rows, ``[K], [K] -> [K]``: numbers of the rows that follow them."""
        sequence, position = self.sequence[behind], self.position[behind] + 1
        place, width = _places(sequence, len(self.tokens.input_ids))  # [K], M
        ids = tokens.new_zeros(len(self.tokens.input_ids), width)
        ids[sequence, place] = tokens
        positions = torch.zeros_like(ids)
        positions[sequence, place] = position
        itself = torch.zeros(len(tokens), width, dtype=torch.bool, device=tokens.device)
        itself[torch.arange(len(tokens), device=tokens.device), place] = True
        sees = torch.cat((self.sees[behind], itself), 1)  # [K, appended keys]
        self.key_position = torch.cat((self.key_position, positions), 1)
        visible = torch.zeros(*ids.shape, self.key_position.shape[1], dtype=torch.bool, device=ids.device)
        visible[..., 0] = True  # for padding, which has to see something
        num_seen = self.num_seen[behind]
        of_text = torch.arange(self.tokens.input_ids.shape[1], device=ids.device) < num_seen[:, None]
        visible[sequence, place] = torch.cat((of_text, sees), 1)
        states = self._run(ids, attention_mask=self._masks(visible, positions), position_ids=positions)
        first = len(self.hidden)
        self.hidden = torch.cat((self.hidden, states[sequence, place]))
        self.sequence, self.position = torch.cat((self.sequence, sequence)), torch.cat((self.position, position))
        self.num_seen = torch.cat((self.num_seen, num_seen))
        self.sees = torch.cat((F.pad(self.sees, (0, width)), sees))
        return torch.arange(first, len(self.hidden), device=tokens.device)

    @property
    def rows(self) -> HiddenRows:
        """Rows of the batch."""
        return HiddenRows(self.hidden[: len(self.labels)], self.labels, self.head)

    def log_probs(self, rows: Tensor) -> Tensor:
        """``[K] -> [K, V_t]`` log-probabilities of rows."""
        return self.head.log_probs(self.hidden[rows], self.temperature)

    def _masks(self, visible: Tensor, positions: Tensor) -> Any:
        """The mask as the model takes it: one, or one for each kind of its layers."""
        config = self.model.config.get_text_config(decoder=True)
        window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
        full = _additive(visible, self.model.dtype)
        if window is None:
            return full
        near = positions[..., None] - self.key_position[:, None] < window
        sliding = _additive(visible & near, self.model.dtype)
        if not kinds:
            return sliding
        return {kind: sliding if kind == "sliding_attention" else full for kind in kinds}


def _places(sequence: Tensor, num_sequences: int) -> tuple[Tensor, int]:
    """Numbers tokens within their sequences, ``[K] -> [K]``; and the largest number of a sequence."""
    order = sequence.argsort(stable=True)
    counts = torch.bincount(sequence, minlength=num_sequences)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(sequence)
    place[order] = torch.arange(len(sequence), device=sequence.device) - first[sequence[order]]
    return place, int(counts.max())


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, M, keys] -> [B, 1, M, keys]``: 0 for what is seen, the lowest number for the rest."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def check_branches(model: PreTrainedModel, head: Head, *, name: str) -> None:
    """Checks on a short input that tokens behind cached states get the states that they have in a text of their own.

    Args:
        model: The teacher's model.
        head: Its head.
        name: Name of the teacher.

    Raises:
        UserError: If the model cannot read from a cache under a mask of its own, or the states differ.
    """
    device = head.layer.weight.device
    ids = torch.arange(8, device=device).view(2, 4) * 7 % head.vocabulary_size
    tokens = TokenBatch(ids, torch.ones_like(ids), torch.tensor([1, 2, 6], device=device), ids.flatten()[[2, 3, 7]])
    more = [torch.tensor(row, device=device) % head.vocabulary_size for row in ([5, 11, 3], [2, 9])]
    way_out = "leave out lookahead"
    try:
        branches = CachedBranches(model, head, tokens)
        first = branches.append(torch.tensor([0, 1, 2], device=device), more[0])
        second = branches.append(first[:2], more[1])
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"with lookahead a teacher must read tokens behind cached states, and the model of teacher {name!r} "
            f"({type(model).__name__}, attention {model.config._attn_implementation}) does not; {way_out}. "
            f"Reason: {error}"
        ) from error
    texts = [[*ids[0, :2], more[0][0], more[1][0]], [*ids[0, :3], more[0][1], more[1][1]], [*ids[1, :3], more[0][2]]]
    found = [*branches.hidden[second], branches.hidden[first[2]]]
    alone = []
    for text in texts:
        row = torch.stack(text)[None]
        alone.append(hidden_states(model, row, torch.ones_like(row))[0, -1])
    expected = torch.stack(alone)
    difference = ((torch.stack(found) - expected).abs().max() / expected.abs().max()).item()
    bound = relative_tolerance(model.dtype)
    if not difference <= bound:
        raise UserError(
            f"with lookahead tokens behind cached states must have the states of a text of their own, but those of "
            f"teacher {name!r} ({type(model).__name__}, attention {model.config._attn_implementation}) differ by "
            f"{difference:.4g} of the largest (allowed {bound:.2g}); {way_out}, or set its attn_implementation to sdpa "
            "or eager"
        )
