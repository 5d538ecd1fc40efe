"""The documentation as a site: `make docs`. Pages are read where they are, so their links work on a forge too."""

# ruff: noqa: INP001  Sphinx loads it by its path

import re
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

ROOT = Path(__file__).parents[1]
FOLDER_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:]*/)\)")

project = "grpc-etcd"
copyright = "the grpc-etcd maintainers"  # noqa: A001  Sphinx' name
version = re.findall(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())[0]
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/**/*.md", "*.md", "examples/README.md", "charts/*/README.md"]
exclude_patterns = [".venv", "dist"]
html_theme = "furo"
html_title = f"grpc-etcd {version}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
myst_heading_anchors = 4


def link_folders(app: Any, page: str, source: list[str]) -> None:
    """Link a folder's README in place of the folder, which is no page; a folder without one is only named."""
    del app
    here = (ROOT / page).parent

    def replace(link: re.Match[str]) -> str:
        is_page = (here / link[2] / "README.md").exists()
        return f"[{link[1]}]({link[2]}README.md)" if is_page else link[1]

    source[0] = FOLDER_LINK.sub(replace, source[0])


def lead_to_first_page(app: Any, error: Exception | None) -> None:
    """Write the site's front door, since the first page lies beside the others."""
    if error is None:
        door = '<!doctype html><title>grpc-etcd</title><meta http-equiv="refresh" content="0; url=docs/index.html">'
        (Path(app.outdir) / "index.html").write_text(door)


def setup(app: Any) -> None:
    """Connect all this to Sphinx."""
    app.connect("build-finished", lead_to_first_page)
    app.connect("source-read", link_folders)
    app.add_lexer("record", TextLexer)  # keys and values
