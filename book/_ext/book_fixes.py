"""Repairs to the pages of Jupyter Book 1.x: links, weight, and names for screen readers.

They match the HTML of sphinx-book-theme 1.3 and pydata-sphinx-theme 0.17; the browser tests say when that has changed.
"""

import html
import re
from pathlib import Path

from docutils import nodes
from fontTools import subset
from PIL import Image


def _link_to_text(app, pagename, templatename, context, doctree):
    """Pages come from executed .ipynb files, which are not in git: let Edit and Binder open the text notebook."""
    if not (Path(app.srcdir) / f"{pagename}.md").exists() or context.get("page_source_suffix") != ".ipynb":
        return

    def fix(buttons):
        for button in buttons:
            if button.get("type") == "group":
                fix(button["buttons"])
            url = button.get("url", "")
            if "://" in url and url.endswith(f"{pagename}.ipynb"):
                button["url"] = url.removesuffix(".ipynb") + ".md"

    fix(context.get("header_buttons", []))


# What the theme's HTML (sphinx-book-theme 1.3, pydata-sphinx-theme 0.17) gets wrong, and how it should read.
REPAIRS = (
    (re.compile(r'<script[^>]*(fontawesome|design-tabs)\.js[^>]*></script>\s*'), ""),  # icons come as fonts, no tabs
    (re.compile(r'(<link rel="preload" as="script" href="[^"]*fontawesome\.js[^"]*"\s*/?>)\s*'), ""),
    (re.compile(r'(<meta name="docsearch:version"[^>]*>\s*)'  # the page Search alone needs its index
                r'(<script src="[^"]*(searchtools|language_data|searchindex)\.js"></script>\s*){3}'), r"\1"),
    (re.compile(r'(<button class="btn[^"]*search-button[^>]*?) aria-label="Search"'), r"\1"),
    (re.compile(r'(<summary) aria-label="Toggle hidden content"'), r"\1"),
    (re.compile(r'<i class="(fa[^"]*)"(?![^>]*aria-hidden)'), r'<i aria-hidden="true" class="\1"'),
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    (re.compile(r'<div class="sidebar-primary-item">(?=\s*<a class="navbar-brand)'),
     '<div class="sidebar-primary-item" role="navigation" aria-label="Home">'),
)  # fmt: skip

RAISED, TIMES = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"), "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}"
FIGURE = re.compile(r'<img (?=[^>]*src="[^"]*_images/)')


def _only_listed(app, config):
    """Take the pages of ``_toc.yml`` alone, whatever else lies about, and under whatever name."""
    config.include_patterns = [f if f.endswith(".ipynb") else f"{f}.md" for f in config.external_site_map]


def _link_targets(app, doctree):
    """Let Markdown link to the ids of raw HTML too: [B3a](verdicts.md#B3a), a row of a table."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for raw in doctree.findall(nodes.raw):
        for name in re.findall(r'<span id="([^"]+)"', raw.astext()):
            slugs[name] = raw.line, name, name
            if app.env.docname == "book/verdicts":
                app.env.get_domain("std").note_object("claim", name, name)


def _set_numbers(app, doctree, docname):
    """Set numbers as print does: -2e-05 % with a minus, its power of ten, and its unit on the same line."""
    for text in list(doctree.findall(nodes.Text)):
        code = "default_value" in text.parent.get("classes", [])  # of an argument
        if not code and not isinstance(text.parent, (nodes.literal, nodes.FixedTextElement, nodes.math, nodes.raw)):
            made = re.sub(r"(?<![\w.-])-(?=\d)", "−", re.sub(r"(?:(?<=\d)|^) %", "\N{NO-BREAK SPACE}%", text))
            made = re.sub(r"\b(\d[\d.]*)e-0*(\d+)", lambda f: f"{f[1]}{TIMES}10⁻{f[2].translate(RAISED)}", made)
            if made != text:
                text.parent.replace(text, nodes.Text(made))


def _find_symbols(app, doctree):
    """Let the search find a symbol by its name in code: the second column of the page's first table."""
    if app.env.docname == "book/notation":
        for row in next(doctree.findall(nodes.table)).findall(nodes.row):
            names = [literal.astext() for literal in row[1].findall(nodes.literal)]
            row["ids"] += [f"symbol-{name}" for name in names]
            for name, label in zip(names, row["ids"], strict=True):
                app.env.get_domain("std").note_object("symbol", name, label)


