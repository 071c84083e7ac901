"""Load tests and throughput measurements. Results: RESULTS.md; what did not help: LOG.md."""
