"""Caches of teacher distributions: build one with ``python -m xtoken_pl cache``, then train from it."""
