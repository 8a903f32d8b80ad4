"""Causal language models, split into hidden states and head."""

from xtoken_pl.models.causal_lm import LoadedModel, hidden_states, load_model
from xtoken_pl.models.head import Head
from xtoken_pl.models.loading import load_causal_lm

__all__ = ["Head", "LoadedModel", "hidden_states", "load_causal_lm", "load_model"]
