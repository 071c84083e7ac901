"""One token for each row of logits: the largest, or a random one from the softmax at a temperature.

    draw(logits_RV, temperatures, uniforms) -> tokens       lists of R floats; a list of R ints

Temperature 0 is greedy: the largest logit, the first of equal ones. Otherwise the result is the first token at which
the running sum of softmax(logits / temperature) exceeds uniform * total; uniforms are in [0, 1). A row with a NaN or an
infinity gives -1. Rows are independent. Cost: O(R * V), a few passes.

Shapes: R rows, V vocab.
"""

from kernels.draw import reference, torch_ops

__all__ = ["reference", "torch_ops"]
