"""Pictures of the pages: anyone can read them, on a phone or with a screen reader too, and they load nothing."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "docs/pictures").iterdir())
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
SVG = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 40_000
PHONE_PIXELS = 388  # of 420, what the site leaves for text
SMALLEST_TEXT_PIXELS = 11
LOADED = re.compile(r"https?:|href=|src=|url\((?!#)|@import|@font-face|<script|<image|<foreignObject")
every_picture = pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)


def faults(text: str) -> list[str]:
    """Name what keeps an SVG from being read by anyone, anywhere."""
    root = ET.fromstring(text)  # noqa: S314  a file of this repository
    children = list(root)
    width = float(root.get("viewBox", "0 0 inf 0").split()[2])
    sizes = [float(size) for size in re.findall(r"font(?:-size)?:[^;}]*?([\d.]+)px", text)]
    background = next((each for each in children if each.tag == f"{SVG}rect"), ET.Element("none"))
    checks = {
        "viewBox": math.isfinite(width),
        "title": children[0].tag == f"{SVG}title" and bool(children[0].text),
        "desc": children[1].tag == f"{SVG}desc" and bool(children[1].text),
        "role": root.get("role") == "img",
        "background": float(background.get("width", 0)) >= width * 0.99,
        "text size": bool(sizes) and min(sizes) * PHONE_PIXELS / width >= SMALLEST_TEXT_PIXELS,
        "loads nothing": not LOADED.search(text.replace('xmlns="http://www.w3.org/2000/svg"', "")),
        "bytes": len(text.encode()) <= MOST_BYTES,
    }
    return [name for name, is_right in checks.items() if not is_right]


def images(page: Path) -> list[tuple[str, Path]]:
    """Give the alternative text and the file of each picture of a page."""
    found = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
    return [(alternative, (page.parent / name).resolve()) for alternative, name in found]


@every_picture
def test_a_picture_can_be_read_by_anyone_and_loads_nothing(picture: Path) -> None:
    assert faults(picture.read_text()) == []


@every_picture
def test_a_picture_is_in_a_page_in_words_too(picture: Path) -> None:
    texts = [alternative for page in PAGES for alternative, path in images(page) if path == picture]
    assert texts
    assert all(len(text.split()) >= 5 for text in texts)


def test_no_page_has_a_drawing_of_characters() -> None:
    """Screen readers spell it, and a narrow page cuts it off."""
    assert [page.name for page in PAGES if re.search("[┌└├▶◀]", page.read_text())] == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("viewBox", "data-box", "viewBox"),
        ('role="img"', "", "role"),
        ("<desc", "<g/><desc", "desc"),
        ("16px", "15px", "text size"),
        ('class="paper" width="560"', 'class="paper" width="60"', "background"),
        ("<defs>", '<defs><image href="https://example.com/x.png"/>', "loads nothing"),
        ("<defs>", f"<!--{'x' * MOST_BYTES}--><defs>", "bytes"),
    ],
)
def test_what_is_refused(old: str, new: str, fault: str) -> None:
    text = (ROOT / "docs/pictures/overview.svg").read_text()
    assert old in text
    assert fault in faults(text.replace(old, new))
