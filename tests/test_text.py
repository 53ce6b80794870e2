import hashlib
import io
import math
import platform
import urllib.error
import zipfile
from http.client import IncompleteRead
from pydoc_data.topics import topics

import pytest
import torch

from ts_helpers.datasets import text
from ts_helpers.datasets.text import ALPHABET, characters, cleaned, streams, words


def written(*codes):
    return "".join(ALPHABET[c] for c in torch.cat(codes).tolist())


def parts(data):
    return [data.train, data.valid, data.test]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Hello, World!", "hello world "),
        ("  a \t b\n\n c", " a b c"),
        ("1980s", " one nine eight zero s"),
        ("x2y", "x two y"),
        ("0123456789", " zero one two three four five six seven eight nine "),
        ("naïve café", "na ve caf "),
        ("don't", "don t"),
        ("\u212a and İ", " and "),  # the sign of kelvin and a dotted I, whose small letters are not: no a to z
        ("\u0664", " "),  # a digit, of another script
        ("", ""),
    ],
)
def test_cleaned_text_has_small_letters_and_single_spaces(before, after):
    assert cleaned(before) == after


def test_cleaning_twice_changes_nothing():
    once = cleaned("A 1st try;  (and) the 22nd...")
    assert cleaned(once) == once == "a one st try and the two two nd "


def test_characters_are_numbered_by_the_alphabet_and_cut_in_order(tmp_path):
    (tmp_path / "mine.txt").write_text("The quick brown fox jumps over the 1 lazy dog ")
    data = characters(tmp_path / "mine.txt")
    expected = "the quick brown fox jumps over the one lazy dog "
    assert data.name == "the file mine.txt"
    assert data.train.dtype == torch.uint8
    assert data.alphabet == ALPHABET
    assert [written(part) for part in parts(data)] == [expected[:43], expected[43:45], expected[45:]]  # of 48
    assert text._parts(10**8) == (slice(90_000_000), slice(90_000_000, 95_000_000), slice(95_000_000, 10**8))  # text8


def test_default_is_python_s_help_and_says_so():
    letters, data = characters(), words()
    assert data.name == letters.name == f"help texts of Python {platform.python_version()}"
    whole = written(*parts(letters))
    assert len(whole) > 300_000
    assert set(whole) == set(ALPHABET) == set(" abcdefghijklmnopqrstuvwxyz")
    assert round(math.log2(len(ALPHABET)), 2) == 4.75
    assert cleaned(whole) == whole
    assert whole.startswith(cleaned(topics[min(topics)]))
    assert sum(map(len, parts(data))) == len(whole.split())
    assert [data.alphabet[i] for i in data.train.tolist()] == whole.split()[: len(data.train)]
    assert 0 < float((data.test == 0).double().mean()) < 0.2


