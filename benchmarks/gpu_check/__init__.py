"""Checks and measures the package on a GPU: ``python -m benchmarks.gpu_check``; in miniature where there is none."""
