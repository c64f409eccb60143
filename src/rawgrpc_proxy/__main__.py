"""`python -m rawgrpc_proxy`: the command line, where no script is installed."""

import sys

from rawgrpc_proxy.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
