"""Makes checkpoints in 8 or 4 bits: calibrates on text, chooses for each layer, writes. Not needed to serve them."""
