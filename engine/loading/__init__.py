"""From a model's name to its tensors: finding it, fetching it, reading GGUF and safetensors. Never runs a checkpoint's code."""
