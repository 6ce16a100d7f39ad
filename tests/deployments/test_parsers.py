"""Names of parsers that settings take are those that there are."""

from octavo.deployments.settings import REASONING_PARSERS, TOOL_CALL_PARSERS
from octavo.text.answer import HARMONY
from octavo.text.formats import tool_format_names
from octavo.text.reasoning import reasoning_format_names


def test_settings_know_every_parser() -> None:
    assert tool_format_names() == TOOL_CALL_PARSERS
    assert set(REASONING_PARSERS) == {*reasoning_format_names(), *HARMONY}
