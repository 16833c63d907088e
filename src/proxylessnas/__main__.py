"""`python -m proxylessnas`."""

import sys

from proxylessnas.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
