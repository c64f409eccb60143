"""Calls that go on while the proxy is reloaded, upgraded, and loses workers."""
