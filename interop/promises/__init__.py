"""What the README promises, measured on real processes: bounds of memory, long runs at full load, faults."""
