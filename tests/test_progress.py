import io
from types import SimpleNamespace

import pytest

import ts_helpers.progress as module
from ts_helpers.progress import announce, progress


class Stream(io.StringIO):
    """A stream that is a terminal, or is not."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def stderr(monkeypatch, terminal):
    stream = Stream(terminal)
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))  # pytest has its hands on the true one
    return stream


@pytest.fixture
def log(monkeypatch):
    return stderr(monkeypatch, terminal=False)


def test_items_are_passed_on_in_order(log):
    assert list(progress("abc", "letters", 3)) == ["a", "b", "c"]


def test_short_loop_leaves_nothing_in_a_log(log):
    for _ in progress(range(1000), "train", 1000):
        pass
    assert log.getvalue() == ""


def test_long_loop_leaves_whole_lines_in_a_log(log, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.tqdm, "__init__", _with_clock(module.tqdm.__init__, lambda: clock[0]))
    for _ in progress(range(20, 100), "train", 100, first=20):
        clock[0] += 10
    lines = log.getvalue().splitlines()
    assert log.getvalue().endswith("\n")
    assert len(lines) == 27  # one every 30 s of 800, and the end
    for line in lines:
        assert line.startswith("train: ")
        assert "/100" in line
        assert not set("\r\x1b") & set(line)
    assert "100/100" in lines[-1]


def _with_clock(init, clock):
    """tqdm, which takes the time from an attribute it sets at its start, with another clock."""

    def changed(self, *words, **options):
        init(self, *words, **options)
        self._time = clock
        self.start_t = self.last_print_t = clock()

    return changed


def test_terminal_shows_a_bar_that_goes_when_done(monkeypatch):
    stream = stderr(monkeypatch, terminal=True)
    for _ in progress(range(3), "train", 3):
        pass
    assert "\rtrain:   0%|" in stream.getvalue()
    assert stream.getvalue().endswith("\r")
    assert "\n" not in stream.getvalue()


def test_loop_that_is_left_early_ends_its_bar(monkeypatch):
    stream = stderr(monkeypatch, terminal=True)
    for item in progress(range(10), "train", 10):
        if item == 3:
            break
    assert stream.getvalue().endswith("\r")


@pytest.mark.parametrize(
    ("seconds", "said"), [(59, ""), (61, "all: 1 min\n"), (1830, "all: 30 min\n"), (3 * 3600, "all: 3 h\n")]
)
def test_only_what_takes_more_than_a_minute_is_announced(log, seconds, said):
    announce("all", seconds)
    assert log.getvalue() == said
