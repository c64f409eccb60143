"""Several endpoints that are as good as each other: which of them a call gets, and which are fit for calls."""
