"""The whole way of the article in one command: data, training, alignment, int8, evaluation."""
