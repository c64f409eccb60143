"""Serving: listeners and connections, and each call from its request to its one end."""
