"""The rows of the table, by what they have in common."""
