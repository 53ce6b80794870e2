"""The command line, `python -m ts_helpers.run`: it executes the notebooks. What it does is in `ts_helpers.book.run`."""

import sys

from ts_helpers.book.run import main

if __name__ == "__main__":
    sys.exit(main())
