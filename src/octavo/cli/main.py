"""The `octavo` command."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

import octavo
from octavo.cli.configuration import SERVE_SETTINGS, Configuration, choose_model, configure, show
from octavo.cli.foreign import FOREIGN_FLAGS
from octavo.cli.options import Group, model_argument, model_option, settings_options
from octavo.cli.parameters import BENCH_ENGINE, INFO_ENGINE, ChatParameters, LatencyParameters, OfflineParameters
from octavo.cli.triton_flags import triton_flags, without_effect
from octavo.engine.config import EngineConfig
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Values, from_environment, from_flags, resolve, settings_of

if TYPE_CHECKING:
    from rich.console import Console


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(octavo.__version__, prog_name="octavo", message="%(prog)s %(version)s")
def app() -> None:
    """Serve AI models at scale from one small, readable code base."""


@app.command()
@model_argument
@click.option("--list", "list_", is_flag=True, help="List the short names instead.")
def pull(model: str | None, list_: bool) -> None:
    """Fetch a model, so that serving it needs no network.

    MODEL is a short name or a Hugging Face repository id.
    """
    from octavo.cli.pull import list_models, pull_model

    _interruptible()
    if list_:
        list_models()
    else:
        pull_model(choose_model(model))


MODELS_HELP = """MODELS are short names, Hugging Face repository ids, folders or .gguf files of language models; app.py
or app.py:Name for code with @octavo.model; and files such as .onnx, which are served by what computes them.

