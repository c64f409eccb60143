"""The command line: what `rawgrpc-proxy` does on a terminal, and the processes it runs."""
