"""The command line, `python -m ts_helpers.run`: it executes the notebooks. What it does is in `ts_helpers.book.run`."""

import signal
import sys
from typing import Any

from ts_helpers.book.run import main


def stop(number: int, frame: Any) -> None:
    """Let SIGTERM end a run as Ctrl-C does."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        print("interrupted: what had finished stays, the rest is as it was", file=sys.stderr)
        sys.exit(128 + (*stopped.args, signal.SIGINT)[0])
