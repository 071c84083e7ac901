"""The model family: configurations with DeepSeek's names, one decoder, and its parts."""
