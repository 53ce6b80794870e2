"""Images whose pixels come one by one, the classification task of Tallec & Ollivier (2018); no network, no training."""

import gzip
import importlib
import math
import socket
import sys
import tempfile
import types
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ts_helpers._check import at_least, instance, one_of
from ts_helpers.datasets import DATA, PATIENCE

CLASSES = 10  # of every source; guessing one at random is right for a tenth of the images
HELD = 6  # one image in so many is drawn to be held out
OWN = Path(__file__).with_name("mnist10k.npz")  # images (10000, 28, 28) and labels (10000,), bytes in MNIST's order
SETS = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
MNIST = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
COUNTS = {"mnist": MNIST, "fashion": [6000] * CLASSES}  # training images of each class, by which a set is known


@dataclass
class Part:
    """Images x (pixels, images, 1), row by row, from 0 to 1, and the class y (images,) of each, 0 to 9."""

    x: Tensor
    y: Tensor


@dataclass
class Images:
    """To train with, to choose by (held out of these) and, at the end, to test with."""

    name: str
    train: Part
    valid: Part
    test: Part


def images(source: str = "mnist10k", folder: str | Path | None = None, *, generator: torch.Generator) -> Images:
    """Images as sequences of pixels, "from top to bottom, left to right"; the target of the last is their class.

    Source: Tallec & Ollivier (2018), Appendix A, "Pixel level classification", with MNIST. Departure: which images they
    validate with is open there; ours are a sixth of the training images, drawn. The default, which needs no network, is
    a part of MNIST: the first 10,000 of its training images, of which 1,000 are drawn to validate and 1,000 to test.
    The source is ``"mnist10k"``, these; ``"mnist"`` or ``"fashion"``, 70,000 of ``28 x 28``, which torchvision
    downloads, once, if no folder has them, or a RuntimeError; or ``"folder"``. A folder holds four files in MNIST's
    format, plain or ``.gz``, such as Debian's ``/usr/share/datasets/fashion-mnist``, called ``train-images-idx3-ubyte``
    and so on, or ``train-images.idx3-ubyte``.
    """
    instance(torch.Generator, "a torch.Generator", generator=generator)
    instance(str | Path | None, "a path or None", folder=folder)
    one_of(("mnist10k", *SETS, "folder"), source=source)
    if (source == "mnist10k" and folder) or (source == "folder" and not folder):
        raise ValueError(f'a folder must be named with "folder", and none with "mnist10k", got {source=}, {folder=}')
    if source == "mnist10k":
        with np.load(OWN) as own:
            name, rest = "10,000 images of MNIST", _part(own["images"].reshape(-1, 28 * 28), own["labels"])
        rest, test = _drawn(rest, 1000, generator)
        return Images(name, *_drawn(rest, 1000, generator), test)
    where = Path(folder) if folder else _downloaded(source)
    name = SETS.get(source, f"images from the folder {where.resolve().name}")
    rest, test = _read(where)
    counts = torch.bincount(rest.y, minlength=CLASSES).tolist()
    if folder and counts != COUNTS.get(source, counts):
        raise ValueError(f"{folder} must hold {name}, {COUNTS[source]} training images of each class, got {counts}")
    return Images(name, *_drawn(rest, len(rest.y) // HELD, generator), test)


def coarser(part: Part, side: int) -> Part:
    """Return square images with so many pixels a side, each the mean of those it takes the place of."""
    instance(Part, "a Part", part=part)
    at_least(1, side=side)
    pixels, n, _ = part.x.shape
    whole = math.isqrt(pixels)
    if whole * whole != pixels or side > whole:
        raise ValueError(f"side must be at most that of square images, got {side} for {pixels} pixels")
    x = adaptive_avg_pool2d(part.x.view(whole, whole, n).permute(2, 0, 1), side)
    return Part(x.flatten(1).T.contiguous()[..., None], part.y)


def permutation(n_pixels: int, *, generator: torch.Generator) -> Tensor:
    """Draw one order (pixels,) for the pixels of all images, as in Appendix A: ``x[order]`` has them in it."""
    at_least(1, n_pixels=n_pixels, generator=generator)
    return torch.randperm(n_pixels, generator=generator)


def some(part: Part, n: int) -> Part:
    """Return the first n images, which are as random as the part; a ValueError if there are fewer."""
    instance(Part, "a Part", part=part)
    at_least(1, n=n)
    if n > len(part.y):
        raise ValueError(f"n must be at most {len(part.y)}, the number of images, got {n}")
    return Part(part.x[:, :n], part.y[:n])


def _read_idx(folder: Path, name: str, n_dims: int) -> np.ndarray:
    """Read bytes in so many dimensions from a file in the format of MNIST's, plain or ``.gz``, or say what is wrong."""
    names = [f"{known}{end}" for known in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    path = next((folder / each for each in names if (folder / each).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} must hold a file {', '.join(names[:-1])} or {names[-1]}, got none")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    magic, start = bytes([0, 0, 8, n_dims]), 4 + 4 * n_dims  # 8: of unsigned bytes
    if content[:4] != magic:
        raise ValueError(f"{path} must begin with the bytes {magic.hex(' ')}, got {content[:4].hex(' ') or 'none'}")
    shape = tuple(np.frombuffer(content[4:start].ljust(start - 4, b"\0"), ">u4").tolist())
    n = len(content[start:])
    if n != math.prod(shape) or n < 1:
        raise ValueError(f"{path} must hold a byte or more, as many as dimensions {shape} say, got {n}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read(folder: Path) -> list[Part]:
    """Read training and test images from a folder with the four files."""
    parts, sizes = [], []
    for part in ("train", "t10k"):
        grey = _read_idx(folder, f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
        if len(grey) != len(labels) or labels.max() >= CLASSES:
            got = f"{len(labels)} for {len(grey)}, up to {labels.max()}"
            raise ValueError(f"{folder} must have a label of 0 to {CLASSES - 1} for each image of {part}, got {got}")
        sizes.append(grey.shape[1:])
        parts.append(_part(grey.reshape(len(grey), -1), labels))
    if sizes[0] != sizes[1]:
        raise ValueError(f"{folder} must have images of one size, {sizes[0]} as those of train, got {sizes[1]}")
    if len(parts[0].y) < HELD:
        raise ValueError(f"{folder} must have {HELD} or more training images, got {len(parts[0].y)}")
    return parts


def _part(grey: np.ndarray, labels: np.ndarray) -> Part:
    """Turn bytes (images, pixels) and labels into tensors."""
    x = torch.as_tensor(grey.T.copy(), dtype=torch.get_default_dtype()).div_(255)
    return Part(x[..., None], torch.as_tensor(labels.astype(np.int64)))


def _drawn(part: Part, n: int, generator: torch.Generator) -> tuple[Part, Part]:
    """Divide images into those that stay and n held out."""
    order = torch.randperm(len(part.y), generator=generator)
    stay, held = order[n:], order[:n]
    return Part(part.x[:, stay], part.y[stay]), Part(part.x[:, held], part.y[held])


def _downloaded(source: str) -> Path:
    """Return the folder of a set that torchvision has downloaded and checked, all of it or nothing."""
    folder, name, before = DATA / source, SETS[source], socket.getdefaulttimeout()
    if folder.is_dir():
        return folder
    DATA.mkdir(parents=True, exist_ok=True)
    # Needed beside PyTorch's build for CPUs, since hashes.txt has none such of torchvision: the operators of that for
    # CUDA do not load there, and what describes them, which no data set uses, fails.
    unused = "torchvision._meta_registrations"
    with tempfile.TemporaryDirectory(prefix=f".{source}.", dir=DATA) as part:
        try:
            socket.setdefaulttimeout(PATIENCE)  # torchvision sets none
            sys.modules.setdefault(unused, types.ModuleType(unused))
            sets = importlib.import_module("torchvision.datasets")
            raw = getattr(sets, name.replace("-", ""))(part, download=True).raw_folder
        except (ImportError, OSError, RuntimeError, HTTPException) as error:
            what = " ".join(str(error).split())  # it has lines, one of each mirror
            instead = 'take "mnist10k", which needs no download, or name the folder with its four files'
            raise RuntimeError(f"cannot download {name} through torchvision: {what}; {instead}") from None
        finally:
            socket.setdefaulttimeout(before)
        if not folder.is_dir():  # another process was not faster
            Path(raw).rename(folder)
    return folder
