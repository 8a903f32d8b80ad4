"""Computes, without a GPU, the least time that every part of a training step needs on one."""
