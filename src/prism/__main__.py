"""`python -m prism`: the same as the `prism` command."""

import sys

from prism.cli import main

if __name__ == "__main__":
    sys.exit(main())
