"""Sources: local files and data sets, read row by row."""
