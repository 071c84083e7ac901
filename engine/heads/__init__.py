"""What becomes of a model's hidden states: a head for each task. The ModelRunner asks them and knows none by name."""
