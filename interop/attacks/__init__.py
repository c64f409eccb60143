"""Attacks on the proxy, each with its promised bound: `make attacks`."""
