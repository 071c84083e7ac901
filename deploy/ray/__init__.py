"""Engine replicas on Ray Serve behind one API; docs/ray.md says how to run them."""
