"""How far a loop is, on a terminal and in a log; nothing of what is counted."""

import sys
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import TextIO, TypeVar

from tqdm import tqdm

from ts_helpers._check import instance

Item = TypeVar("Item")


def progress(items: Iterable[Item], name: str, total: int, first: int = 0) -> Iterator[Item]:
    """Pass on steps, total with the first done before, behind a bar; in a log, a line every half minute, if so long."""
    instance(Integral, "a whole number", total=total, first=first)
    terminal = sys.stderr.isatty()
    shortest, longest, delay = (0.5, 1, 0) if terminal else (30, 60, 30)
    yield from tqdm(
        items, name, total=total, initial=first, unit="step", ascii=True, leave=not terminal,
        file=sys.stderr if terminal else _Lines(sys.stderr), mininterval=shortest, maxinterval=longest, delay=delay,
    )  # fmt: skip


class _Lines:
    """A stream on which every state of the bar becomes a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream, self.flush = stream, stream.flush

    def write(self, text: str) -> None:
        """Write a line, without what a terminal would need to overwrite the last one."""
        if text.strip():
            self.stream.write(text.strip("\r\n ") + "\n")
