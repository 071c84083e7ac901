"""The model family: configurations by DeepSeek's names, decoders with their parts as siblings."""
