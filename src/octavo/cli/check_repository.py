"""`octavo check-repository`: what of a Triton model repository will work, and what will not."""

from collections.abc import Sequence
from pathlib import Path

import click

from octavo.errors import ConfigError, OctavoError
from octavo.hosting.triton.report import ModelReport, report_of


class NotAllWork(OctavoError):
    """A repository with models that cannot be served."""


def check_repository(places: Sequence[str], *, config_name: str, completes: bool) -> None:
    """Print a line for each model, and lines for what is to be said of it. Raises NotAllWork: some would not work."""
    folders = [Path(each).expanduser() for each in places]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"the model repository {folder} is no folder")
    reports = report_of(folders, config_name=config_name, completes=completes)
    width = max((len(each.name) for each in reports), default=0)
    for each in reports:
        click.echo(f"{each.name:{width}}  {_summary(each)}")
        for trouble in each.troubles:
            click.echo(f"{'':{width}}  - {trouble}")
        for note in each.notes:
            click.echo(f"{'':{width}}  * {note}")
    broken = sum(bool(each.troubles) for each in reports)
    if broken:
        raise NotAllWork(f"{broken} of {len(reports)} models cannot be served")


def _summary(report: ModelReport) -> str:
    verdict = "cannot be served" if report.troubles else "can be served"
    what = [report.computed_by] if report.computed_by else []
    if report.versions:
        what.append(f"version {', '.join(map(str, report.versions))}")
    return f"{verdict}{' (' + '; '.join(what) + ')' if what else ''}"
