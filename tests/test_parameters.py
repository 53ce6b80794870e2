import pytest

from ts_helpers.book.parameters import read_parameters, read_value

CELL = """scale = "book"  # one of smoke, book, paper; size of the experiment
seed = 0        # int in [0, inf); seeds every random draw
eta = None      # float in (0, 1]; learning rate
data = None     # file *.npy; sequences of your own
mine = None     # folder; of your own"""


@pytest.mark.parametrize(
    ("name", "good"), [("scale", "smoke"), ("seed", 7), ("eta", 0.5), ("eta", 1), ("eta", None), ("seed", 10**12)]
)
def test_values_within_the_rule_are_taken(name, good):
    read_parameters(CELL)[name].check(good)


@pytest.mark.parametrize(
    ("name", "bad", "rule"),
    [
        ("scale", "huge", "one of smoke, book, paper"),
        *(("seed", bad, "int in [0, inf)") for bad in (-1, 1.5, True, None)),
        *(("eta", bad, "float in (0, 1]") for bad in ("fast", 0, 1.01, float("nan"), [0.1])),
        *(("data", bad, "file *.npy") for bad in ("no.npy", "other.csv", "folder.npy", 3, True, ["mine.npy"], "")),
        *(("mine", bad, "folder") for bad in ("nosuch", "other.csv", 3)),
    ],
)
def test_values_outside_the_rule_are_refused(name, bad, rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("1,2")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError) as refused:
        read_parameters(CELL)[name].check(bad)
    assert str(refused.value) == f"{name} must be {rule}, got {bad!r}"


def test_paths_that_exist_are_taken(tmp_path):
    parameters = read_parameters(CELL)
    (tmp_path / "my own.npy").write_bytes(b"")
    for name, path in (("data", tmp_path / "my own.npy"), ("mine", tmp_path)):
        parameters[name].check(str(path))
        parameters[name].check(None)
    assert [name for name, parameter in parameters.items() if parameter.is_path] == ["data", "mine"]


@pytest.mark.parametrize(
    "line",
    [
        "eta = 0.1", "eta = 0.1  # learning rate", "eta = 0.1  # float; learning rate",
        "eta = 2 * 3  # int in [0, 9]; a product", "eta, tau = 1, 2  # int in [0, 9]; a pair",
        "eta = 5.0  # float in (0, 1]; breaks its own rule",
    ],
)  # fmt: skip
def test_parameter_that_breaks_the_grammar_is_refused(line):
    with pytest.raises(ValueError, match=r"eta|literal"):
        read_parameters(line)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-2", 0.01), ("-1", -1), ("None", None), ("fast", "fast"), ("True", True)]
)
def test_command_line_values_are_read_as_literals(text, value):
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)
