"""Several endpoints as one: who is in rotation, and who gets a call."""
