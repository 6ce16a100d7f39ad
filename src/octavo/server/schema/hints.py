"""How constraints are recognised by their names, and where they are set here."""

MARKS = (
    "guided",
    "grammar",
    "bnf",
    "lark",
    "regex",
    "pattern",
    "schema",
    "json",
    "format",
    "structur",
    "constrain",
)
"""What the names of constraints contain."""

_KINDS = (
    ("whitespace", "whitespace_pattern"),
    ("regex", "regex"),
    ("pattern", "regex"),
    ("choice", "choice"),
    ("grammar", "grammar"),
    ("bnf", "grammar"),
    ("lark", "grammar"),
    ("structural", "structural_tag"),
    ("json_object", "json_object"),
    ("json_mode", "json_object"),
    ("schema", "json"),
    ("json", "json"),
    ("format", "json"),
)
"""What names contain, and the member of `structured_outputs` that is meant; the first counts."""


def instead_of(name: str, schema_field: str) -> list[str]:
    """The fields in which a constraint of such a name can be set.

    Args:
        schema_field: where the API has schemas.
    """
    plain = name.lower()
    kind = None if "stop" in plain else next((kind for mark, kind in _KINDS if mark in plain), None)
    if kind is None:
        return [schema_field, "structured_outputs"]
    member = f"structured_outputs.{kind}"
    return [schema_field, member] if kind.startswith("json") else [member]
