"""Learning a new task without losing the old one."""
