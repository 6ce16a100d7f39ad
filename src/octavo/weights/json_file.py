"""The small JSON files beside a model's weights."""

import json
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError

_MAX_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The object that `path` holds.

    Raises:
        CheckpointError: the file is missing, unreadable, no JSON, or JSON of another kind.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise CheckpointError(f"{path}: {size} bytes of JSON, more than the {_MAX_BYTES} that any model needs")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content
