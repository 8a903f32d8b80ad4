"""Small controlled experiments that compare the losses."""
