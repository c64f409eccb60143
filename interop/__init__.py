"""The proxy against the world: real gRPC peers, what is promised under load and faults, and what a call costs.

Nothing here is part of the package or of its tests. README.md has the map.
"""
