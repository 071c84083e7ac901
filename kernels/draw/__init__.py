"""One token for each row of logits: the largest one, or one drawn from the softmax at a temperature.

    draw(logits_RV, temperatures, uniforms) -> tokens       lists of R floats; a list of R ints

Temperature 0 is greedy: the first of the largest. Otherwise the token at which the running sum of softmax(logits /
temperature) first exceeds uniform times its total; uniforms lie in [0, 1). A row with a logit that is not finite gives
-1. A row's token depends on no other row. Cost: O(R * V), a few passes.

Shapes: R rows, V vocab.
"""

from kernels.draw import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]
