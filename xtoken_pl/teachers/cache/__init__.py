"""A teacher's distributions, computed once and stored: build with ``python -m xtoken_pl cache``, then train from it."""
