"""Making int8 checkpoints: calibrate on text, choose a scheme for each layer, write. Serving them needs none of it."""
