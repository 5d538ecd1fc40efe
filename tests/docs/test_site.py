"""The documentation as a site: every page is in it, every link leads somewhere, and nothing comes from elsewhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from testbed.build import ROOT

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}


class Links(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors = set[str](), set[str](), set[str]()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in LOADED and value:
                self.loaded.add(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.add(value)


def is_elsewhere(link: str) -> bool:
    return link.startswith(("http:", "https:", "mailto:", "//"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    flags = ["--quiet", "--fail-on-warning", "--keep-going", "--builder", "html", "--conf-dir", "docs"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, "--doctree-dir", str(out / "doctrees"), ".", str(out / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out / "site"


def test_every_page_is_in_the_site_and_can_be_searched(site: Path) -> None:
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("charts/*/README.md"),
        ROOT / "examples/README.md",
    ]
    missing = [page for page in pages if not (site / page.relative_to(ROOT)).with_suffix(".html").exists()]
    assert missing == []
    assert "grpcservic" in (site / "searchindex.js").read_text()  # its stem


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html")}
    broken = []
    for page, found in pages.items():
        for link in found.links | found.loaded:
            path, anchor = urldefrag(link)
            target = (page.parent / unquote(path).partition("?")[0]).resolve() if path else page
            if is_elsewhere(link):
                continue
            is_anchor_there = target not in pages or not anchor or unquote(anchor) in pages[target].anchors
            if not target.exists() or not is_anchor_there:
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []
    assert (site / "index.html").exists()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {link for page in site.rglob("*.html") for link in Links(page).loaded if is_elsewhere(link)}
    assert loaded == set()
