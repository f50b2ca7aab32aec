"""The documentation is whole: it is built without a warning, every link in it leads somewhere, and nothing that the
program has is without a place in it. Links to other hosts are looked at as text only: the tests have no network.
"""

import ast
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import click
import pytest

from logknock import errors
from logknock.cli import cli
from logknock.cli.client import client

from .e2e.booted import PROJECT

REFERENCE = PROJECT / "docs/reference"
DESIGN = PROJECT / "docs/explanation/design.md"
SOURCES = [
    *(PROJECT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((PROJECT / "docs").glob("**/*.md")),
]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PROJECT)) for path in paths]


# ---- as it is built


class Built(NamedTuple):
    """Where `make docs` and `make man` have put it, and what they had to say."""

    site: Path
    man: Path
    exit_code: int
    said: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """By the targets of the Makefile, in which every warning is an error; what can be built is built all the same."""
    folder = tmp_path_factory.mktemp("docs")
    places = [f"{name}={folder / name.lower()}" for name in ("DOCS", "MAN", "DOCTREES")]
    argv = ["make", "--keep-going", "--no-print-directory", "docs", "man", *places]
    made = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True)
    return Built(folder / "docs", folder / "man", made.returncode, made.stderr)


def test_site_and_man_pages_are_built_without_a_warning(built: Built) -> None:
    assert (built.exit_code, built.said) == (0, "")


class Page(HTMLParser):
    """What a page of the site holds: targets, links, and what a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.ids, self.links, self.fetched = path, set[str](), list[str](), list[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.ids.add(value)
            elif tag == "a" and name == "href":
                self.links.append(value)
            elif name in ("src", "href", "srcset", "data", "action", "poster"):
                self.fetched.append(value)


@pytest.fixture(scope="module")
def site(built: Built) -> dict[Path, Page]:
    return {path: Page(path) for path in built.site.rglob("*.html")}


def test_a_page_of_the_site_asks_nothing_of_another_host(built: Built, site: dict[Path, Page]) -> None:
    """Nobody but the site's own host learns what somebody reads."""
    fetched = {where for page in site.values() for where in page.fetched if urlsplit(where).netloc}
    for style in built.site.rglob("*.css"):
        fetched |= set(re.findall(r"(?:@import|url\()\s*['\"]?((?:https?:)?//[^'\")]+)", style.read_text()))
    assert fetched == set()


def test_each_link_of_the_site_leads_to_a_page_and_a_place_on_it(site: dict[Path, Page]) -> None:
    dead = []
    for page in site.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            is_there = unquote(parts.fragment) in site[target].ids | {""} if target in site else target.is_file()
            if not is_there:
                dead.append(f"{page.path.name}: {link}")
    assert dead == []


def test_each_page_is_on_the_site(built: Built) -> None:
    assert [name for name in names(SOURCES) if not (built.site / name).with_suffix(".html").exists()] == []


def test_the_front_page_leads_to_the_documentation(built: Built) -> None:
    assert (built.site / "index.html").read_text().count("docs/index.html") == 2


# ---- as it is written, for who reads it on a code forge


def prose(path: Path) -> str:
    """The page without what is shown as it stands."""
    text = re.sub(r"^( *)(`{3,})[^\n]*\n.*?^\1\2 *$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^()\s]+)\)", prose(path))


