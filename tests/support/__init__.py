"""Helpers that several packages of tests share: tiny checkpoints, edits of them, engines run to the end, processes."""
