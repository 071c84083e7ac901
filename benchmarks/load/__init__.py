"""A load client for any OpenAI-compatible server; benchmarks.serve and benchmarks.compare are its commands."""
