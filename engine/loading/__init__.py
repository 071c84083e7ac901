"""From a model's name to its tensors: finding, fetching, reading. Never runs a checkpoint's code."""
