"""Plans the GPU memory that a run needs, without weights, tokenizers or a GPU."""
