"""Sources of a teacher's rows: local weights or a cache."""
