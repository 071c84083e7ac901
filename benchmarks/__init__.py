"""Load tests and throughput measurements. Results are in RESULTS.md, attempts that did not help in LOG.md."""
