"""Some rows of a tensor, in an order.

    take_rows(x_TX, rows_R) -> x_RX

rows_R are int64. A captured step (kernels.native.capture) computes these rows alone from there on. T tokens, R rows of
X values.
"""

from kernels.take_rows import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]
