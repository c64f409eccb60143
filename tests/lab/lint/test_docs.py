"""docs/lint.md explains the rules that there are, in their order, with what the linter says of them."""

import re
from pathlib import Path

import pytest

from rawgrpc_proxy.lab.lint.rules import RULES, Rule

PAGE = (Path(__file__).parents[3] / "docs" / "lint.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `([\w-]+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_each_rule_has_its_section_in_order() -> None:
    assert re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE) == list(RULES)
    assert list(SECTIONS) == list(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_it_says_what_why_and_what_to_do(rule: Rule) -> None:
    text = SECTIONS[rule.id]
    assert text.strip().splitlines()[0] == f"{rule.severity.word} · {rule.section} · {rule.text}"
    assert re.search(r"^\*\*Why\.\*\* \S", text, re.MULTILINE)
    assert re.search(r"^\*\*Mend\.\*\* \S", text, re.MULTILINE)
    if "By what writes the frames" not in text and "Switch push off" not in text:
        mend = text.partition("**Mend.**")[2]
        for library in ("grpcio", "grpc-go", "grpc-java", "grpc-js", "tonic"):
            assert library in mend, library


def test_links_lead_to_sections() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
