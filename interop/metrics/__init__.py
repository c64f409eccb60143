"""A real Prometheus reads what the proxy counts: it is true, and nothing jumps when processes are replaced."""
