import pytest

from ts_helpers.book.parameters import read_parameters

CELL = """scale = "book"  # one of smoke, book, paper; size of the experiment
seed = 0        # int in [0, inf); seeds every random draw
tau: float = 2  # float in (0, inf); time constant
eta = None      # float in (0, 1]; learning rate
data = None     # file *.npy; sequences of your own
mine = None     # folder; of your own"""


@pytest.mark.parametrize(
    ("name", "good"), [("scale", "smoke"), ("seed", 7), ("eta", 0.5), ("eta", 1), ("eta", None), ("seed", 2**63 - 1)]
)
def test_values_within_the_rule_are_taken(name, good):
    read_parameters(CELL)[name].check(good)


@pytest.mark.parametrize(
    ("name", "bad", "rule"),
    [
        ("scale", "huge", "one of smoke, book, paper"),
        *(("seed", bad, "int in [0, 2**63)") for bad in (-1, 1.5, True, None, 2**63, 10**400)),
        *(("eta", bad, "float in (0, 1]") for bad in ("fast", 0, 1.01, float("nan"), [0.1])),
        *(("tau", bad, "float in (0, inf)") for bad in (10**400, float("inf"), None)),
        *(("data", bad, "file *.npy") for bad in ("no.npy", "other.csv", "folder.npy", 3, True, ["mine.npy"], "")),
        *(("mine", bad, "folder") for bad in ("nosuch", "other.csv", 3, "", "\0", "a" * 5000)),
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
        "eta = 5.0  # float in (0, 1]; breaks its own rule", "eta = 1  # int in [0, most]; no number",
        "eta: int  # int in [0, 9]; no value", "eta = tau = 1  # int in [0, 9]; two", "eta = {[]: 1}  # folder; none",
        "eta = (1  # int in [0, 9]; no Python", "%env eta",
    ],
)  # fmt: skip
def test_parameter_that_breaks_the_grammar_is_refused_with_its_line(line):
    with pytest.raises(ValueError) as refused:
        read_parameters(line)
    assert line.split("  ")[0] in str(refused.value) or "eta must be" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "3", 3), ("eta", "1e-2", 0.01), ("tau", "9", 9.0), ("eta", "None", None), ("mine", "None", None),
        ("scale", "smoke", "smoke"), ("mine", "2018", "2018"), ("data", "1e3.npy", "1e3.npy"),
    ],
)  # fmt: skip
def test_text_is_read_by_the_parameters_own_rule(name, text, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2018").mkdir()
    (tmp_path / "1e3.npy").touch()
    value = str(tmp_path / value) if name in ("mine", "data") and value else value
    read = read_parameters(CELL)[name].read(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "got"),
    [
        ("seed", "18446744073709551616", "18446744073709551616"), ("seed", "9" * 5000, repr("9" * 5000)),
        ("seed", "3.0", "'3.0'"), ("seed", "True", "'True'"), ("seed", "None", "'None'"), ("scale", "None", "'None'"),
        ("eta", "nan", "nan"), ("tau", "1" + "0" * 400, "inf"), ("eta", "'1'", '"\'1\'"'), ("mine", "2019", "'2019'"),
    ],
)  # fmt: skip
def test_text_that_its_rule_does_not_take_is_refused_by_name(name, text, got):
    with pytest.raises(ValueError) as refused:
        read_parameters(CELL)[name].read(text)
    assert str(refused.value).startswith(f"{name} must be ")
    assert str(refused.value).endswith(f", got {got}")
