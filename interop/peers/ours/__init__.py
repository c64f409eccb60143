"""The client of this package."""
