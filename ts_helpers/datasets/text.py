"""Characters and words, to predict the next of: the language tasks of Tallec & Ollivier (2018); no model of them."""

import hashlib
import io
import os
import platform
import re
import tempfile
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ts_helpers._check import at_least, instance, numbered, plain_file
from ts_helpers.datasets import DATA, PATIENCE

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
DIGITS = "zero one two three four five six seven eight nine"
UNKNOWN, END = "<unk>", "<eos>"
PENN = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")  # the parts, of which no copy may be passed on
PENN_SIZES = [929_589, 73_760, 82_430]  # words, ends of lines with them, by which the Penn Treebank's parts are known
LEAST = 20  # symbols of a text, below which a part would have none
TEXT8 = "http://mattmahoney.net/dc/text8.zip"  # whatever comes is checked
TEXT8_SHA256 = "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7"  # of the text, unpacked

_SPELLED = str.maketrans({c.upper(): c for c in ALPHABET} | {str(i): f" {d} " for i, d in enumerate(DIGITS.split())})


@dataclass
class Text:
    """A text as places (symbols,) in an alphabet: to train with, then to choose by, then, at the end, to test with."""

    name: str
    alphabet: Sequence[str]
    train: Tensor
    valid: Tensor
    test: Tensor


def cleaned(text: str) -> str:
    """Write a text with a to z and space, of which none follows another.

    Capitals become small; a digit becomes its English name, a word; anything else, accented letters too, a space.
    Source: Mahoney, mattmahoney.net/dc/textdata.html, of whose text8, Wikipedia so written, markup is removed first.
    """
    instance(str, "a text", text=text)
    return re.sub("[^a-z]+", " ", text.translate(_SPELLED))


def characters(source: str | Path = "python") -> Text:
    """Characters of a text, `cleaned`; the first 90 % are to train with, 5 % to choose by, the last 5 % to test with.

    Source: Tallec & Ollivier (2018), Appendix A, "Next character prediction on text8". Departure: the default, which
    needs no network, is the help texts that come with Python, 400,000 characters that differ from version to version.
    The source is ``"python"``; ``"text8"``, 31 MB, downloaded once or a RuntimeError; or a file in UTF-8, 20 or more.
    The text is numbered as in `ALPHABET`, uint8. Guessing at random scores log 27 nats, 4.75 bits per character.
    """
    instance(str | Path, "a name or a path", source=source)
    name, text = _read(_text8() if source == "text8" else source, cleaned, "characters when cleaned")
    codes = np.frombuffer(text.encode("ascii"), np.uint8) % 32  # of a space 32, of "a" 97
    return Text(name, ALPHABET, *(torch.from_numpy(codes[part]) for part in _parts(len(codes))))


def words(source: str | Path = "python", most: int = 10_000) -> Text:
    """Words of a text, in parts as for `characters`; the end of a line is the word ``<eos>``.

    Source: Tallec & Ollivier (2018), Appendix A, "Next word prediction on Penn Treebank". Departure: the default is
    Python's help texts, as for `characters`, in one line.

    The source is ``"python"``; or a text file in UTF-8, 20 words or more; or a folder with the files `PENN`. Words to
    tell apart are the ``most``, 2 or more, most frequent of the training part; every other is ``<unk>``, in the text,
    int64, 0, the most frequent 1. Guessing n words at random has a perplexity of n.
    """
    at_least(2, most=most)
    instance(str | Path, "a name or a path", source=source)
    if source != "python" and os.path.isdir(source):
        parts = [_read(Path(source) / part, _listed, "words")[1] for part in PENN]
        whole = list(map(len, parts)) == PENN_SIZES
        name = "Penn Treebank" if whole else f"texts from the folder {Path(source).resolve().name}"
    else:
        name, found = _read(source, _listed, "words")
        parts = [found[part] for part in _parts(len(found))]
    frequent = Counter(word for word in parts[0] if word != UNKNOWN).most_common(most - 1)
    alphabet = [UNKNOWN, *(word for word, _ in frequent)]
    numbers = {word: i for i, word in enumerate(alphabet)}
    return Text(name, alphabet, *(torch.tensor([numbers.get(w, 0) for w in part]) for part in parts))


def streams(codes: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Cut a text, (symbols,), into ``batch`` streams, and these into windows of ``length`` steps; none overlap.

    Sequence b of a window goes on as sequence b of the next, so that a network may keep its state; the end is dropped.
    x and y, the symbol that follows each of x, are (windows, time, batch), typed as codes (`one_hot` needs ``long()``).
    Source: Tallec & Ollivier (2018), Appendix A: "batches of size 128 made of non-overlapping sequences of length 180".
    """
    at_least(1, batch=batch, length=length)
    numbered(codes=codes)
    if codes.ndim != 1:
        raise ValueError(f"codes must have shape (symbols,), got {tuple(codes.shape)}")
    used = (len(codes) - 1) // (batch * length) * batch * length
    if used < 1:
        least = batch * length + 1
        raise ValueError(f"codes must have {least} or more symbols for {batch=}, {length=}, got {len(codes)}")
    x, y = (part.reshape(batch, -1, length).permute(1, 2, 0) for part in (codes[:used], codes[1 : used + 1]))
    return x, y


def _parts(n: int) -> tuple[slice, slice, slice]:
    return slice(n * 90 // 100), slice(n * 90 // 100, n * 95 // 100), slice(n * 95 // 100, n)


def _listed(text: str) -> list[str]:
    return text.replace("\n", f" {END} ").split()


def _read(source: str | Path, taken: Callable[[str], Any], what: str) -> tuple[str, Any]:
    """Return what the default, in one line, or a file is, and what is taken of the text in it."""
    if source == "python":
        whole = "\n".join(topics[key] for key in sorted(topics))
        return f"help texts of Python {platform.python_version()}", taken(cleaned(whole))
    try:
        content = plain_file("source", source).read_bytes()
        text = content.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError(f"a zero byte at {text.index(chr(0))}")
    except OSError as error:
        raise ValueError(f"cannot read a text from {source}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source} must be a text in UTF-8, got {error}") from None
    if len(found := taken(text)) < LEAST:
        raise ValueError(f"{source} must have {LEAST} or more {what}, got {len(found)}")
    return "text8" if hashlib.sha256(content).hexdigest() == TEXT8_SHA256 else f"the file {Path(source).name}", found


def _text8() -> Path:
    """Return the file of text8, downloaded if there is none or a damaged one; it is written whole or not at all."""
    file = DATA / "text8"
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == TEXT8_SHA256:
        return file
    instead = 'take "python", which needs no download, or name a text file'
    try:
        with urllib.request.urlopen(TEXT8, timeout=PATIENCE) as response:
            content = zipfile.ZipFile(io.BytesIO(response.read())).read("text8")
    except (OSError, HTTPException, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise RuntimeError(f"cannot download {TEXT8}: {error}; {instead}") from None
    if (digest := hashlib.sha256(content).hexdigest()) != TEXT8_SHA256:
        raise RuntimeError(f"{TEXT8} must hold a text of SHA-256 {TEXT8_SHA256}, got {digest}; {instead}")
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".text8.", dir=DATA) as part:
        (Path(part) / "text8").write_bytes(content)
        return (Path(part) / "text8").replace(file)
