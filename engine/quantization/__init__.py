"""Makes int8 checkpoints: calibrates on text, chooses a scheme for each layer, writes. Not needed to serve them."""
