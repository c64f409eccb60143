"""Memory with peers that do not read, and streams on each upstream connection: `make bounds`."""
