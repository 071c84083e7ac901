"""HTTP around the APIs: connections, bodies, keys, streams, errors, logs of access, and the end of serving."""
