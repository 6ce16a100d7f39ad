"""Command-line options, derived from settings, and help texts that show every name whole."""

import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import click

from octavo.settings import SWITCH, Setting

NARROW, WIDE = 30, 100


class HelpFormatter(click.HelpFormatter):
    """Writes help texts. A name that is longer than its column, or the terminal, is never cut or broken."""

    def __init__(self) -> None:
        width = shutil.get_terminal_size().columns
        super().__init__(width=min(max(width, NARROW), WIDE))

    def write_text(self, text: str) -> None:
        """Write paragraphs."""
        for paragraph in text.split("\n\n"):
            self.write_paragraph()
            for line in self._wrap(paragraph, self.width - self.current_indent):
                self._write(line)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 20, col_spacing: int = 2) -> None:
        """Write names, each with its text: beside it, where all names are short, or else below it."""
        rows = list(rows)
        column = max((len(name) for name, _ in rows), default=0)
        for name, text in rows:
            if column <= col_max:
                lines = self._wrap(text, self.width - column - col_spacing - self.current_indent) or [""]
                self._write(name.ljust(column + col_spacing) + lines[0])
                for line in lines[1:]:
                    self._write(" " * (column + col_spacing) + line)
            else:
                for line in self._wrap(name, self.width - self.current_indent):
                    self._write(line)
                for line in self._wrap(text, self.width - self.current_indent - 6):
                    self._write(" " * 6 + line)

    def _wrap(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, max(width, 10), break_long_words=False, break_on_hyphens=False)

    def _write(self, line: str) -> None:
        self.write(" " * self.current_indent + line.rstrip() + "\n")


class Context(click.Context):
    """The context of our commands."""

    def make_formatter(self) -> click.HelpFormatter:
        """What help texts are written with."""
        return HelpFormatter()


class Command(click.Command):
    """A command. Switches may have their value behind them, as in --reload=false."""

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was given."""
        switches = {name: each.secondary_opts[0] for each in self.params if each.secondary_opts for name in each.opts}
        return super().parse_args(ctx, list(_plain_switches(args, switches)))

    def get_short_help_str(self, limit: int = 45) -> str:
        """What the list of commands says of it: all of its first paragraph."""
        return (self.help or "").partition("\n\n")[0]


def _plain_switches(args: list[str], switches: Mapping[str, str]) -> Iterator[str]:
    """--flag for --flag=true and --flag true, and what switches it off for false."""
    words = iter(args)
    for word in words:
        name, given, value = word.partition("=")
        if word == "--":
            yield from (word, *words)
        elif name not in switches:
            yield word
        elif given:
            yield {**dict.fromkeys(_ON, name), **dict.fromkeys(_OFF, switches[name])}.get(value.lower(), word)
        else:
            following = next(words, None)
            yield switches[name] if following in _OFF[:2] else name
            if following is not None and following not in (*_ON[:2], *_OFF[:2]):  # which are no names of models
                yield from _plain_switches([following, *words], switches)


_ON, _OFF = ("true", "1", "on"), ("false", "0", "off")


class Group(click.Group):
    """A command with commands of its own."""

    context_class = Context
    command_class = Command
    group_class = type


def settings_options(settings: Iterable[Setting]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every setting. It gets what was written, by the settings' names: None, or () where
    there may be several, for what was not."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed(list(settings)):
            command = _option(each)(command)
        return command

    return decorate


def _option(each: Setting) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flags = list(each.flags)
    switch = each.kind is SWITCH
    if switch:
        flags[0] += f"/{flags[0].replace('--', '--no-', 1)}"
    return click.option(
        *flags,
        each.name,
        default=None,
        multiple=each.many,
        # Values are read where those of the environment and of files are.
        type=click.BOOL if switch else click.UNPROCESSED,
        metavar=None if switch else each.metavar or "|".join(each.choices) or each.kind.metavar,
        help=f"{each.help} Default: {default_words(each)}.",
    )


def default_words(each: Setting) -> str:
    """A setting's default, as a person reads it."""
    if each.default in (None, ()):
        return each.without or "none"
    match each.default:
        case bool():
            return str(each.default).lower()
        case float():
            return f"{each.default:g}"
    return str(each.default)


model_argument = click.argument("model", required=False)
model_option = click.option("--model", "model_option", metavar="MODEL", help="The same, as an option.")
