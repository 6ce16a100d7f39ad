"""From a hosted model's settings to one that computes, with no more imports than it needs."""

from octavo.hosting.code_names import names_code
from octavo.hosting.config import PYTHON
from octavo.hosting.loaded import Loaded
from octavo.hosting.start import HostingStart


def load_model(start: HostingStart) -> Loaded:
    """Load a model. Raises ConfigError: it cannot be loaded; the message says why in one line."""
    config = start.config
    if config.repository is not None:
        from octavo.hosting.triton.loading import load_from_repository

        return load_from_repository(start, config.repository)
    if config.runtime == PYTHON or (config.runtime is None and names_code(config.model)):
        from octavo.hosting.own_loading import load_own

        loaded = load_own(start)
    else:
        from octavo.hosting.file_loading import load_file

        loaded = load_file(start)
    loaded.info.signature.require_distinct_names()
    return loaded
