"""The commands of the laboratory, and what `serve` has of it."""
