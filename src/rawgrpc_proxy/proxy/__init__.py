"""Passing calls on: whom the director chooses, and one call between its two streams."""
