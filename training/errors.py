"""The error of training, beside those of engine.errors; training.cli prints its text and ends with status 2."""

from engine.errors import DeepseekServeError


class TrainingError(DeepseekServeError):
    """Training cannot start or go on; the text says what is at fault (a file, a setting, a rank) and what is valid."""
