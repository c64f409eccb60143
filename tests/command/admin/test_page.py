"""The page works under a policy that allows nothing inline and nothing from elsewhere, and makes no markup of texts.

What it shows is looked at by a real browser: `make page`.
"""

import importlib.resources
import re
from html.parser import HTMLParser

import pytest

FILES = ("index.html", "page.css", "page.js", "favicon.svg")
SVG = "http://www.w3.org/2000/svg"


def text(name: str) -> str:
    return importlib.resources.files("rawgrpc_proxy.command.admin.page").joinpath(name).read_text("utf-8")


class Elements(HTMLParser):
    """All elements, each with its attributes and the text directly behind its start."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[int, str] = {}
        self.feed(text("index.html"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(len(self.found) - 1, data.strip())


def ids() -> list[str]:
    return [attributes["id"] for _, attributes in Elements().found if "id" in attributes]


def test_the_page_has_no_inline_script_or_style() -> None:
    page = Elements()
    for index, (tag, attributes) in enumerate(page.found):
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")], attributes
        if tag == "script":
            assert attributes["src"]
            assert not page.texts.get(index)
    # A policy stops this one, too; the properties of `element.style` are all right.
    assert not re.search(r"""setAttribute\(\s*['"]style|\{\s*style:""", text("page.js"))


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    found = text(name).replace(SVG, "")
    assert not re.search(r"""https?:|['"(]//|@import|\burl\(|\bimport\b""", found)


def test_addresses_are_relative_so_that_the_page_works_under_a_prefix() -> None:
    addresses = [
        attributes[name]
        for _, attributes in Elements().found
        for name in ("src", "href")
        if name in attributes
    ]
    addresses += re.findall(r"(?:fetch|EventSource)\('([^']*)'", text("page.js"))
    assert {"page.js", "page.css", "events", "config"} <= set(addresses)
    assert not [address for address in addresses if address.startswith("/")]


def test_no_text_becomes_markup_or_code() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|ContextualFragment|\beval\b|Function\("
    assert not re.findall(ways, text("page.js"))


def test_elements_that_the_script_looks_for_are_there() -> None:
    wanted = set(re.findall(r"byId\('([^']+)'\)", text("page.js")))
    assert len(wanted) > 15
    assert wanted <= set(ids())


def test_references_within_the_page_lead_somewhere() -> None:
    references = [
        attributes[name].removeprefix("#")
        for _, attributes in Elements().found
        for name in ("aria-labelledby", "href")
        if attributes.get(name, "").startswith("#") or (name == "aria-labelledby" and name in attributes)
    ]
    references += re.findall(r"labelledby: '([^']+)'", text("page.js"))
    references += re.findall(r"'#([a-z]+)'", text("page.js"))
    assert len(references) > 20
    assert not set(references) - set(ids())
    assert len(ids()) == len(set(ids()))


def test_the_state_alone_is_announced_politely() -> None:
    spoken = [attributes for _, attributes in Elements().found if "aria-live" in attributes]
    assert [(attributes["id"], attributes["aria-live"]) for attributes in spoken] == [("state", "polite")]