Every option can also be set by an environment variable (--max-num-seqs by OCTAVO_MAX_NUM_SEQS) or in the file that
--config names; the command line goes before the environment, and that before the file."""


@app.command(help=f"Serve models to clients of OpenAI, Anthropic and Triton.\n\n{MODELS_HELP}")
@click.argument("models", nargs=-1)
@settings_options(SERVE_SETTINGS.values())
@triton_flags
def serve(models: tuple[str, ...], **flags: object) -> None:
    """Serve models."""
    configuration = configure(models, flags)
    from octavo.cli.serve import serve_models
    from octavo.logs import configure_logging

    _interruptible()
    with _log_in(configuration.server.log_file):
        configure_logging(configuration.server.logging, console=_console)
        _warn(configuration)
        serve_models(configuration)


@contextmanager
def _log_in(file: str | None) -> Iterator[None]:
    """Have the log in a file, if there is to be one. Raises ConfigError: it cannot be written."""
    from octavo.logs import logging_to

    with ExitStack() as stack:
        if file is not None:
            try:
                stack.enter_context(logging_to(file))
            except OSError as error:
                raise ConfigError(f"cannot write the log to {file}: {error.strerror} (--log-file)") from None
        yield


@app.command("check-repository")
@click.argument("repositories", nargs=-1, required=True, metavar="DIR...")
@click.option("--model-config-name", metavar="NAME", default="", help="Of the configurations to take, as of serve.")
@click.option(
    "--disable-auto-complete-config/--no-disable-auto-complete-config",
    "strict",
    default=False,
    help="Take nothing from models that their configurations do not say.",
)
def check_repository(repositories: tuple[str, ...], model_config_name: str, strict: bool) -> None:
    """List the models of Triton repositories: which will work, which will not, and why. Starts nothing."""
    from octavo.cli.check_repository import check_repository as run

    run(repositories, config_name=model_config_name, completes=not strict)


@app.group()
def config() -> None:
    """Look at the configuration."""


@config.command("show", help=f"Show what `octavo serve` would do, and where each setting is written.\n\n{MODELS_HELP}")
@click.argument("models", nargs=-1)
@settings_options(SERVE_SETTINGS.values())
@triton_flags
def config_show(models: tuple[str, ...], **flags: object) -> None:
    """Show the effective settings."""
    configuration = configure(models, flags)
    _warn(configuration)
    for line in show(configuration):
        click.echo(line)


def _console() -> "Console":
    """The terminal. To import it takes a third of the time of a command that only shows settings."""
    from octavo.cli.console import console

    return console


def _warn(configuration: Configuration) -> None:
    for warning in filter(None, (*configuration.warnings, without_effect())):
        _console().print(f"octavo: {warning}", markup=False, soft_wrap=True)


@app.command()
@model_argument
@model_option
@settings_options(settings_of(ChatParameters).values())
def chat(model: str | None, model_option: str | None, **flags: object) -> None:
    """Talk to a model in the terminal."""
    from octavo.cli.chat import chat as run

    _interruptible()
    given: ChatParameters = resolve(settings_of(ChatParameters).values(), from_flags(flags)).build(ChatParameters)
    first = given.url is not None and model is None and model_option is None
    name = None if first else choose_model(model, model_option)
    api_key = given.api_key or os.environ.get("OCTAVO_API_KEY")
    run(name, url=given.url, api_key=api_key, system=given.system, prompt=given.prompt, parameters=given.sampling)


@app.command()
@click.argument("model")
@click.option(
    "--input",
    "-i",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A tensor: @FILE.npy, @FILE (its bytes), JSON such as [[1, 2]], or text. Repeat it for more.",
)
@click.option(
    "--output",
    "-o",
    "outputs",
    multiple=True,
    metavar="NAME[=@FILE]",
    help="A tensor that is wanted, and the file to write it to (.npy). Repeat it for more.  [default: all]",
)
@click.option("--url", metavar="URL", default="http://127.0.0.1:8000", show_default=True, help="Of a running server.")
@click.option("--api-key", metavar="KEY", help="Of that server.  [default: OCTAVO_API_KEY]")
def infer(model: str, inputs: tuple[str, ...], outputs: tuple[str, ...], url: str, api_key: str | None) -> None:
    """Ask a hosted model of a running server: send it tensors, and print what it answers."""
    from octavo.cli.infer import infer as run

    _interruptible()
    run(model, url=url, api_key=api_key or os.environ.get("OCTAVO_API_KEY"), inputs=inputs, outputs=outputs)


@app.command()
@settings_options(INFO_ENGINE)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def info(as_json: bool, **flags: object) -> None:
    """Show the backend, instruction set and threads used here, and what the machine does at best."""
    from octavo.cli.info import show_info

    _interruptible()
    show_info(_engine(resolve(INFO_ENGINE, from_flags(flags), from_environment(os.environ)), ""), as_json=as_json)


@app.group()
def bench() -> None:
    """Measure the engine, without HTTP, on random prompts."""


@bench.command("offline")
@model_argument
@model_option
@settings_options((*settings_of(OfflineParameters).values(), *BENCH_ENGINE))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench_offline(**given: Any) -> None:
    """Throughput: many prompts at once."""
    _bench(OfflineParameters, **given)


@bench.command("latency")
@model_argument
@model_option
@settings_options((*settings_of(LatencyParameters).values(), *BENCH_ENGINE))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench_latency(**given: Any) -> None:
    """Latency: one stream."""
    _bench(LatencyParameters, **given)


def _bench(
    parameters: type[OfflineParameters | LatencyParameters],
    model: str | None,
    model_option: str | None,
    as_json: bool,
    **flags: object,
) -> None:
    from octavo.cli.bench import run_bench

    _interruptible()
    work = resolve(settings_of(parameters).values(), from_flags(flags)).build(parameters)
    engine = resolve(BENCH_ENGINE, from_flags(flags), from_environment(os.environ))
    queue = {"max_num_queued_reqs": work.num_prompts, "max_num_queued_tokens": work.num_prompts * work.input_len}
    run_bench(
        _engine(engine, choose_model(model, model_option), **queue),
        num_prompts=work.num_prompts,
        input_len=work.input_len,
        output_len=work.output_len,
        seed=work.seed,
        as_json=as_json,
    )


def _engine(values: Values, model: str, **others: Any) -> EngineConfig:
    return EngineConfig(model=model, **{name: value.value for name, value in values.items()}, **others)


def _interruptible() -> None:
    """From here on Ctrl-C is an exception again, so that what was begun can be cleaned up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the command line. What the user can mend is one line on standard error and exit status 1 or 2."""
    # Before numpy is imported, as for the engine process (see octavo.engine.client).
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    _open_streams()
    try:
        status = app.main(prog_name="octavo", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status)
    except click.exceptions.NoArgsIsHelpError as nothing:
        nothing.show()
        sys.exit(nothing.exit_code)
    except click.NoSuchOption as error:
        instead = FOREIGN_FLAGS.get(error.option_name)
        _fail(
            f"No such option {error.option_name!r}; {instead}." if instead else error.format_message(), error.exit_code
        )
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except OctavoError as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # whoever read the output has seen enough
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 1)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to clean up


def _open_streams() -> None:
    """Make every text printable and readable, whatever the terminal's encoding, and closed streams empty files."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we live
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is still buffered cannot be written: the interpreter would complain of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> None:
    _console().print(f"octavo: {message}", style="red", markup=False, soft_wrap=True)
    sys.exit(status)
