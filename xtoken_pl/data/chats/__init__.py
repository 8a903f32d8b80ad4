"""Conversations: read, rendered by every side's chat template, tokenized and aligned."""
