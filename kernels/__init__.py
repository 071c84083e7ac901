"""The arithmetic: one folder per operation with its contract, an obvious reference and faster versions beside it.

Knows nothing of requests or models. `kernels.resolve` picks one implementation of all operations, once, at start.
"""
