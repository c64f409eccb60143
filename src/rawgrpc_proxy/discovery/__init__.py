"""Where the addresses of a cluster come from."""
