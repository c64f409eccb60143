"""The linter: which end of a link breaks a rule of HTTP/2 or gRPC, told while it talks. See `linter.py`."""
