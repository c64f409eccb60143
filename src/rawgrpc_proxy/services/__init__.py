"""What the proxy serves itself, beside the calls it forwards."""
