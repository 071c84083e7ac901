"""Tensor, pipeline and data parallelism, applied to a model from outside it."""
