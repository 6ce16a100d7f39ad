"""The grammars of answers that call tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from octavo.grammar.lark import TEXT, Lark, either, escaped


class CallGrammar(NamedTuple):
    """One call of one tool.

    Attributes:
        opening: the text that it begins with.
        rest: a Lark expression of what follows.
    """

    opening: str
    rest: str


class Frame(NamedTuple):
    """What is written around calls.

    Attributes:
        begin, separator, end: before the first, between two, after the last.
        trigger: what all calls begin with, `begin` included, and nothing but a call does; "" if this is the whole of
            `begin` and a call's opening.
    """

    begin: str = ""
    separator: str = ""
    end: str = ""
    trigger: str = ""


def required(lark: Lark, frame: Frame, calls: Sequence[CallGrammar], *, parallel: bool) -> str:
    """One call, or several if `parallel`, and nothing else."""
    one = lark.rule(either([f"{lark.literal(call.opening)} {call.rest}" for call in calls]))
    return " ".join(
        [lark.literal(frame.begin), one, _more(lark, frame, one) if parallel else "", lark.literal(frame.end)]
    )


def _more(lark: Lark, frame: Frame, one: str) -> str:
    return f"({lark.literal(frame.separator)} {one})*"


def auto(lark: Lark, frame: Frame, calls: Sequence[CallGrammar], *, parallel: bool, without: str = "") -> str:
    """Text in which there may be calls. From where one begins, it must be one of these.

    `without`: a regular expression of text that the answer is not.
    """
    if lark.begins_special(frame.begin + calls[0].opening):
        block = lark.rule(required(lark, frame, calls, parallel=parallel))
        return f"{TEXT} ({block} {TEXT}){'*' if parallel else '?'}"
    block = lark.rule(_triggered(lark, frame, calls, parallel=parallel, without=without))
    text = lark.text(without) if without else TEXT
    if not parallel:
        triggers = "|".join(escaped(_trigger(frame, call)) for call in calls)
        return f"({text} | {block} {lark.text(f'(?s:.*)({triggers})(?s:.*)')})"
    if not without:
        return f"{block}* {text}"
    # Text after a call may be what the answer must not be.
    later = lark.rule(_triggered(lark, frame, calls, parallel=parallel))
    return f"({text} | {block} {later}* {TEXT})"


def _trigger(frame: Frame, call: CallGrammar) -> str:
    return frame.trigger or frame.begin + call.opening


def _triggered(lark: Lark, frame: Frame, calls: Sequence[CallGrammar], *, parallel: bool, without: str = "") -> str:
    """Text and a call, or several that are framed together."""
    rests: dict[str, list[str]] = {}
    for call in calls:
        trigger = _trigger(frame, call)
        rest = (frame.begin + call.opening).removeprefix(trigger)
        rests.setdefault(trigger, []).append(lark.rule(f"{lark.literal(rest)} {call.rest}"))
    first = either(f"{lark.up_to(trigger, without=without)} {either(rest)}" for trigger, rest in rests.items())
    if not parallel or not frame.end:
        return f"{first} {lark.literal(frame.end)}"
    one = lark.rule(either([f"{lark.literal(call.opening)} {call.rest}" for call in calls]))
    return f"{first} {_more(lark, frame, one)} {lark.literal(frame.end)}"
