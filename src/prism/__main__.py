"""`python -m prism`: the same as the `prism` command."""

import sys

from prism import stopping

if __name__ == "__main__":
    stopping.listen()  # before the imports, which take their time
    from prism.cli import main

    sys.exit(main())
