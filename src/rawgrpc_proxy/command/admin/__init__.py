"""What `serve` tells those who run it, and does for them, over HTTP: `serve_admin` in `site.py`.

It knows neither workers nor sockets to them: all it asks is a `Source` (`source.py`).
"""
