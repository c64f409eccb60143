"""What more than one of the other folders needs: child processes, /proc, ports, progress, etcd."""
