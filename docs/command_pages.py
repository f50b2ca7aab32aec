"""What the reference says of commands, from the commands themselves, and how its pages become man pages.

Rule 1: a synopsis and a list of options come from click, so that no page can say something else than `--help` does.
Rule 2: what a man page has no form for is put into one that it has: a table becomes a list of terms, a link a name.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

from logknock.cli import cli
from logknock.cli.client import client

PROGRAMS: dict[str, click.Command] = {"logknock": cli, "logknock-client": client}

# `-c, --config FILE` as click writes it: the names, and what follows them.
_RECORD = re.compile(r"(?P<names>-[^ ,]+(?:(?:, | / )-[^ ,]+)*)(?: (?P<value>.+))?")
# How click calls what is a number, and what everybody else does.
_NUMBER = re.compile(r"INTEGER( RANGE)?")
_LITERAL = re.compile(r"`([^`]+)`")


def find(path: str) -> click.Context:
    """The context of `logknock rules apply`, say; raises KeyError."""
    program, *words = path.split()
    context = click.Context(PROGRAMS[program], info_name=program, **PROGRAMS[program].context_settings)
    for word in words:
        group = context.command
        command = group.get_command(context, word) if isinstance(group, click.Group) else None
        if command is None:
            raise KeyError(path)
        context = click.Context(command, parent=context, info_name=word, **command.context_settings)
    return context


def options(context: click.Context) -> Iterator[tuple[str, str, str]]:
    """Names, value and meaning of each option, in the order of `--help`."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record and (form := _RECORD.fullmatch(record[0])):
            yield form["names"], _NUMBER.sub("N", form["value"] or ""), record[1]


class _Synopsis(Directive):
    """`{synopsis} logknock rules apply`: how the command is called."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        context = find(self.arguments[0])
        line = nodes.paragraph("", "", nodes.strong(text=context.command_path), classes=["synopsis"])
        for names, value, _ in options(context):
            name = names.split(", ")[0]
            if name not in ("-h", "-V"):
                line += [nodes.Text(" ["), nodes.strong(text=name)]
                if value:
                    line += [nodes.Text(" "), nodes.emphasis(text=value)]
                line += nodes.Text("]")
        for parameter in context.command.get_params(context):
            if isinstance(parameter, click.Argument):
                line += [nodes.Text(" "), nodes.emphasis(text=parameter.make_metavar())]
        if isinstance(context.command, click.Group):
            line += [nodes.Text(" "), nodes.emphasis(text="COMMAND"), nodes.Text(" ...")]
        return [line]


class _Options(Directive):
    """`{options} logknock rules apply`: its options, each with what `--help` says of it."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        found = nodes.option_list()
        for names, value, meaning in options(find(self.arguments[0])):
            group = nodes.option_group()
            for name in names.split(", "):
                group += nodes.option("", nodes.option_string(text=name))
                if value:
                    group[-1] += nodes.option_argument(text=value, delimiter=" ")
            words = nodes.description("", nodes.paragraph("", "", *_words(meaning)))
            found += nodes.option_list_item("", group, words)
        return [found]


def _words(text: str) -> Iterator[nodes.Node]:
    """The text, with what stands in backticks as what it is."""
    for at, part in enumerate(_LITERAL.split(text)):
        if part:
            yield nodes.literal(text=part) if at % 2 else nodes.Text(part)


class _TablesAsTerms(SphinxPostTransform):
    """In a man page a row is a term and what is said of it: a table as wide as ours does not fit a terminal."""

    default_priority = 400
    builders = ("man",)

    def run(self, **kwargs: Any) -> None:
        for table in list(self.document.findall(nodes.table)):
            heads = [cell.astext() for row in table.findall(nodes.thead) for cell in row.findall(nodes.entry)]
            terms = nodes.definition_list()
            for body in table.findall(nodes.tbody):
                for row in body.findall(nodes.row):
                    terms += _term(heads, list(row.findall(nodes.entry)))
            table.replace_self(terms)


def _term(heads: list[str], cells: list[nodes.entry]) -> nodes.definition_list_item:
    """The first cell, and below it the last one; what is between them has its column's name before it."""
    first, *between, last = cells
    meaning = nodes.definition("", nodes.paragraph("", "", *_inline(last)))
    for head, cell in zip(heads[1:], between, strict=False):
        meaning += nodes.paragraph("", "", nodes.Text(f"{head}: "), *_inline(cell))
    return nodes.definition_list_item("", nodes.term(text=first.astext()), meaning)


def _inline(cell: nodes.entry) -> list[nodes.Node]:
    return [child.deepcopy() for paragraph in cell.children for child in paragraph.children]


class _PagesByName(SphinxPostTransform):
    """In a man page a link to what is none says where that is."""

    default_priority = 5  # before what resolves links
    builders = ("man",)

    def run(self, **kwargs: Any) -> None:
        pages = {page[0] for page in self.config.man_pages}
        for link in list(self.document.findall(addnodes.pending_xref)):
            file = link["reftarget"].partition("#")[0]
            name = os.path.normpath(os.path.join(os.path.dirname(link["refdoc"]), file))
            if file and name.removesuffix(".md") not in pages and name not in link.astext():
                link.parent.insert(link.parent.index(link) + 1, nodes.Text(f" ({name})"))


def _shorten(app: Sphinx, env: BuildEnvironment) -> None:
    """In lists of pages a man page goes by its name alone."""
    for page, *_ in app.config.man_pages:
        name = next(env.tocs[page].findall(nodes.reference))
        name[:] = [nodes.Text(name.astext().partition(" - ")[0])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("synopsis", _Synopsis)
    app.add_directive("options", _Options)
    for language in ("nft", "ssh"):  # which Pygments does not know
        app.add_lexer(language, TextLexer)
    app.connect("env-updated", _shorten)
    app.add_post_transform(_PagesByName)
    app.add_post_transform(_TablesAsTerms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
