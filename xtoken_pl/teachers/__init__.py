"""Where a teacher's rows come from: local weights or a cache."""
