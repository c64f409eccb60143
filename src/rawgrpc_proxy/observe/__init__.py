"""Looking on: what is told of calls and connections, and to whom. Whoever tells imports it, from `net/` up."""
