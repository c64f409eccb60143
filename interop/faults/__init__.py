"""How long it takes until calls go through again: `make faults`."""