def _slim_images(folder):
    """Give every figure a palette of 256 colours, a third of the bytes; return the sizes by file name."""
    sizes = {}
    for path in folder.glob("*.svg"):
        points = re.search(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"', path.read_text())
        if points:
            sizes[path.name] = tuple(round(float(side) * 4 / 3) for side in points.groups())
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            sizes[path.name] = image.size
            if image.mode != "P":
                image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return sizes


def _slim_fonts(paths, points):
    """Keep of fonts these characters."""
    for path in sorted(paths):
        options = subset.Options(flavor="woff2", notdef_outline=True)
        font = subset.load_font(str(path), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=points)
        subsetter.subset(font)
        subset.save_font(font, str(path), options)


def _slim_icons(static, pages):
    """Keep of the theme's 2,000 icons the ones its pages, scripts and styles name: 4 kB of fonts instead of 300."""
    styles = "".join(path.read_text() for path in sorted(static.glob("styles/*.css")))
    icons = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')
    named = set(re.findall(r"fa-[\w-]+", "".join(path.read_text() for path in [*pages, *static.glob("scripts/*.js")])))
    points = {int(code, 16) for names, code in icons.findall(styles) if named & set(re.findall(r"fa-[\w-]+", names))}
    points |= {int(code, 16) for code in re.findall(r'"\\(f[0-9a-f]{3})"', icons.sub("", styles))}
    points |= {ord(sign) for sign in styles if "\ue000" <= sign <= "\uf8ff"}  # those of admonitions stand there as such
    _slim_fonts(static.glob("vendor/fontawesome/webfonts/*.woff2"), points)


def _repair_html(app, exception):
    """Apply REPAIRS to every built page, say how large figures are, so that text does not jump; list the pages.

    All figures of a page but its first are fetched when they come near.
    """
    if exception or app.builder.format != "html":
        return
    sizes = _slim_images(Path(app.outdir) / "_images")

    def sized(found):
        width, height = sizes.get(found[2], (None, None))
        if width is None or " width=" in found[0]:
            return found[0]
        return f'{found[1]} width="{width}" height="{height}"'

    pages = [page for page in Path(app.outdir).rglob("*.html") if "vendor" not in page.parts]
    for page in pages:
        text = page.read_text()
        for pattern, by in REPAIRS:
            text = pattern.sub(by, text)
        text = re.sub(r'(<img [^>]*src="[^"]*_images/([^"/]+)")', sized, text)
        if app.builder.name == "html" and (first := FIGURE.search(text)):
            rest = FIGURE.sub('<img loading="lazy" decoding="async" ', text[first.end() :])
            text = text[: first.end()] + rest
        page.write_text(text)
    static = Path(app.outdir) / "_static"
    tools = static / "searchtools.js"  # what it shows of a page has each formula once, not thrice
    tools.write_text(tools.read_text().replace('".headerlink",', '".headerlink", ".katex-html", "annotation",'))
    _slim_icons(static, pages)
    _slim_fonts(static.glob("vendor/katex/fonts/*"), {ord(letter) for page in pages for letter in page.read_text()})
    own = [page for page in sorted(pages) if page.parent != Path(app.outdir)]  # not search, index of words and the like
    at = [f"{app.config.html_baseurl}{page.relative_to(app.outdir).as_posix()}" for page in own]
    listed = "".join(f"<url><loc>{html.escape(url)}</loc></url>\n" for url in at)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    (Path(app.outdir) / "sitemap.xml").write_text(f"{head}{listed}</urlset>\n")


def _describe(app, pagename, templatename, context, doctree):
    """Give every page a description: search engines and link previews show it."""
    if 'name="description"' not in context.get("metatags", "") and context.get("title"):
        title = html.escape(re.sub("<[^>]+>", "", context["title"]), quote=True)
        book = html.escape(app.config.project, quote=True)
        context["metatags"] = context.get("metatags", "") + f'\n<meta name="description" content="{title}. {book}.">'


def _skip(app, what, name, member, skip, options):
    """Leave PyTorch's own functions out of the API page: a dial that is a sigmoid is one of them."""
    made = getattr(member, "fget", None) or member  # of a property its function
    return skip or not (getattr(made, "__module__", "") or "").startswith("ts_helpers")


def setup(app):
    """Connect the repairs."""
    app.connect("config-inited", _only_listed, priority=901)  # after the one that reads _toc.yml
    app.connect("html-page-context", _link_to_text, priority=901)
    app.connect("html-page-context", _describe, priority=902)
    for kind in ("claim", "symbol"):  # the search names them first
        app.add_object_type(kind, kind)
    app.connect("doctree-read", _link_targets)
    app.connect("doctree-read", _find_symbols)
    app.connect("doctree-resolved", _set_numbers)
    app.connect("autodoc-skip-member", _skip)
    app.connect("build-finished", _repair_html)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
