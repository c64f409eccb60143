"""What the benchmark compares; catalogue.py lists it."""
