"""Everything that goes wrong with TLS between two peers, on either side of the proxy."""
