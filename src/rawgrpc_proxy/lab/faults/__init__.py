"""Faults on purpose, on one connection: who breaks what, where, and how."""
