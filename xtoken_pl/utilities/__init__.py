"""Helpers that know nothing of distillation: files, checks, processes, ranges."""
