"""A progress bar that is also readable in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], name: str, total: int, first: int = 0, unit: str = "epoch") -> Iterator[Item]:
    """Pass items on, and show how far it is and how long it still takes.

    On a terminal it is a bar. Elsewhere, in a log or a notebook, every half minute it is a line, and for what takes
    less than that, nothing.

    Args:
        items: what is counted.
        name: stands before the bar.
        total: items there are, those done before included.
        first: items done before.
        unit: what an item is.
    """
    terminal = sys.stderr.isatty()
    yield from tqdm(
        items,
        name,
        total=total,
        initial=first,
        unit=unit,
        ascii=True,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.5 if terminal else 30,
        maxinterval=1 if terminal else 60,
        delay=0 if terminal else 30,
        leave=not terminal,
    )


def announce(what: str, seconds: float) -> None:
    """Say beforehand how long something will take, where that is more than a minute."""
    if seconds > 60:
        minutes = round(seconds / 60)
        print(f"{what}: {f'{minutes} min' if minutes < 120 else f'{minutes / 60:.0f} h'}", file=sys.stderr)


class _Lines:
    """A stream on which every state of the bar becomes a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        """Write a line, without what a terminal would need to overwrite the last one."""
        if text.strip():
            self.stream.write(text.strip("\r\n ") + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()
