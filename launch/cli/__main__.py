"""Run the command line without installing it: ``python -m hsadml_dist.launch.cli``."""

import sys

from hsadml_dist.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
