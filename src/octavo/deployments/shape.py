"""What the answers to a request look like: which grammar they follow, and what reads them.

The grammar comes from what the client asks an answer to look like, from the tools that may or must be called, and from
how the model writes calls and reasoning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from octavo.deployments.deployment import Deployment
from octavo.deployments.request import Conversation, GenerationRequest, ToolUse
from octavo.errors import InvalidRequest, OctavoError
from octavo.grammar.constraint import Constraint, either, several
from octavo.grammar.errors import GrammarError
from octavo.text.answer import AnswerFormat
from octavo.text.parser import Parser, PlainParser
from octavo.text.tools import Tool

_MALFORMED = (TypeError, AttributeError, KeyError, ValueError)
"""What comes of looking into a schema that is none."""

_UNKEPT = (OctavoError, *_MALFORMED)
"""Causes of the refusal of what cannot be kept to."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How answers are written.

    Attributes:
        grammar: what they follow, for engines; empty for anything.
        parser: makes what reads one choice.
        shown: special tokens that the parser must see, though clients do not.
    """

    grammar: str = ""
    parser: Callable[[], Parser] = PlainParser
    shown: frozenset[int] = frozenset()


def shape_of(request: GenerationRequest, deployment: Deployment, prompt: str | None) -> Shape:
    """The shape of a request's answers.

    Args:
        prompt: the conversation as the model sees it, if it is one.

    Raises:
        InvalidRequest: something is asked for that cannot be kept to.
        NotCompiled: the grammar must be compiled first.
    """
    wanted, chat = _spelled(request.constraint, deployment), request.prompt
    if not isinstance(chat, Conversation):
        return Shape("" if wanted is None else _required(wanted, deployment))
    answers, use = deployment.answers, chat.tool_use
    thinking = answers.is_thinking(prompt or "")
    special = deployment.tokenizer.special_texts
    tools = None if use is None else use.callable

    def parser() -> Parser:
        return answers.parser(tools, thinking=thinking)

    shown = frozenset(special[mark] for mark in answers.markers if mark in special)
    grammars = _Grammars(deployment, thinking)
    if use is None:
        return Shape("" if wanted is None else grammars.answer(wanted), parser, shown)
    if use.required:
        return Shape(grammars.calls(use), parser, shown)
    return Shape(grammars.answer_or_calls(use, wanted), parser, shown)


def _spelled(wanted: Constraint | None, deployment: Deployment) -> Constraint | None:
    """What is wanted, in the tokens of this model. Raises InvalidRequest."""
    if wanted is None or wanted.spelled is None:
        return wanted
    tokenizer = deployment.tokenizer
    # What ends an answer cannot be within it, but for its letters.
    ends = tokenizer.stop_token_ids
    special = {text: token for text, token in tokenizer.special_texts.items() if token not in ends}
    try:
        return wanted.spelled(special)
    except GrammarError as error:
        raise InvalidRequest(error.refusal, error.path) from error


def _required(constraint: Constraint, deployment: Deployment) -> str:
    """The grammar, once it is known that it can be followed. Raises InvalidRequest, NotCompiled."""
    try:
        deployment.grammars.require(constraint)
    except GrammarError as error:
        raise InvalidRequest(error.refusal, error.path) from error
    return constraint.source


@dataclass(frozen=True, slots=True)
class _Grammars:
    """Makes the grammars of one request; each of them is known to be one that can be followed."""

    deployment: Deployment
    thinking: bool

    def answer(self, wanted: Constraint) -> str:
        """What the client wants, after the model has thought about it, if it does."""
        return _required(self._after_reasoning(wanted), self.deployment)

    def calls(self, use: ToolUse) -> str:
        """There must be a call."""
        constraint = self._calls(use, use.callable)
        assert constraint is not None, "what must be called is not free"
        return _required(constraint, self.deployment)

    def answer_or_calls(self, use: ToolUse, wanted: Constraint | None) -> str:
        """There may be calls. Arguments keep to their schemas; but a client that has not asked for that with `strict`
        must not be refused for a schema that cannot be kept to: calls are then free."""
        try:
            return self._answer_or_calls(use, wanted)
        except InvalidRequest as error:
            if isinstance(error.__cause__, _UNKEPT) and not any(tool.strict for tool in use.callable):
                return "" if wanted is None else self.answer(wanted)
            raise

    def _answer_or_calls(self, use: ToolUse, wanted: Constraint | None) -> str:
        constraint = self._calls(use, use.callable)
        if constraint is None:
            return "" if wanted is None else self.answer(wanted)
        if wanted is not None:
            required = self._calls(replace(use, required=True), use.callable)
            assert required is not None, "what must be called is not free"
            constraint = either(required, self._after_reasoning(wanted))
        return _required(constraint, self.deployment)

    def _calls(self, use: ToolUse, tools: Sequence[Tool]) -> Constraint | None:
        """None where anything may be written."""
        try:
            source = self._format.grammar(
                tools,
                self.deployment.tokenizer.special_texts,
                required=use.required,
                parallel=use.parallel,
                thinking=self.thinking,
            )
        except OctavoError as error:
            raise InvalidRequest(f"'{use.field}' cannot be kept to: {error}", use.field) from error
        except _MALFORMED as error:  # some formats look into schemas before these are compiled
            raise InvalidRequest(f"'{use.field}' has parameters that are no JSON schema", use.field) from error
        if source is None:
            return None
        schemas = tuple((tool.path, dict(tool.parameters)) for tool in tools)
        return Constraint(source, use.field, schemas)

    def _after_reasoning(self, wanted: Constraint) -> Constraint:
        thought = self._format.before_answer(self.deployment.tokenizer.special_texts, thinking=self.thinking)
        if thought is None:
            return wanted
        return replace(wanted, source=several(thought, answer=wanted.source))

    @property
    def _format(self) -> AnswerFormat:
        return self.deployment.answers
