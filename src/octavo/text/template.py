"""Chat templates: a conversation to the prompt text a model was trained on, through sandboxed Jinja.

A template is code from whoever published the model. The sandbox keeps it away from Python and bounds its work, its
memory and its output. Messages only ever reach it as data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.errors import OctavoError
from octavo.text.bounds import WORK_LIMIT, Budget, OutOfBounds, OutOfWork, RaisedByTemplate
from octavo.text.written import Written, unwritten, written

if TYPE_CHECKING:
    from jinja2 import Template

Message = dict[str, Any]

# Marks the end of the message to continue. The space at its end shows whether the template trims messages; the
# private-use characters keep it apart from anything a message says.
_CONTINUE_TAG = "\ue0c7continue\ue0c7 "
_PROBE = "probe"
_PROBE_WORK = 1 << 20
_ROLES = {role: written(role) for role in ("assistant", "developer", "function", "system", "tool", "user")}
"""As good as the template's own words, as no client can choose others."""

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Variables of templates that have arguments of their own, and cannot be set beside them."""


class TemplateError(OctavoError):
    """A chat template that rejects the messages, or fails on them."""


class TemplateOutOfWork(TemplateError):
    """A chat template that does not come to its end within the work that it is given."""


class ChatTemplate:
    """A model's chat templates by name: "default", and "tool_use" for requests with tools, or just one. They are
    compiled at first use: a model with a broken template still completes text."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: bos_token, eos_token and so on, as the templates' variables."""
        self._templates = {name: _Template(source) for name, source in sources.items()}
        self._special_tokens = {name: written(token) for name, token in special_tokens.items()}

    @property
    def source(self) -> str:
        """The sources of all of them: what they show says how the model writes."""
        return "\n".join(template.source for template in self._templates.values())

    def render(
        self,
        messages: Sequence[Message],
        work: int = WORK_LIMIT,
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> Written:
        """The prompt for OpenAI-style `messages`, special tokens included. It knows what of it is the template's own.

        `continue_final_message` ends it inside the last message, so that the model goes on writing that one.
        `work` bounds what it may take, in the units of `octavo.text.bounds`; a template that has yet to be compiled
        takes all there is. `kwargs` are further variables for the template (`enable_thinking` and the like).

        Raises TemplateError; TemplateOutOfWork if `work` does not suffice.
        """
        if taken := sorted(RESERVED & kwargs.keys()):
            raise TemplateError(f"The chat template's own variables cannot be set: {', '.join(taken)}.")
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message and add_generation_prompt exclude each other: set add_generation_prompt false."
            )
        if not messages:
            raise TemplateError("There are no messages: send at least one.")
        template = self._choose(with_tools=bool(tools))
        if work < WORK_LIMIT and not template.is_ready:
            raise TemplateOutOfWork("The chat template is not compiled yet.")
        prepared = template.prepare(messages)
        if continue_final_message:
            if prepared[-1]["content"] is None:
                raise TemplateError("The final message has no content, so it cannot be continued.")
            _append(prepared[-1], _CONTINUE_TAG)
        text = template.run(
            {
                **self._special_tokens,
                **kwargs,
                "messages": prepared,
                "tools": tools or None,
                "documents": list(documents) or None,
                "add_generation_prompt": add_generation_prompt,
            },
            work,
        )
        return unwritten(_cut_at_tag(text) if continue_final_message else text)

    def shows_calls(self, *, with_tools: bool) -> bool:
        """Whether the calls of earlier messages are in the prompt. Raises TemplateError: there is no template."""
        return self._choose(with_tools=with_tools).shows_calls

    def _choose(self, *, with_tools: bool) -> _Template:
        templates = self._templates
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in templates:
                return templates[name]
        if len(templates) == 1:
            return next(iter(templates.values()))
        raise TemplateError(f"The model has no default chat template, only {', '.join(sorted(templates))}.")


class _Calls(NamedTuple):
    """How a template shows calls: beside which content if there is no other, whether with arguments as a JSON string,
    and whether at all."""

    empty: Any
    as_text: bool = False
    shown: bool = True


