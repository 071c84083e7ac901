"""Bits of a weight in checkpoints of 4 bits, scales included. Imports no torch."""

from dataclasses import dataclass

FEW = 4.5  # of a layer in 4 bits: 32 weights share a scale of 16 bits
MANY = {8: 8.5, 16: 16.0}  # of a layer that would lose too much
SMALL = 1_000_000_000  # weights; smaller models lose more by 4 bits
AVERAGE, AVERAGE_OF_SMALL = 4.75, 6.5


@dataclass(frozen=True)
class Bits:
    """How many bits there are for weights.

    Attributes:
        average: over all layers, scales included; None: by the number of weights.
        wide: what the layers get that lose most by 4 bits, and lm_head: 8, or 16, which is as they are.
    """

    average: float | None = None
    wide: int = 8

    def wide_share(self, num_weights: int) -> float:
        """The share of so many weights that can be wide."""
        average = self.average
        if average is None:
            average = AVERAGE_OF_SMALL if num_weights < SMALL else AVERAGE
        return (average - FEW) / (MANY[self.wide] - FEW)
