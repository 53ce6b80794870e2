"""How far a loop is, on a terminal and in a log; nothing of what is counted."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import TextIO, TypeVar

from tqdm import tqdm

from ts_helpers._check import instance

Item = TypeVar("Item")


ENOUGH = 5, 0.5  # steps and seconds of a rehearsal


def progress(items: Iterable[Item], name: str, total: int, first: int = 0, long: int = 0) -> Iterator[Item]:
    """Pass on steps, total with the first done before, behind a bar; in a log, a line every half minute, if so long.

    Where ``long`` of them are as long as the first, and the others alike, a rehearsal passes on a few alone: if
    ``$TS_REHEARSE`` names a file, the seconds that the rest would take are added to it.
    """
    instance(Integral, "a whole number", total=total, first=first)
    if long and (file := os.environ.get("TS_REHEARSE")):
        yield from _rehearsed(items, total - first, long, file)
        return
    terminal = sys.stderr.isatty()
    shortest, longest, delay = (0.5, 1, 0) if terminal else (30, 60, 30)
    yield from tqdm(
        items, name, total=total, initial=first, unit="step", ascii=True, leave=not terminal,
        file=sys.stderr if terminal else _Lines(sys.stderr), mininterval=shortest, maxinterval=longest, delay=delay,
    )  # fmt: skip


def _rehearsed(items: Iterable[Item], total: int, long: int, file: str) -> Iterator[Item]:
    took, start = list[float](), time.perf_counter()
    for item in items:
        yield item
        took.append(time.perf_counter() - start - sum(took))
        if len(took) > ENOUGH[0] and sum(took) > ENOUGH[1]:
            break
    usual = sorted(took[1:] or took)[len(took[1:]) // 2]
    with open(file, "a") as told:
        told.write(f"{usual * (total - long) + max(took[0], usual) * long - sum(took)}\n")


class _Lines:
    """A stream on which every state of the bar becomes a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream, self.flush = stream, stream.flush

    def write(self, text: str) -> None:
        """Write a line, without what a terminal would need to overwrite the last one."""
        if text.strip():
            self.stream.write(text.strip("\r\n ") + "\n")
