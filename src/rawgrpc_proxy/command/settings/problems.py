"""What settings say that do not fit together."""

from collections.abc import Iterator

Problems = Iterator[tuple[str, str]]
"""The name of a field, and what is wrong with it."""
