"""Attacks by one client, each beside probes: `make attack`. `bodies` and `connections` have them, `run` measures."""
