"""Helpers that do not depend on distillation: files, checks, processes, ranges."""
