"""What the laboratory promises, measured."""
