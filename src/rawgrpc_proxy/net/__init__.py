"""Connections and streams on trio: the shell around the sessions of `http2/`."""
