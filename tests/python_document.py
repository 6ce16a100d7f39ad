"""Writes docs/python.md: what `import octavo` offers, from the signatures and docstrings.

python -m tests.python_document      prints it; `make docs` writes it, and a test asks whether it is up to date.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator

import octavo

HEAD = """# Octavo in a Python program

Generated from the docstrings by `make docs`. All of it is imported from `octavo`; [examples/](../examples/) has whole
programs.
"""
ORDER = (
    "LLM",
    "SamplingParams",
    "StructuredOutputsParams",
    "RequestOutput",
    "CompletionOutput",
    "StreamChunk",
    "create_app",
)
MADE_BY_USERS = ("LLM", "SamplingParams", "StructuredOutputsParams", "create_app")
LINE = 120
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
ENTRY = re.compile(r"(?:^|(?<=\. ))((?:\w+, )*\w+): ")


def document() -> str:
    """The whole document."""
    names = [*ORDER, *sorted(set(octavo.__all__) - set(ORDER))]
    return "\n".join([HEAD, *(line for name in names for line in _entry(name))]) + "\n"


def _entry(name: str) -> Iterator[str]:
    thing = getattr(octavo, name)
    yield f"## {name}\n"
    if name in MADE_BY_USERS:
        yield from _signature(name, thing)
    yield from _prose(thing)
    for method, each in inspect.getmembers(thing, inspect.isroutine) if inspect.isclass(thing) else ():
        if method in vars(thing) and not method.startswith("_") and inspect.getdoc(each):
            yield f"### {name}.{method}\n"
            yield from _signature(method, each)
            yield from _prose(each)


def _signature(name: str, thing: object) -> Iterator[str]:
    """Names and defaults; the text says what they are."""
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        given = [
            inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=_default(each))
            for each in dataclasses.fields(thing)
        ]
    else:
        parameters = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
        given = [each.replace(annotation=inspect.Parameter.empty) for each in parameters if each.name != "self"]
    written = [str(each).replace("'", '"') for each in given]
    if by_name := next((place for place, each in enumerate(given) if each.kind is each.KEYWORD_ONLY), 0):
        written.insert(by_name, "*")
    whole = f"{name}({', '.join(written)})"
    if len(whole) > LINE:
        whole = "\n".join([f"{name}(", *(f"    {each}," for each in written), ")"])
    yield f"```python\n{whole}\n```\n"


def _default(field: dataclasses.Field[object]) -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _prose(thing: object) -> Iterator[str]:
    """A docstring as Markdown: sections as lists, what is indented as code."""
    section = ""
    block: list[str] = []
    for line in [*(inspect.getdoc(thing) or "").splitlines(), ""]:
        if found := SECTION.fullmatch(line):
            section = found[1]
            yield f"{section}:\n"
        elif not line:
            if block:
                yield from _code(block) if not section and block[0].startswith("    ") else block
                yield ""
            block = []
            section = ""
        elif section and line.startswith("        "):
            block[-1] += f" {line.strip()}"
        elif section:
            block.append(f"- {ENTRY.sub(_names, line.strip())}")
        else:
            block.append(line)


def _names(found: re.Match[str]) -> str:
    return ", ".join(f"`{name}`" for name in found[1].split(", ")) + ": "


def _code(block: list[str]) -> Iterator[str]:
    yield "```python"
    yield from (line.removeprefix("    ") for line in block)
    yield "```"


if __name__ == "__main__":
    sys.stdout.write(document())
