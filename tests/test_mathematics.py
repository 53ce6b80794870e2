"""Formulas of a small page, as the build makes them."""

import re
from html import escape

import pytest
from conftest import ROOT, run

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "mathematics"]
myst_enable_extensions = ["dollarmath"]
"""


@pytest.fixture
def page(tmp_path):
    """What Sphinx made of this text, with every warning an error: its HTML, and what it said of it."""

    def page(text):
        (tmp_path / "conf.py").write_text(CONF)
        (tmp_path / "index.md").write_text(f"# Leaks of $\\tau$\n\n{text}\n")
        done = run(tmp_path, "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(tmp_path), str(tmp_path / "html"))
        return (tmp_path / "html" / "index.html").read_text().partition("<body")[2], done.stderr

    return page


def test_formulas_are_there_for_eyes_and_for_ears(page):
    html, said = page("With $a < 1$,\n\n$$ h_t = \\begin{cases} 0 \\\\ 1 \\end{cases} $$\n\n|$b$|\n|---|\n|$c$|")
    assert said == ""
    read = re.findall(r'<annotation[^>]*>(.*?)</annotation></semantics></math></span><span class="katex-html" ar', html)
    assert {r"\tau", "a &lt; 1", "b", "c"} < set(read)
    assert len(re.findall(r'<div class="math[^"]*">\s*<span class="katex-display">', html)) == 1


def test_equations_have_numbers_and_are_referred_to_by_them(page):
    html, said = page("$$ a = 1 $$ (eq-a)\n\n$$ b = 2 $$ (eq-b)\n\nBy {eq}`eq-b`.")
    assert said == ""
    assert re.findall(r'id="equation-(eq-.)">\s*<span class="eqno">\((\d)\)', html) == [("eq-a", "1"), ("eq-b", "2")]
    assert re.search(r'href="#equation-eq-b">\(2\)</a>', html)


def test_comma_after_a_formula_stays_in_its_line(page):
    html, _ = page("Of $a$, $b$ and $c$.")
    assert re.findall(r"</span></span>(&NoBreak;)?</span>([, .])", html.partition("<p>")[2]) == [
        ("&NoBreak;", ","), ("", " "), ("&NoBreak;", "."),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [r"\alhpa", r"\frac{1}{2", "a & b"])
def test_formula_that_cannot_be_read_is_named_with_its_page_and_line(page, wrong):
    html, said = page(f"One of $x$.\n\nAnd one of ${wrong}$.")
    assert re.search(rf"index\.md:5: WARNING: .*in the formula {re.escape(wrong)}", said)
    assert html.count('<annotation encoding="application/x-tex">x</annotation>') == 1
    assert escape(wrong) in re.sub("<[^>]+>", "", html)  # as it stands in the source
