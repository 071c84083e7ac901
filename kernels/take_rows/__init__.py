"""Gather rows of a matrix.

    take_rows(x_NX, rows_R) -> y_RX        y[r] = x[rows[r]]; rows int64

A captured step (kernels.native.capture) computes what follows for these rows alone.

Shapes: N rows of X values, R wanted rows.
"""

from kernels.take_rows import reference

__all__ = ["reference"]
