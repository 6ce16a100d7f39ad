"""Files of labels: what the classes are called that an output's values are for."""

from pathlib import Path

from octavo.errors import ConfigError


def read_labels(output: str, file_name: str, folder: Path) -> tuple[str, ...]:
    """The labels of an output, one a line; none if it has no file.

    Args:
        file_name: its `label_filename`. folder: of the model.

    Raises:
        ConfigError: the file cannot be read, or is not in the folder.
    """
    if not file_name:
        return ()
    file = folder / file_name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"label_filename is '{file_name:.200}', which is not in the model's folder")
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise ConfigError(f"cannot read the labels of output '{output}' in {file}: {why}") from None
