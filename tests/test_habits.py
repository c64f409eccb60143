"""What is written down for those who change the project agrees: hooks with `make check`, the guide with the folders."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)
    assert found, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def test_a_commit_is_checked_by_what_make_check_runs_before_the_tests() -> None:
    hooks = re.findall(r"^ +entry: (\.venv/.*)$", text(".pre-commit-config.yaml"), re.MULTILINE)
    assert [*hooks, "$(MAKE) test"] == recipe("check")


def test_hooks_bring_no_tools_of_versions_of_their_own() -> None:
    config = text(".pre-commit-config.yaml")
    assert set(re.findall(r"repo: (.*)", config)) == {"local"}
    assert set(re.findall(r"language: (.*)", config)) == {"system"}
    assert not re.findall(r"^ *(?:rev|additional_dependencies):", config, re.MULTILINE)


def test_tools_that_judge_the_code_are_held_to_a_minor_version() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    assert all(
        any(re.fullmatch(rf"{tool} ==\d+\.\d+\.\*", need) for need in extras["dev"])
        for tool in ("build", "check-wheel-contents", "mypy", "ruff", "twine")
    )


def test_make_targets_that_the_guide_names_exist() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text("CONTRIBUTING.md"), re.MULTILINE))
    assert {"venv", "check", "format"} <= named
    for target in named:
        assert re.search(rf"^{target}:", text("Makefile"), re.MULTILINE), target


def test_files_and_folders_that_the_guide_names_exist() -> None:
    guide = text("CONTRIBUTING.md")
    links = re.findall(r"\]\(([^):#]+)\)", guide)
    paths = re.findall(r"(?<![\w/.])(?:tests|src|interop)/[\w/.-]*\w/?", guide)
    assert len(links) > 3
    assert len(paths) > 3
    for name in (*links, *paths):
        assert (ROOT / name).exists(), name


def test_tests_that_the_guide_runs_exist() -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text("CONTRIBUTING.md")):
        assert f"def {name}(" in text(file)


def test_the_readme_names_the_first_and_the_last_python_of_the_classifiers() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    versions = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={versions[0]}"
    [sentence] = re.findall(r"It runs on .*?\.(?=\s)", text("README.md"), re.DOTALL)
    assert set(re.findall(r"\b3\.\d+", sentence)) == {versions[0], versions[-1]}


def test_the_changelog_is_kept_in_its_form() -> None:
    headings = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = re.findall(r"^### (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_architecture_names_every_module_on_its_floor_and_none_that_is_gone() -> None:
    page = text("ARCHITECTURE.md")
    house = page[page.index("## The house") : page.index("## The story of a call")]
    rows = re.findall(r"^\| \d+ \| \[?`(\w+)/`\S* \| (.*) \|$", house, re.MULTILINE)
    sections = re.findall(r"^### `(\w+)/`\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    named = {
        folder: set(re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", told))
        for folder, told in {**dict(rows), **dict(sections)}.items()
    }
    http2 = page[page.index("## HTTP/2: one contract") : page.index("## Where the design differs")]
    named["http2"] = set(re.findall(r"^\| (`.*?) \|", http2, re.MULTILINE))
    named["http2"] = set(re.findall(r"`(\w+\.py)`", " ".join(named["http2"])))
    source = ROOT / "src" / "rawgrpc_proxy"
    folders = {path.name for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(named) == folders
    for folder, names in named.items():
        assert names == {path.name for path in (source / folder).rglob("*.py")} - {"__init__.py"}, folder
    for path in source.glob("*.py"):
        assert path.name in {"__init__.py", "__main__.py"} or f"`{path.name}`" in house, path.name
