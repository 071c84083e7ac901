"""How good a served model is: public benchmarks and latency, through its HTTP API."""
