"""What a call through the proxy costs, beside other proxies: README.md tells what is measured and how."""
