"""What the package costs, as ratios measured in the same run. ``python -m benchmarks`` prints the whole table."""
