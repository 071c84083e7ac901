"""The arithmetic: one folder per operation with its contract, an obvious reference and faster versions beside it.

Knows nothing of requests or models. `kernels.table.resolve` picks one version of each operation, once, at start.
"""
