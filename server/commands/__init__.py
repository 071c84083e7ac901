"""The commands of `deepseek-serve` beside serving, one module each with `main(argv) -> exit status`."""
