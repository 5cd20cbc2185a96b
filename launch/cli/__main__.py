"""``python -m hsadml_dist.launch.cli``: the command line without installing it."""

import sys

from hsadml_dist.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
