"""Characters and words, to predict the next of: the language tasks of Tallec & Ollivier (2018)."""

import hashlib
import io
import os
import platform
import re
import string
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pydoc_data.topics import topics
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ts_helpers.book.paths import data_folder

ALPHABET = " " + string.ascii_lowercase
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNKNOWN, END = "<unk>", "<eos>"
PENN = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
PENN_SIZES = (929_589, 73_760, 82_430)  # words, ends of lines with them, by which the Penn Treebank's parts are known
LEAST = 20  # symbols of a text, below which a part would have none
TEXT8 = "http://mattmahoney.net/dc/text8.zip"  # whatever comes is checked
TEXT8_SHA256 = "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7"  # of the text, unpacked
PATIENCE = 10.0  # with a host that does not answer, seconds

_Symbols = TypeVar("_Symbols", Tensor, list[str])
_SPELLED = {ord(c): c.lower() for c in string.ascii_uppercase} | {ord("0") + i: f" {d} " for i, d in enumerate(DIGITS)}


@dataclass
class Text:
    """A text as numbers, in three parts that follow each other.

    Attributes:
        name: what it is, for titles and verdicts.
        alphabet: what its symbols are; a number is a place in here.
        train: (symbols,), what is trained on.
        valid: the same, to choose by.
        test: the same, seen by nobody before the end.
    """

    name: str
    alphabet: Sequence[str]
    train: Tensor
    valid: Tensor
    test: Tensor


def cleaned(text: str) -> str:
    """Write a text with 27 symbols, a to z and space.

    Capitals become small; a digit becomes its English name, a word by itself; anything else, accented letters too,
    becomes a space; and spaces in a row become one.

    Source: Mahoney, "About the Test Data" (mattmahoney.net/dc/textdata.html), whose text8 is Wikipedia so written; his
    program also takes out Wikipedia's markup, which comes first there and has no part here.
    """
    return re.sub("[^a-z]+", " ", text.translate(_SPELLED))


def characters(source: str | Path = "python") -> Text:
    """Characters of a text, `cleaned`; the first 90 % are to train with, 5 % to choose by, the last 5 % to test with.

    Source: Tallec & Ollivier (2018), Appendix A, "Next character prediction on text8". Departure: the default, which
    needs no network, is not text8, but the help texts that come with Python, some 400,000 characters that differ from
    version to version.

    Args:
        source: ``"python"``; or ``"text8"``, downloaded once, 31 MB, and kept; or a text file in UTF-8.

    Returns:
        The text, its symbols numbered as in `ALPHABET`, of type uint8. Guessing each at random scores log 27 nats, 4.75
        bits per character.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or has fewer than 20 characters when cleaned.
        RuntimeError: text8 cannot be downloaded.
    """
    if source == "python":
        name, text = _python()
    else:
        path = _text8() if source == "text8" else Path(source)
        name, text = _read(path)
        text = cleaned(text)
    if len(text) < LEAST:
        raise ValueError(f"{source} must have {LEAST} or more characters when cleaned, got {len(text)}")
    codes = np.frombuffer(text.encode("ascii"), np.uint8) % 32  # of a space 32, of "a" 97
    return Text(name, ALPHABET, *_parts(torch.from_numpy(codes)))


def words(source: str | Path = "python", most: int = 10_000) -> Text:
    """Words of a text, in parts as for `characters`; the end of a line is the word ``<eos>``.

    Source: Tallec & Ollivier (2018), Appendix A, "Next word prediction on Penn Treebank", whose text may not be passed
    on. Departure: the default is Python's help texts, as for `characters`, in one line.

    Args:
        source: ``"python"``; or a text file in UTF-8, words with spaces between; or a folder with the three files of
            the Penn Treebank, ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``, which are the parts then.
        most: words to tell apart, the most frequent of the training part; every other is ``<unk>``, one of them.

    Returns:
        The text, its words numbered from the most frequent on, ``<unk>`` being 0; of type int64. Guessing each of n
        words at random has a perplexity of n.

    Raises:
        ValueError: ``most`` is below 2, or a file cannot be read, is not UTF-8, or has fewer than 20 words.
    """
    if most < 2:
        raise ValueError(f"most must be 2 or more, got {most}")
    if source == "python":
        name, text = _python()
        parts = _parts(text.split())
    elif Path(source).is_dir():
        train, valid, test = (_listed(Path(source) / part)[1] for part in PENN)
        parts = train, valid, test
        whole = (len(train), len(valid), len(test)) == PENN_SIZES
        name = "Penn Treebank" if whole else f"texts from the folder {Path(source).resolve().name}"
    else:
        name, found = _listed(Path(source))
        parts = _parts(found)
    frequent = Counter(word for word in parts[0] if word != UNKNOWN).most_common(most - 1)
    alphabet = [UNKNOWN, *(word for word, _ in frequent)]
    numbers = {word: i for i, word in enumerate(alphabet)}
    return Text(name, alphabet, *(torch.tensor([numbers.get(w, 0) for w in part]) for part in parts))


