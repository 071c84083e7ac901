"""Batching, KV cache, models, sampling. Takes token ids and gives token ids; knows nothing of HTTP or text."""
