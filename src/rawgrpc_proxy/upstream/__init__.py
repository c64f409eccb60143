"""Connections to upstreams, shared by calls."""
