"""Whole training runs of this package and of other packages on the same job: ``python -m benchmarks.peers``."""