class _Template:
    def __init__(self, source: str) -> None:
        self.source = source

    @property
    def is_ready(self) -> bool:
        """Whether all is known of it that is found out once."""
        return {"_compiled", "_wants_parts", "_calls"} <= vars(self).keys()

    @cached_property
    def _compiled(self) -> Template | TemplateError:
        """The template, or why there is none, found once."""
        import jinja2

        from octavo.text.sandbox import environment

        try:
            with Budget():
                compiled: Template = environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            return TemplateError(f"The chat template is not valid Jinja (line {error.lineno}): {_one_line(error)}")
        except OutOfBounds as error:
            return TemplateError(f"The chat template takes more than it may: {_one_line(error)}.")
        except Exception as error:  # what the compiler lets through of Python's, which may be anything
            return TemplateError(f"The chat template cannot be compiled: {_kind(error)}")
        return compiled

    def run(self, variables: dict[str, Any], work: int = WORK_LIMIT) -> str:
        """Raises TemplateError; `work` bounds what this rendering may take, in the units of `octavo.text.bounds`."""
        template = self._compiled
        if isinstance(template, TemplateError):
            raise template
        try:
            with Budget(work):
                return template.render(variables)
        except RaisedByTemplate as error:
            raise TemplateError(f"The chat template rejects the messages: {_one_line(error)}") from error
        except OutOfBounds as error:
            kind = TemplateOutOfWork if isinstance(error, OutOfWork) else TemplateError
            raise kind(f"The chat template takes more than it may: {_one_line(error)}.") from error
        except Exception as error:  # whatever foreign code runs into, it is this request's failure alone
            raise TemplateError(f"The chat template fails on these messages: {_kind(error)}") from error

    @cached_property
    def _wants_parts(self) -> bool:
        """Some templates only read content as a list of parts. Found by trying, since a template can do either in many
        ways."""

        def shows(content: Any) -> bool:
            try:
                return _PROBE in self.run({"messages": [{"role": "user", "content": content}]}, _PROBE_WORK)
            except TemplateError:
                return False

        return not shows(_PROBE) and shows([{"type": "text", "text": _PROBE}])

    @property
    def shows_calls(self) -> bool:
        """Whether calls that a message has are in the prompt."""
        return "tool_calls" in self.source or self._calls.shown

    @cached_property
    def _calls(self) -> _Calls:
        """How calls are shown as they should be. Some templates join strings (DeepSeek's), print an object as Python
        does, or take a message with any content for one without calls. Found by trying."""

        def shown(content: Any, arguments: Any) -> str:
            call = {"id": "probe0000", "type": "function", "function": {"name": _PROBE, "arguments": arguments}}
            answer = {"role": "assistant", "content": content, "tool_calls": [call]}
            user = {"role": "user", "content": self._content(_PROBE)}
            try:
                return self.run({"messages": [user, answer]}, _PROBE_WORK)
            except TemplateError:
                return ""

        key = "probed key"
        arguments = {key: 1}
        text = json.dumps(arguments)
        for content in (self._content(""), None):
            as_object = shown(content, arguments)
            if key in as_object and repr(arguments) not in as_object:
                return _Calls(content)
            if text in shown(content, text):
                return _Calls(content, as_text=True)
        return _Calls(self._content(""), shown=False)

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._wants_parts else text

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the template expects them: a role it knows, content as a string (or as parts, if it reads only
        those), no nulls, tool arguments as objects (or as JSON, if it writes only that right)."""
        if not self.is_ready:
            _ = self._wants_parts, self._calls
        return [self._prepare(message) for message in messages]

    def _prepare(self, message: Message) -> Message:
        # Absent, null and empty are one for a list that may be left out: templates only ask whether it is there.
        prepared = {key: value for key, value in message.items() if value is not None and value != []}
        # OpenAI's newer name for the same thing; templates that know it are few.
        if prepared.get("role") == "developer" and "developer" not in self.source:
            prepared["role"] = "system"
        # Templates add content to strings without asking; an assistant's tool call may have none.
        # Some templates write <|user|> as '<|' + role + '|>'.
        if isinstance(role := prepared.get("role"), str) and role in _ROLES:
            prepared["role"] = _ROLES[role]
        text = _text(prepared.get("content", ""))
        prepared["content"] = self._content(text)
        if "tool_calls" in prepared:
            as_wanted = _with_text_arguments if self._calls.as_text else _with_parsed_arguments
            prepared["tool_calls"] = [as_wanted(call) for call in prepared["tool_calls"]]
            if not text:
                prepared["content"] = self._calls.empty
        return prepared


def _text(content: Any) -> str:
    """Text parts are lines of their own, as vLLM and llama.cpp join them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TemplateError("A message's content must be a string or a list of text parts.")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise TemplateError(f"This model reads text parts only, not a part of type {kind!r}.")
    return "\n".join(part["text"] for part in content)


def _with_parsed_arguments(call: Any) -> Any:
    """The API carries a call's arguments as a JSON string; templates print the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        # A model may have written broken JSON, or brackets without end; it then sees what it wrote.
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _with_text_arguments(call: Any) -> Any:
    """The other way round: Anthropic's API carries an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), dict | list):
        return call
    try:
        text = json.dumps(arguments, ensure_ascii=False)
    except RecursionError as error:
        raise TemplateError("A tool call's arguments are nested too deep.") from error
    return {**call, "function": {**function, "arguments": text}}


def _append(message: Message, tag: str) -> None:
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + tag
    else:
        content[-1]["text"] += tag


def _cut_at_tag(text: str) -> str:
    position = text.rfind(_CONTINUE_TAG.strip())
    if position < 0:
        raise TemplateError("The chat template leaves out the final message, so it cannot be continued.")
    if text.startswith(_CONTINUE_TAG, position):
        return text[:position]
    # The template trimmed the tag's space, so it would have trimmed the message's own.
    return text[:position].rstrip()


def _kind(error: Exception) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error)[:1000].split())[:300]
