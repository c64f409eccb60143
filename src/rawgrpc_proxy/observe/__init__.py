"""Looking on: what is told of calls and connections, and to whom. Nothing below the server imports it."""
