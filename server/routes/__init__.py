"""The HTTP routes, one file a concern: what comes in, what goes out."""
