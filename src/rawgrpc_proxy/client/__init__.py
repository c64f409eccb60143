"""Calls that are made here: a gRPC client on the connections of a pool."""
