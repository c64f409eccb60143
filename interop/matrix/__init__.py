"""Every client to every server, directly and through the proxy: an application must not see a difference."""