def streams(codes: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Cut a text into as many streams as a batch has, and these into windows, none of which overlap.

    Sequence b of a window goes on as sequence b of the next, so that a network may keep its state. What is left at the
    end, less than a window of each stream, is dropped.

    Source: Tallec & Ollivier (2018), Appendix A: "batches of size 128 made of non-overlapping sequences of length 180".

    Args:
        codes: (symbols,).
        batch: streams.
        length: of a window, steps.

    Returns:
        x: (windows, time, batch), symbols of the type of ``codes``; `torch.nn.functional.one_hot` needs ``long()``.
        y: the same shape, the symbol that follows each.

    Raises:
        ValueError: a size is below 1, or the text too short for a window of each stream and one symbol more.
    """
    if min(batch, length) < 1:
        raise ValueError(f"batch and length must be 1 or more, got {batch=}, {length=}")
    n_windows = (len(codes) - 1) // (batch * length)
    if n_windows < 1:
        raise ValueError(
            f"codes must have {batch * length + 1} or more symbols for {batch=}, {length=}, got {len(codes)}"
        )
    used = n_windows * batch * length
    x, y = (part.reshape(batch, n_windows, length).permute(1, 2, 0) for part in (codes[:used], codes[1 : used + 1]))
    return x, y


def _python() -> tuple[str, str]:
    """Return what the default is and its text, cleaned."""
    text = "\n".join(topics[key] for key in sorted(topics))
    return f"help texts of Python {platform.python_version()}", cleaned(text)


def _parts(symbols: _Symbols) -> tuple[_Symbols, _Symbols, _Symbols]:
    n = len(symbols)
    return symbols[: n * 90 // 100], symbols[n * 90 // 100 : n * 95 // 100], symbols[n * 95 // 100 :]


def _listed(path: Path) -> tuple[str, list[str]]:
    """Return what a file is and the words in it."""
    name, text = _read(path)
    found = text.replace("\n", f" {END} ").split()
    if len(found) < LEAST:
        raise ValueError(f"{path} must have {LEAST} or more words, got {len(found)}")
    return name, found


def _read(path: Path) -> tuple[str, str]:
    """Return what a file is and the text in it."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read a text from {path}: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8, got {error}") from None
    if "\0" in text:
        raise ValueError(f"{path} must be a text in UTF-8, got a zero byte at {text.index(chr(0))}")
    return "text8" if _is_text8(content) else f"the file {path.name}", text


def _is_text8(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == TEXT8_SHA256


def _text8() -> Path:
    """Return the file of text8, downloaded if there is none or a damaged one; it is written whole or not at all."""
    file = data_folder() / "text8"
    if file.is_file() and _is_text8(file.read_bytes()):
        return file
    instead = 'take "python", which needs no download, or name a text file'
    try:
        with urllib.request.urlopen(TEXT8, timeout=PATIENCE) as response:
            content = zipfile.ZipFile(io.BytesIO(response.read())).read("text8")
    except (OSError, HTTPException, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise RuntimeError(f"cannot download {TEXT8}: {error}; {instead}") from None
    if not _is_text8(content):
        digest = hashlib.sha256(content).hexdigest()
        raise RuntimeError(f"{TEXT8} must hold a text of SHA-256 {TEXT8_SHA256}, got {digest}; {instead}")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file
