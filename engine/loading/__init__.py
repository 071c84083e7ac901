"""From a model's name to its tensors: finding, fetching, reading. No code of a checkpoint is ever run."""
