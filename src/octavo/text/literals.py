"""How chat templates are compiled: what they write themselves can be told from what they are given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, optimizeconst


class WrittenLiterals(CodeGenerator):
    """Compiles what a template writes itself to `Written` texts, which its module holds. Jinja's own code makes plain
    strings of literals, and of what the operator `~` joins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._literals: dict[str, str] = {}

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802
        super().visit_Template(node, frame)
        self.writeline("from octavo.text.written import concat as joined, written")
        for value, name in self._literals.items():
            self.writeline(f"{name} = written({value!r})")

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        self.write(self._code(node.as_const(frame.eval_ctx)))

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("joined((")
        for each in node.nodes:
            self.write("str(")
            self.visit(each, frame)
            self.write("), ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._code("".join(group))

    def _code(self, value: Any) -> str:
        """Python for a constant, which may be a container of constants."""
        if type(value) is str and value:
            return self._literals.setdefault(value, f"literal_{len(self._literals)}")
        if type(value) is list:
            return f"[{', '.join(map(self._code, value))}]"
        if type(value) is tuple:
            return f"({''.join(f'{self._code(each)}, ' for each in value)})"
        if type(value) is dict:
            return f"{{{', '.join(f'{self._code(key)}: {self._code(each)}' for key, each in value.items())}}}"
        return repr(value)
