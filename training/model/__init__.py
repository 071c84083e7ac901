"""DynamicMoE as torch modules with the names of the checkpoint, its losses, and its files."""
