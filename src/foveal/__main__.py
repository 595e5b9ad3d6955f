"""`python -m foveal`: the command line, as `torchrun -m foveal` starts it."""

import sys

from foveal.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