BAD = [
    (b"", r"must have 20 or more characters when cleaned, got 0"),
    ("Привет, мир! Как дела?".encode(), r"must have 20 or more characters when cleaned, got 1"),
    (b"nineteen characters", r"must have 20 or more characters when cleaned, got 19"),
    ("plus élevé".encode("latin-1"), r"must be a text in UTF-8, got .*byte 0xe9 in position 5"),
    ("some plain words".encode("utf-16"), r"must be a text in UTF-8, got .*byte 0xff in position 0"),
    ("some plain words".encode("utf-16-le"), r"must be a text in UTF-8, got a zero byte at 1"),
    (b"", r"must have 20 or more words, got 0"),
    (b"a b\n" * 6, r"must have 20 or more words, got 18"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_file_that_holds_no_text_is_refused_by_name_rule_and_value(content, message, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        (words if "words," in message else characters)(path)


def test_shortest_text_has_a_symbol_in_each_part_and_a_byte_order_mark_is_none(tmp_path):
    (tmp_path / "mine.txt").write_bytes("twenty characters oh".encode("utf-8-sig"))
    assert [written(part) for part in parts(characters(tmp_path / "mine.txt"))] == ["twenty characters ", "o", "h"]


@pytest.mark.parametrize("read", [characters, words])
def test_missing_file_is_refused_by_name(read, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read a text from .*nosuch\.txt: .*No such file"):
        read(tmp_path / "nosuch.txt")
    with pytest.raises(ValueError, match="cannot read a text from"):
        read(tmp_path)  # a folder, without the Penn Treebank's files


def test_fewer_than_two_words_are_refused():
    with pytest.raises(ValueError, match="most must be 2 or more, got most=1"):
        words(most=1)


# --- streams


def test_streams_equal_an_example_by_hand():
    x, y = streams(torch.arange(14, dtype=torch.uint8), 2, 3)  # 13 have a next one: two windows of two streams
    assert x.shape == y.shape == (2, 3, 2)  # (windows, time, batch)
    assert x.dtype == torch.uint8
    assert x.tolist() == [[[0, 6], [1, 7], [2, 8]], [[3, 9], [4, 10], [5, 11]]]
    assert y.tolist() == [[[1, 7], [2, 8], [3, 9]], [[4, 10], [5, 11], [6, 12]]]
    assert streams(torch.arange(7), 2, 3)[1][-1, -1].tolist() == [3, 6]  # just long enough


def test_streams_go_on_from_window_to_window_and_overlap_nowhere():
    codes = torch.randint(27, (1000,), generator=torch.Generator().manual_seed(0))
    x, y = streams(codes, 4, 18)
    assert len(x) == 13  # 999 // 72
    for b in range(4):
        assert torch.equal(x[:, :, b].flatten(), codes[b * 234 : (b + 1) * 234])
        assert torch.equal(y[:, :, b].flatten(), codes[b * 234 + 1 : (b + 1) * 234 + 1])


# --- words

LINES = "a b a c\n" * 9 + "d a\n"  # 36 words and 9 ends, then 2 and 1: 48 in all, of which 43 to train with


def test_words_are_numbered_from_the_most_frequent_on(tmp_path):
    (tmp_path / "mine.txt").write_text(LINES)
    data = words(tmp_path / "mine.txt")
    assert data.name == "the file mine.txt"
    assert data.alphabet == ["<unk>", "a", "b", "c", "<eos>"]  # ends are 8 in the first 43, as b and c are 9 and 9
    assert [len(part) for part in parts(data)] == [43, 2, 3]
    assert data.train.dtype == torch.int64
    assert data.train[:5].tolist() == [1, 2, 1, 3, 4]
    assert data.test.tolist() == [0, 1, 4]  # d, which is in the test part only, is unknown


def test_words_beyond_the_most_frequent_and_unknown_ones_are_the_unknown_word(tmp_path):
    (tmp_path / "mine.txt").write_text(LINES)
    data = words(tmp_path / "mine.txt", most=3)
    assert data.alphabet == ["<unk>", "a", "b"]
    assert data.train[:5].tolist() == [1, 2, 1, 0, 0]
    (tmp_path / "mine.txt").write_text("<unk> a <unk>\n" * 10)
    data = words(tmp_path / "mine.txt", most=3)
    assert data.alphabet == ["<unk>", "a", "<eos>"]
    assert data.train[:4].tolist() == [0, 1, 0, 2]


def test_penn_treebank_s_own_parts_are_kept_and_it_is_called_so_by_their_sizes(tmp_path, monkeypatch):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for name, content in (("train", "a b <unk>\n" * 8), ("valid", "b a\n" * 7), ("test", "e b\n" * 10)):
        (folder / f"ptb.{name}.txt").write_text(content)
    data = words(folder)
    assert data.name == "texts from the folder ptb"
    assert data.alphabet == ["<unk>", "a", "b", "<eos>"]
    assert [part.tolist() for part in parts(data)] == [[1, 2, 0, 3] * 8, [2, 1, 3] * 7, [0, 2, 3] * 10]
    monkeypatch.setattr(text, "PENN_SIZES", [32, 21, 30])
    assert words(folder).name == "Penn Treebank"
    (folder / "ptb.valid.txt").write_bytes("déjà vu\n".encode("latin-1") * 9)
    with pytest.raises(ValueError, match=r"ptb\.valid\.txt must be a text in UTF-8, got .*byte 0xe9"):
        words(folder)
    (folder / "ptb.valid.txt").write_text("b a\n" * 7)
    (folder / "ptb.test.txt").unlink()
    with pytest.raises(ValueError, match=r"cannot read a text from .*ptb\.test\.txt"):
        words(folder)


# --- text8, of which no test reaches the real one

STAND_IN = b" anarchism originated as a term of abuse first"


def archive(content=STAND_IN, name="text8"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where text8 is kept, with a short text in its place and no network."""
    monkeypatch.setattr(text, "DATA", tmp_path / "data")
    monkeypatch.setattr(text, "TEXT8_SHA256", hashlib.sha256(STAND_IN).hexdigest())
    monkeypatch.setattr("urllib.request.urlopen", answer(OSError("a test asked for the network")))
    return tmp_path / "data"


def answer(what):
    """An opener that answers with bytes, or fails."""

    def opened(url, timeout):
        opened.calls += 1
        assert url == "http://mattmahoney.net/dc/text8.zip"
        assert 0 < timeout <= 10
        if isinstance(what, BaseException):
            raise what
        return io.BytesIO(what)

    opened.calls = 0
    return opened


def test_text8_is_downloaded_once_and_named(kept, monkeypatch):
    opener = answer(archive())
    monkeypatch.setattr("urllib.request.urlopen", opener)
    data = characters("text8")
    assert data.name == "text8"
    assert written(*parts(data)) == STAND_IN.decode()
    assert torch.equal(characters("text8").train, data.train)
    assert opener.calls == 1
    assert [p.name for p in kept.iterdir()] == ["text8"]


def test_file_is_called_text8_only_if_it_is(kept, tmp_path):
    (tmp_path / "mine.txt").write_bytes(STAND_IN)
    (tmp_path / "text8").write_bytes(STAND_IN + b"s")
    assert characters(tmp_path / "mine.txt").name == "text8"
    assert characters(tmp_path / "text8").name == "the file text8"


class Interrupted(io.BytesIO):
    """A connection that breaks while it is read."""

    def read(self, *_):
        raise self.error


def interrupted(error):
    opened = Interrupted()
    opened.error = error
    return lambda url, timeout: opened


STAND_IN_OF = hashlib.sha256(STAND_IN).hexdigest(), hashlib.sha256(STAND_IN[:-1]).hexdigest()
FAILURES = {
    "no network": (answer(urllib.error.URLError("Name or service not known")), "Name or service not known"),
    "interrupted": (interrupted(IncompleteRead(b"", 9)), "IncompleteRead"),
    "too slow": (interrupted(TimeoutError("timed out")), "timed out"),
    "cut": (answer(archive()[:-30]), "not a zip file"),
    "damaged": (answer(archive().replace(archive()[40:44], b"\0\0\0\0")), ""),
    "page": (answer(b"<html>Sign in to this network</html>"), "not a zip file"),
    "other file": (answer(archive(name="text9")), "no item named 'text8'"),
    "other text": (answer(archive(STAND_IN[:-1])), "must hold a text of SHA-256 {}, got {}".format(*STAND_IN_OF)),
}


@pytest.mark.parametrize(("opener", "reason"), FAILURES.values(), ids=FAILURES)
def test_broken_download_leaves_nothing_and_says_what_to_take_instead(opener, reason, kept, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", opener)
    begin = "" if "SHA" in reason else "cannot download "
    message = rf'^{begin}http://mattmahoney\.net/dc/text8\.zip.*{reason}.*; take "python", .* name a text file'
    with pytest.raises(RuntimeError, match=message):
        characters("text8")
    assert not kept.exists()
    monkeypatch.setattr("urllib.request.urlopen", answer(archive()))
    assert characters("text8").name == "text8"


def test_damaged_text8_is_downloaded_again(kept, monkeypatch):
    kept.mkdir()
    (kept / "text8").write_bytes(STAND_IN[:20])
    with pytest.raises(RuntimeError, match="cannot download"):
        characters("text8")
    monkeypatch.setattr("urllib.request.urlopen", answer(archive()))
    assert characters("text8").name == "text8"
    assert (kept / "text8").read_bytes() == STAND_IN


def test_full_disk_leaves_no_part_of_a_file(kept, monkeypatch):
    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("urllib.request.urlopen", answer(archive()))
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        characters("text8")
    assert list(kept.iterdir()) == []
