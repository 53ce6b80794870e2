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


ENOUGH, NEAR = (5, 0.5), 5.0  # steps and seconds of a rehearsal; seconds that it may go on for


def progress(items: Iterable[Item], name: str, total: int, first: int = 0, long: int = 0) -> Iterator[Item]:
    """Pass on steps and show a bar; in a log, a line every half minute. Of ``total``, ``first`` were done before.

    A rehearsal, where ``$TS_REHEARSE`` names a file, passes on a few steps only and adds the seconds that the others
    would take to the file; ``long`` of the steps take as long as the first, the others one like another.
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
    took, start, every, usual = list[float](), time.perf_counter(), max(1, round(total / max(long - 1, 1))), 0.0
    for item in items:
        yield item
        took.append(time.perf_counter() - start - sum(took))
        usual = sorted(took[1:] or took)[len(took[1:]) // 2]
        # the first is long for other reasons, too: the next long one tells, if it is near
        if len(took) > max(ENOUGH[0], every if every * usual < NEAR else 0) and sum(took) > ENOUGH[1]:
            break
    if took:
        more = max(took[every] if len(took) > every else took[0], usual) - usual
        rest = usual * (total - len(took)) + more * (long - len(took[::every]))
        with open(file, "a") as told:
            told.write(f"{rest}\n")


class _Lines:
    """A stream on which every state of the bar becomes a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream, self.flush = stream, stream.flush

    def write(self, text: str) -> None:
        """Write a line, without what a terminal would need to overwrite the last one."""
        if text.strip():
            self.stream.write(text.strip("\r\n ") + "\n")
