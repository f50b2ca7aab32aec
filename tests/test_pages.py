"""Every page that somebody follows is followed by a test, and every configuration in the documentation is one."""

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from logknock import config, profiles

from .config_files import DOOR, write
from .e2e.booted import PROJECT
from .e2e.pages import Block, Page, agree, read

FOLLOWED = sorted(
    str(path.relative_to(PROJECT)) for path in (PROJECT / "docs/tutorial.md", *PROJECT.glob("docs/howto/*.md"))
)
PAGES = sorted({"README.md", *(str(path.relative_to(PROJECT)) for path in PROJECT.glob("docs/**/*.md"))})
LANGUAGES = {"sh", "toml", "text"}

# What a page says of a machine that only knocks.
_CLIENT = "profiles"


def claims() -> dict[str, list[str]]:
    """The test modules that follow each page."""
    found = defaultdict(list)
    for module in sorted((PROJECT / "tests").rglob("test_*.py")):
        for name in re.findall(r'\bfollows\("([^"]+)"\)', module.read_text()):
            found[name].append(module.name)
    return found


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_with_commands_is_followed_by_one_test_module(name: str) -> None:
    if read(name).commands:
        assert len(claims()[name]) == 1


def test_what_is_followed_is_there() -> None:
    assert [name for name in claims() if not (PROJECT / name).exists()] == []


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_has_commands_configurations_and_output(name: str) -> None:
    """A block without a language would be none of them, and nobody would run it."""
    strange = [f"{name}:{block.line}: {block.language}" for block in read(name).blocks if not known(block)]
    assert strange == []


def known(block: Block) -> bool:
    """Whether it is clear what a block is; other languages are shown, and never shells."""
    return block.language in LANGUAGES or re.fullmatch(r"\{\w+\}|ini|yaml|json|nft", block.language) is not None


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=f"{b.page}:{b.line}") for n in PAGES for b in read(n).written_in("toml")]
)
def test_a_configuration_of_the_documentation_is_one(block: Block, tmp_path: Path) -> None:
    """A part of one is completed: what says nothing of a door stands beside one, and keys alone belong to one."""
    parsed = tomllib.loads(block.text)
    if _CLIENT in parsed:
        profiles.load(write(tmp_path, block.text))
        return
    text = block.text
    if not any(isinstance(value, dict) for value in parsed.values()):
        text = f'[doors.ssh]\nopens = ["22/tcp"]\n{text}'
        parsed = tomllib.loads(text)
    if "doors" not in parsed:
        text += DOOR
    config.load(write(tmp_path, text))


# ---- the reader

SOME = """\
# A page

```sh
one
```

## A part

<!-- run: client -->
```sh
# no heading
two
```

   ````text
   ```
   shown
   ````

### Within

```toml
a = 1
```

## Another

<!-- run: client -->

```sh
three
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = tmp_path / "page.md"
    path.write_text(SOME)
    return read(str(path))


def test_blocks_come_in_order_with_what_is_known_of_them(page: Page) -> None:
    assert [tuple(block)[1:] for block in page.blocks] == [
        (4, ("A page",), "sh", "one\n", ""),
        (11, ("A page", "A part"), "sh", "# no heading\ntwo\n", "client"),
        (16, ("A page", "A part"), "text", "```\nshown\n", ""),
        (23, ("A page", "A part", "Within"), "toml", "a = 1\n", ""),
        (31, ("A page", "Another"), "sh", "three\n", ""),
    ]


def test_a_part_of_a_page_is_what_is_under_its_heading(page: Page) -> None:
    assert [block.line for block in page.under("A part").blocks] == [11, 16, 23]
    assert page.not_run() == [f"{page.name}:{line}" for line in (4, 11, 31)]


def test_what_is_shown_was_said() -> None:
    said = "begins\nfrom 10.99.0.2  opened, 29.4s left\nfrom fd99::2  closed\n"
    agree("from 203.0.113.7 opened, 30s left\n…\nfrom 2001:db8::7 closed\n", said)
    for wrong in ("from 203.0.113.7 refused", "from 2001:db8::7 closed\nfrom 203.0.113.7 opened, 30s left"):
        with pytest.raises(AssertionError, match="was not said"):
            agree(wrong, said)
