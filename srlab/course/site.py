"""The course as a static web site: the stored chapters, an index with a search, no network."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from srlab.course import paths
from srlab.course.pages import page, render
from srlab.course.paths import CourseError
from srlab.course.run import read_chapters
from srlab.files import write_text

TEXTS = {"Glossary": "glossary"}


def build_site(out: Path | str) -> Path:
    """Write every stored chapter as a page, with navigation, search and links that lead somewhere.

    Args:
        out: folder to write to; pages there are replaced.

    Returns:
        ``index.html``.

    Raises:
        CourseError: a link inside the site leads nowhere; the message lists all of them.
    """
    import nbformat

    out = Path(out)
    paths.make_folder(out)
    chapters = read_chapters()
    stems = {str(chapter): chapter.notebook.stem for chapter in chapters} | TEXTS
    sections = []

    def add(title: str, stem: str, nb: Any) -> None:
        prose = nbformat.v4.new_notebook(
            cells=[cell.copy() for cell in nb.cells if cell.cell_type == "markdown"]
        )
        folder = paths.course_root() / "notebooks"
        sections.extend(_sections(title, stem, render(prose, folder)))
        write_text(out / f"{stem}.html", page(title, render(nb, folder), stems))

    for chapter in chapters:
        nb = nbformat.read(chapter.notebook, as_version=4)
        add(str(chapter), chapter.notebook.stem, nb)
        shutil.copy(chapter.notebook, out)
    for title, stem in TEXTS.items():
        text = (paths.course_root() / "notebooks" / f"{stem}.md").read_text()
        cell = nbformat.v4.new_markdown_cell(text)
        add(title, stem, nbformat.v4.new_notebook(cells=[cell]))
    index = page("Super-resolution GANs", _index(stems, sections), stems)
    write_text(out / "index.html", index)
    if broken := broken_links(out):
        raise CourseError("These links lead nowhere: " + "; ".join(broken))
    return out / "index.html"


def broken_links(folder: Path) -> list[str]:
    """Links from page to page, or to a place on a page, that lead nowhere."""
    pages = {path.name: path.read_text() for path in sorted(folder.glob("*.html"))}
    anchors = {
        name: set(map(html.unescape, re.findall(r'\bid="([^"]+)"', text)))
        for name, text in pages.items()
    }
    broken = []
    for name, text in pages.items():
        prose = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
        for href in re.findall(r'href="([^"]+)"', prose):
            if re.match(r"[a-z]+:", href):
                continue
            target, _, anchor = html.unescape(href).partition("#")
            target = target or name
            known = target in pages if not anchor else unquote(anchor) in anchors.get(target, ())
            if not known and not (not anchor and (folder / target).is_file()):
                broken.append(f"{name}: {href}")
    return broken


def _sections(chapter: str, stem: str, prose: str) -> list[dict[str, str]]:
    """What the search looks through: the prose under each heading, without code and outputs."""
    parts = re.split(r'<h[12] id="([^"]*)">(.*?)<a class="anchor-link".*?</a></h[12]>', prose)
    found = []
    for anchor, heading, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text = re.sub(r"<(style|math|pre).*?</\1>", " ", text, flags=re.S)
        text = html.unescape(re.sub(r"<[^>]*>", " ", text))
        found.append(
            {
                "chapter": chapter,
                "heading": html.unescape(re.sub(r"<[^>]*>", "", heading)),
                "href": f"{stem}.html#{anchor}",
                "text": " ".join(text.split()),
            }
        )
    return found


def _index(stems: dict[str, str], sections: list[dict[str, str]]) -> str:
    items = "\n".join(
        f'<li><a href="{html.escape(stem)}.html">{html.escape(title)}</a>'
        for title, stem in stems.items()
    )
    data = json.dumps(sections, ensure_ascii=False).replace("</", "<\\/")
    script = Path(__file__).with_name("search.js").read_text()
    return (
        "<h1>Super-resolution GANs</h1>\n"
        "<p>A course that runs: from photographs to a Wasserstein GAN that enlarges them four "
        "times, with every number computed on the page.</p>\n"
        '<p><label>Search the chapters <input type="search" autocomplete="off"></label></p>\n'
        '<ul id="found" aria-live="polite"></ul>\n'
        f"<h2>Chapters</h2>\n<ul>\n{items}\n</ul>\n"
        f'<script type="application/json" id="sections">{data}</script>\n'
        f"<script>\n{script}</script>"
    )
