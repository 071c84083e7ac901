"""What a batch is trained for: each objective makes a loss of a model and a batch."""