def anchors(path: Path) -> set[str]:
    """The targets that a forge makes of headings: small letters, no punctuation, dashes for blanks."""
    text = re.sub(r"^( *)(`{3,})[^\n]*\n.*?^\1\2 *$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("name", names(SOURCES))
def test_each_link_of_a_page_leads_to_a_file_and_a_heading(name: str) -> None:
    path, dead = PROJECT / name, []
    for link in links(path):
        file, _, anchor = link.partition("#")
        if urlsplit(link).scheme:
            continue
        target = (path.parent / unquote(file)).resolve() if file else path
        if not target.exists() or PROJECT not in target.parents or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


ELSEWHERE = sorted({link for path in SOURCES for link in links(path) if urlsplit(link).scheme})


@pytest.mark.parametrize("link", ELSEWHERE)
def test_a_link_to_another_host_is_well_formed(link: str) -> None:
    """Whether anybody answers there is for `sphinx-build -b linkcheck`, which needs a network."""
    assert re.fullmatch(r"https://(?:[a-z0-9-]+\.)+[a-z]{2,}(?:/[\w./%~#-]*)?", link)


@pytest.mark.parametrize("folder", ["howto", "reference", "explanation"])
def test_the_index_of_a_part_leads_to_each_of_its_pages(folder: str) -> None:
    """For readers on a forge, where Sphinx's own table of contents is not shown."""
    index = PROJECT / "docs" / folder / "index.md"
    pages = {path.name for path in index.parent.glob("*.md")} - {index.name}
    assert pages - {link.partition("#")[0] for link in links(index)} == set()


# ---- man pages


def commands() -> Iterator[click.Context]:
    """Every command there is, with those who have it above."""

    def walk(context: click.Context) -> Iterator[click.Context]:
        yield context
        if isinstance(group := context.command, click.Group):
            for name in group.list_commands(context):
                command = group.get_command(context, name)
                assert command is not None
                yield from walk(click.Context(command, context, name, **command.context_settings))

    for name, command in (("logknock", cli), ("logknock-client", client)):
        yield from walk(click.Context(command, info_name=name, **command.context_settings))


COMMANDS = {context.command_path: context for context in commands()}


def page_of(command: str) -> Path:
    """The page that a command is on: `logknock rules apply` has that of `logknock rules`, the client's the host's."""
    words = command.split()
    if len(words) > 1:
        words[0] = "logknock"
    return REFERENCE / f"{'-'.join(words[:2])}.md"


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its kind."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def codes(page: Path) -> set[int]:
    """The exit codes that a page tells of."""
    return {int(code) for code in re.findall(r"^\| (\d+) \|", section(page.read_text(), "Exit status"), re.MULTILINE)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_place_for_its_synopsis_and_its_options(command: str) -> None:
    """Both are made from the command itself. A group's own page has those of its commands."""
    text, context = page_of(command).read_text(), COMMANDS[command]
    if isinstance(context.command, click.Group) and context.parent is not None:
        return
    assert f"```{{synopsis}} {command}\n" in text
    assert f"```{{options}} {command.replace('logknock-client ', 'logknock ')}\n" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_exit_code_of_a_command_is_on_its_page(command: str) -> None:
    """Those that its --help tells of, and those of whoever reads the configuration."""
    context, told = COMMANDS[command], codes(page_of(command))
    expected = {0, 1}
    if "Exit code" in (words := context.command.help or ""):
        expected = {int(code) for code in re.findall(r"(\d+):", words.partition("Exit code")[2])}
    if any(parameter.name == "config_path" for parameter in context.command.params):
        expected |= {errors.NO_PERMISSION, errors.BAD_CONFIG}
    assert expected - told == set()


def examples() -> Iterator[tuple[str, str]]:
    """The calls of our commands on the reference's pages: on which, and the words."""
    for page in sorted(REFERENCE.glob("*.md")):
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for call in re.findall(r"\blogknock(?:-client)? [^|&\n']+", block):
                yield page.name, call.strip().replace("%h", "host.example").replace("%p", "22")  # as ssh does


@pytest.mark.parametrize(("page", "call"), list(examples()))
def test_an_example_is_a_call_that_the_command_understands(page: str, call: str) -> None:
    """What it asks for need not be there: the words are parsed, and nothing is run."""
    name, *words = shlex.split(call)
    context = COMMANDS[name]
    while isinstance(group := context.command, click.Group):
        command = group.get_command(context, words[0])
        assert command is not None
        context = click.Context(command, context, words.pop(0), **command.context_settings)
    context.command.make_context(context.info_name, words, context.parent)


def test_the_exit_codes_of_all_commands_are_on_the_main_page() -> None:
    every = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert codes(REFERENCE / "logknock.md") == {0, *every}


@pytest.fixture(scope="module")
def shown(built: Built) -> dict[str, str]:
    """Each man page as man(1) shows it, without a warning."""
    pages = {}
    for page in built.man.iterdir():
        argv = ["man", "--warnings=w", "--no-hyphenation", "--no-justification", "-E", "UTF-8", "-l", str(page)]
        environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
        ran = subprocess.run(argv, capture_output=True, text=True, env=environment)
        assert (ran.returncode, ran.stderr) == (0, ""), page.name
        pages[page.name] = ran.stdout
    return pages


def test_each_command_and_file_has_a_man_page(shown: dict[str, str]) -> None:
    files = {"logknock.toml.5", "logknock-client.toml.5"}
    assert {name.rpartition(".")[0] for name in shown.keys() - files} == {page_of(command).stem for command in COMMANDS}
    assert files <= shown.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_man_page_shows_every_option_of_the_command(command: str, shown: dict[str, str]) -> None:
    (text,) = (text for name, text in shown.items() if name.rpartition(".")[0] == page_of(command).stem)
    context = COMMANDS[command]
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"^ {{7}}.*(?<!\S){re.escape(name)}(?![\w-])", text, re.MULTILINE), name


def test_a_man_page_has_the_parts_that_one_looks_for(shown: dict[str, str]) -> None:
    for name, text in shown.items():
        parts = set(re.findall(r"^[A-Z][A-Z ]+$", text, re.MULTILINE))
        wanted = {"NAME", "DESCRIPTION", "SEE ALSO"}
        if not name.endswith(".5"):
            wanted |= {"SYNOPSIS", "EXIT STATUS"} | ({"EXAMPLES"} if name != "logknock.8" else set())
        assert wanted - parts == set(), name


def test_the_man_pages_that_a_page_names_are_there(shown: dict[str, str]) -> None:
    named = {
        f"{page}.{number}" for text in shown.values() for page, number in re.findall(r"(logknock[\w.-]*)\((\d)\)", text)
    }
    assert named == shown.keys()


def test_no_line_of_a_man_page_is_wider_than_a_terminal(shown: dict[str, str]) -> None:
    """But for what is to be copied as it stands."""
    wide = [
        line
        for text in shown.values()
        for line in text.splitlines()
        if len(line) > 80 and not line.startswith(" " * 10)
    ]
    assert wide == []


def test_the_layout_has_every_module() -> None:
    """A module, or the package that it is in."""
    layout = re.findall(r"^```\n(logknock/\n.*?)^```$", DESIGN.read_text(), re.MULTILINE | re.DOTALL)[0]
    named = set(re.findall(r"\b(\w+)(?:\.py|/)", layout))
    top = {path.stem for path in (PROJECT / "logknock").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {name for name in top if not name.startswith("__")} - named == set()


# ---- the threats

THREATS = PROJECT / "docs/explanation/threats.md"
# What it says of each, without the blanks of lines that go on.
ENTRIES = {
    int(number): " ".join(text.split())
    for number, text in re.findall(
        r"^- \*\*T(\d+)\. (.*?)(?=^- \*\*T|^#|\Z)", THREATS.read_text(), re.MULTILINE | re.DOTALL
    )
}


def shown_by(entry: str) -> list[tuple[str, str]]:
    """The tests that an entry names: file and function."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", entry)


def source(file: str, function: str) -> str:
    """A test with what decorates it; empty if there is none of that name."""
    text = (PROJECT / file).read_text()
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.FunctionDef) and found.name == function:
            first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : found.end_lineno])
    return ""


def test_each_threat_is_told_of() -> None:
    assert list(ENTRIES) == list(range(1, 39))


@pytest.mark.parametrize("number", ENTRIES)
def test_what_is_against_a_threat_is_shown_by_tests_that_are_there_and_name_it(number: int) -> None:
    tests = [source(file, function) for file, function in shown_by(ENTRIES[number])]
    assert tests
    assert all(tests)
    assert any(re.search(rf"\b[Tt]{number}(?!\d)", test) for test in tests)


@pytest.mark.parametrize("number", ENTRIES)
def test_what_is_against_a_threat_is_in_files_that_are_there(number: int) -> None:
    before = ENTRIES[number].partition("Shown by")[0]
    files = re.findall(r"`((?:rules/)?[\w/]+(?:\.py|\.nft|/))`", before)
    assert files
    assert [name for name in files if not any((base / name).exists() for base in (PROJECT, PROJECT / "logknock"))] == []


def test_nothing_of_the_list_is_left_for_a_later_version() -> None:
    assert "not in this version" not in THREATS.read_text()
