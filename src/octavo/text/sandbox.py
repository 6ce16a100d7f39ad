"""Jinja as Hugging Face sets it up for chat templates, in a sandbox in which nothing is without bounds.

The sandbox keeps a template away from Python. The bounds are put into its syntax tree before it is compiled: a step at
the start of every loop's and macro's body, and checks around what makes values. See `octavo.text.bounds`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import datetime
from functools import cache, partial, wraps
from itertools import chain
from typing import Any

from jinja2 import nodes, pass_context, pass_environment
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from octavo.text import bounds
from octavo.text.literals import WrittenLiterals
from octavo.text.written import concat, unwritten

_MAX_SOURCE = 1 << 18
"""Characters of a template; the longest published ones have a tenth of it."""

_MAX_COUNT = 100_000
"""Numbers in a range, or what a filter fills up to."""

# Bytes and numbers of any length, and what makes them; nothing for prompts.
_UNSAFE_METHODS = frozenset({"encode", "translate", "maketrans", "to_bytes", "from_bytes", "fromkeys"})

_TURN, _CALL = 8, 64
"""Units of work of a turn of a loop, and of a call of a macro, that do nothing."""

_TAKING_TEXT = frozenset({"join", "partition", "replace", "rpartition"})
"""Methods of a client's strings that take a template's: their result may have what the template wrote, and may have the
very object that was looked for in the place of what was found."""

# Templates cannot spell these names.
_STEP, _MADE, _SHOWN, _SPREAD = "a step", "made here", "shown here", "spread here"


def _concat(pieces: Iterable[str]) -> str:
    """What a template, or a part of one, has written: a list of pieces, or a generator of pieces still to be made."""
    if isinstance(pieces, list):
        bounds.current().reserve(sum(map(len, pieces)))
        return concat(pieces)
    output: list[str] = []
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > bounds.SIZE_LIMIT:
            raise bounds.OutOfBounds(f"more than {bounds.SIZE_LIMIT} characters of output")
        output.append(piece)
    bounds.current().reserve(total)
    return concat(output)


@cache
def environment() -> Sandbox:
    return Sandbox()


class Generation(Extension):
    """`{% generation %}` marks what training takes a loss on; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """To be used inside a `bounds.Budget` alone."""

    code_generator_class = WrittenLiterals
    concat = staticmethod(_concat)
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
        )
        del self.globals["lipsum"]
        self.globals |= {
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": _range,
            "strftime_now": _strftime_now,
        }
        self.filters = {name: _bounded_filter(name, function) for name, function in FILTERS.items() if name != "urlize"}
        self.filters |= {name: _bounded_filter(name, function) for name, function in _OWN_FILTERS.items()}
        self.filters |= {"tojson": _to_json, _STEP: _step, _MADE: _made, _SHOWN: _shown, _SPREAD: _spread}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        _Bounding(self).visit(source)
        return super()._generate(source, *args, **kwargs)

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if len(source) > _MAX_SOURCE:
            raise bounds.OutOfBounds(f"a template of {len(source)} characters, more than {_MAX_SOURCE}")
        return super().from_string(source, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _UNSAFE_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if type(value) is str or super().wrap_str_format(value) is None:
            return None
        return partial(self._format, value.__self__, value.__name__ == "format_map")

    def _format(self, text: str, is_map: bool, /, *args: Any, **kwargs: Any) -> str:
        formatter = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)
        if is_map:
            [kwargs], args = args, ()
        bounds.current().reserve(len(text))
        result = formatter.vformat(text, args, kwargs)
        return type(text)(result) if isinstance(text, Markup) else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            return left % right if type(left) is int else bounds.modulo(left, right)
        return bounds.multiply(left, right) if operator == "*" else bounds.power(left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = bounds.current()
        for argument in chain(args, kwargs.values()):  # which a macro may hold as one value
            if isinstance(argument, list | tuple | dict):
                budget.weigh(argument)
        if isinstance(text := getattr(__obj, "__self__", None), str):
            if type(text) is str and __obj.__name__ in _TAKING_TEXT:
                __obj = getattr(unwritten(text), __obj.__name__)
            if (size := bounds.METHODS.get(__obj.__name__)) is not None:
                given = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
                budget.reserve(size(text, *args, **given))
            else:
                budget.spend(len(text) >> 4)
        return budget.made(super().call(__context, __obj, *args, **kwargs))


class _FieldBounds:
    def format_field(self, value: Any, format_spec: str) -> str:
        bounds.current().reserve(bounds.current().weigh(value) + bounds.check_widths(format_spec))
        return str(super().format_field(value, format_spec))  # type: ignore[misc]


class _Formatter(_FieldBounds, SandboxedFormatter):
    """Widths and what is shown count."""


class _EscapeFormatter(_FieldBounds, SandboxedEscapeFormatter):
    """The same for text that is escaped."""


class _Namespace(Namespace):
    """One that shows nothing of what it holds, which may hold others."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Bounding:
    """Puts bounds into a syntax tree, in place: steps at the start of bodies, checks around what makes values.

    Text that is put together to be written at once needs no check but its own: the whole output is counted.
    """

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment
        self._buffers = 0  # that the place is in: macros and the like, whose output is a value

    def visit(self, node: nodes.Node) -> None:
        buffered = isinstance(node, _BUFFERED) or (isinstance(node, nodes.For) and node.recursive)
        self._buffers += buffered
        for name, child in node.iter_fields():
            if isinstance(child, nodes.Node):
                setattr(node, name, self._child(child, node))
            elif isinstance(child, list):
                child[:] = [self._child(item, node) if isinstance(item, nodes.Node) else item for item in child]
        self._buffers -= buffered
        if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and node.dyn_args is not None:
            node.dyn_args = self._filter(node.dyn_args, _SPREAD, node)
        if isinstance(node, _WITH_STEPS):
            node.body.insert(0, nodes.ExprStmt(self._step(node.body, node), lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(self._step([node.test], node), node.test, lineno=node.lineno)

    def _child(self, node: Any, parent: nodes.Node) -> nodes.Node:
        self.visit(node)
        written = isinstance(parent, nodes.Output)
        match node:
            case nodes.Add():
                several = _leaves(node) > _AT_ONCE
                checked = several or not (written or isinstance(parent, nodes.Add))
            case nodes.Concat():
                while len(node.nodes) > _AT_ONCE:
                    first = nodes.Concat(node.nodes[:_AT_ONCE], lineno=node.lineno)
                    node.nodes[:_AT_ONCE] = [self._filter(first, _MADE, node)]
                checked = not written
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                checked = not _is_constant(node)
            case nodes.TemplateData():
                return node
            case _:
                return self._filter(node, _SHOWN, node) if written and self._buffers else node
        return self._filter(node, _MADE, node) if checked else node

    def _step(self, body: list[Any], place: nodes.Node) -> nodes.Filter:
        cost = (_TURN if isinstance(place, nodes.For) else _CALL) + _cost(body)
        return self._filter(nodes.Const(cost), _STEP, place)

    def _filter(self, node: nodes.Expr, name: str, place: nodes.Node) -> nodes.Filter:
        call = nodes.Filter(node, name, [], [], None, None, lineno=place.lineno)
        call.set_environment(self._environment)
        return call


_AT_ONCE = 8
"""Values that one expression puts together before the result is checked."""

_BUFFERED = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)
_WITH_STEPS = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


def _leaves(node: nodes.Node) -> int:
    if isinstance(node, nodes.Add):
        return _leaves(node.left) + _leaves(node.right)
    return 0 if isinstance(node, nodes.Const) else 1


def _is_constant(node: nodes.Node) -> bool:
    """Whether a value is written out in the source, which bounds it."""
    if isinstance(node, nodes.List | nodes.Tuple | nodes.Dict | nodes.Pair):
        return all(map(_is_constant, node.iter_child_nodes()))
    return isinstance(node, nodes.Const)


def _cost(body: Iterable[nodes.Node]) -> int:
    """Units of work of statements, those aside that count for themselves."""
    cost = 0
    for node in body:
        cost += 1
        if isinstance(node, nodes.TemplateData):
            cost += len(node.data) >> 2
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            cost += len(node.value) >> 2
        cost += _cost(node.iter_child_nodes(exclude=("body",) if isinstance(node, _WITH_STEPS) else None))
    return cost


@pass_context  # so that it is not computed once and for all when the template is compiled
def _step(context: Context, units: int) -> bool:
    bounds.current().spend(units)
    return True


@pass_context
def _made(context: Context, value: Any) -> Any:
    return bounds.current().made(value)


@pass_context
def _spread(context: Context, values: Any) -> Any:
    """What becomes arguments, one by one."""
    if isinstance(values, Sized) and len(values) > _MAX_COUNT:
        raise bounds.OutOfBounds(f"{len(values)} arguments, more than {_MAX_COUNT}")
    return values


@pass_context
def _shown(context: Context, value: Any) -> str:
    """What is written into a buffer."""
    text = value if isinstance(value, str) else str(value)
    bounds.current().reserve(len(text))
    return text


def _raise_exception(message: str) -> None:
    raise bounds.RaisedByTemplate(message)


def _range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > _MAX_COUNT:
        raise bounds.OutOfBounds(f"a range of {len(numbers)} numbers, more than {_MAX_COUNT}")
    return numbers


def _strftime_now(form: str) -> str:
    if len(form) > 200:
        raise bounds.OutOfBounds("a date format of more than 200 characters")
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None and separators is None:
        return str(bounds.current().made(encoder.encode(value)))
    if isinstance(indent, int) and indent > _MAX_COUNT:
        raise bounds.OutOfBounds(f"an indentation of {indent}")
    return _concat(encoder.iterencode(value))


# Filters: what is checked before Jinja's own is called.


def _fill(value: Any, count: Any, *_: Any, **__: Any) -> int:
    if bounds.whole(count) > _MAX_COUNT:
        raise bounds.OutOfBounds(f"{count} at a time, more than {_MAX_COUNT}")
    return 0


def _indent(value: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    each = len(width) if isinstance(width, str) else max(bounds.whole(width), 0)
    text = str(value)
    return len(text) + (text.count("\n") + 1) * each


def _join(value: Any, d: Any = "", attribute: Any = None) -> int:
    return bounds.of_join(str(d), value)


def _round(value: Any, precision: Any = 0, *_: Any, **__: Any) -> int:
    if abs(bounds.whole(precision)) > 1000:
        raise bounds.OutOfBounds(f"a precision of {precision}, more than 1000")
    return 0


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise TypeError("sum needs numbers")
    return 0


@pass_environment
def _joined(environment: Sandbox, value: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return unwritten(str(d)).join(map(str, value))


def _replaced(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return unwritten(str(value)).replace(str(old), str(new), -1 if count is None else count)


def _titled(value: Any) -> str:
    return unwritten(str(value)).changed(FILTERS["title"])


_OWN_FILTERS: dict[str, Callable[..., str]] = {"join": _joined, "replace": _replaced, "title": _titled}
"""Jinja's own lose what is `Written`."""

_WRAPPED = 16
"""Units of work of a character that is wrapped: `textwrap` takes words one by one, in Python."""


def _wrap(value: Any, width: Any = 79, break_long_words: Any = True, wrapstring: Any = None, *_: Any) -> int:
    size = bounds.current().weigh(value)
    bounds.current().spend(_WRAPPED * size)
    return size * (1 + len(wrapstring or ""))


def _old_format(value: Any, *args: Any, **kwargs: Any) -> int:
    bounds.modulo(str(value), kwargs or args)
    return 0


_FILTER_SIZES: dict[str, Callable[..., int]] = {
    "batch": _fill,
    "center": bounds.of_padding,
    "format": _old_format,
    "indent": _indent,
    "join": _join,
    "replace": bounds.of_replacement,
    "round": _round,
    "slice": _fill,
    "sum": _sum,
    "wordwrap": _wrap,
}

# fmt: off
_UNCOUNTED = frozenset({
    "abs", "attr", "capitalize", "count", "d", "default", "e", "escape", "first", "float", "forceescape", "int", "last",
    "length", "lower", "safe", "string", "trim", "upper",
})
# fmt: on
"""Filters that make nothing, or nothing much longer than what they are given, in no time."""


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's that counts what it is given and what it makes; what it makes one by one it makes at once."""
    if name in _UNCOUNTED:
        return function
    size = _FILTER_SIZES.get(name)
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # with the mark for that argument
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = bounds.current()
        value = args[first]
        if isinstance(value, Sized):
            budget.spend(4 * len(value))  # they go through it one by one
        if size is not None:
            budget.reserve(size(*args[first:], **kwargs))
        result = function(*args, **kwargs)
        return budget.made(list(result) if isinstance(result, Iterator) else result)

    return bounded
