"""Ways to run the server beyond one process: containers, Kubernetes, Ray."""
