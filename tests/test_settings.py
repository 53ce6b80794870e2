import pytest
import torch

from ts_helpers.book.parameters import read_parameters, read_value, resolve, torch_device

CELL = """scale = "book"  # one of smoke, book, paper; size of the experiment
seed = 0        # int in [0, inf); seeds every random draw
eta = None      # float in (0, 1]; learning rate"""


@pytest.mark.parametrize(
    ("name", "good"), [("scale", "smoke"), ("seed", 7), ("eta", 0.5), ("eta", 1), ("eta", None), ("seed", 10**12)]
)
def test_values_within_the_rule_are_taken(name, good):
    read_parameters(CELL)[name].check(good)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("scale", "huge", "scale must be one of smoke, book, paper, got 'huge'"),
        ("seed", -1, r"seed must be int in \[0, inf\), got -1"),
        ("seed", 1.5, r"seed must be int in \[0, inf\), got 1.5"),
        ("seed", True, r"seed must be int in \[0, inf\), got True"),
        ("seed", None, r"seed must be int in \[0, inf\), got None"),
        ("eta", "fast", r"eta must be float in \(0, 1\], got 'fast'"),
        ("eta", 0, r"eta must be float in \(0, 1\], got 0"),
        ("eta", 1.01, r"eta must be float in \(0, 1\], got 1.01"),
        ("eta", float("nan"), "got nan"),
        ("eta", [0.1], r"got \[0.1\]"),
    ],
)
def test_values_outside_the_rule_are_refused(name, bad, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(CELL)[name].check(bad)


@pytest.mark.parametrize(
    "line",
    [
        "eta = 0.1",
        "eta = 0.1  # learning rate",
        "eta = 0.1  # float; learning rate",
        "eta = 2 * 3  # int in [0, 9]; a product",
        "eta, tau = 1, 2  # int in [0, 9]; a pair",
        "eta = 5.0  # float in (0, 1]; breaks its own rule",
    ],
)
def test_parameter_that_breaks_the_grammar_is_refused(line):
    with pytest.raises(ValueError, match=r"eta|literal"):
        read_parameters(line)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-2", 0.01), ("-1", -1), ("None", None), ("fast", "fast"), ("True", True)]
)
def test_command_line_values_are_read_as_literals(text, value):
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_resolve_takes_the_scale_and_what_is_given():
    s = resolve("book", {"book": dict(n=100, eta=0.1)}, n=None, eta=0.2)
    assert (s.n, s.eta) == (100, 0.2)


def test_resolve_refuses_an_unknown_scale_or_name():
    with pytest.raises(ValueError, match="scale must be one of book, got 'huge'"):
        resolve("huge", {"book": {}})
    with pytest.raises(ValueError, match="has no m; it has n"):
        resolve("book", {"book": dict(n=1)}, m=2)


def test_device_auto_is_what_the_notebook_prefers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device("auto") == torch.device("cuda")
    assert torch_device("auto", auto="cpu") == torch.device("cpu")


def test_device_refuses_what_there_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        torch_device("cuda")
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        torch_device("tpu")
    assert torch_device("auto") == torch.device("cpu")


def test_file_rule_takes_an_existing_file_with_its_suffix_or_none(tmp_path):
    data = read_parameters("data = None  # file *.npy; sequences of your own")["data"]
    assert data.is_path
    assert not read_parameters(CELL)["scale"].is_path
    mine = tmp_path / "my own.npy"
    mine.write_bytes(b"")
    data.check(str(mine))
    data.check(None)


@pytest.mark.parametrize("bad", ["nosuch.npy", "other.csv", "folder.npy", 3, True, ["mine.npy"], ""])
def test_file_rule_refuses_anything_else(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("1,2")
    (tmp_path / "folder.npy").mkdir()
    data = read_parameters("data = None  # file *.npy; sequences of your own")["data"]
    with pytest.raises(ValueError) as refused:
        data.check(bad)
    assert str(refused.value) == f"data must be file *.npy, got {bad!r}"


def test_folder_rule_takes_an_existing_folder_or_none(tmp_path):
    mine = read_parameters("data_dir = None  # folder; of your own")["data_dir"]
    assert mine.is_path
    mine.check(str(tmp_path))
    mine.check(None)
    (tmp_path / "file").write_text("")
    for bad in (str(tmp_path / "nosuch"), str(tmp_path / "file"), 3):
        with pytest.raises(ValueError, match="data_dir must be folder, got"):
            mine.check(bad)
