"""Hidden states -> scores and gradients, block by block, within a memory budget."""
