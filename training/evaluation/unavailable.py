"""The error of what an evaluation needs and this machine has not: its benchmark is not measured, the others are."""

from training.errors import TrainingError


class UnavailableError(TrainingError):
    """Data, a package or a feature of the kernel is missing; the text says which, and what belongs where."""
