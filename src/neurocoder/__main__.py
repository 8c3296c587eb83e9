"""``python -m neurocoder``: the command line of this interpreter's own installation."""

import sys

from neurocoder.runs.cli import main

if __name__ == "__main__":
    sys.exit(main())
