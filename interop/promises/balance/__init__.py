"""Who gets how many calls: the balancing of `rawgrpc-proxy serve` with real backends."""
