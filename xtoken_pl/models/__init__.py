"""Causal language models: hidden states and head apart."""

from xtoken_pl.models.causal_lm import check_head, hidden_states, load_causal_lm
from xtoken_pl.models.head import Head

__all__ = ["Head", "check_head", "hidden_states", "load_causal_lm"]
