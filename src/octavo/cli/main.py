"""The `octavo` command."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

import octavo
from octavo.cli import options
from octavo.cli.console import console
from octavo.cli.options import DEFAULTS, engine_options
from octavo.engine.config import EngineConfig
from octavo.errors import ConfigError, OctavoError

app = typer.Typer(
    name="octavo",
    help="Serve AI models at scale from one small, readable code base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app = typer.Typer(help="Measure the engine, without HTTP, on random prompts.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


def _interruptible() -> None:
    """From here on Ctrl-C is an exception again, so that what was begun can be cleaned up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"octavo {octavo.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def pull(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A short name or a Hugging Face repository id.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the short names instead.")] = False,
) -> None:
    """Fetch a model, so that serving it needs no network."""
    from octavo.cli.pull import list_models, pull_model

    _interruptible()
    if list_:
        list_models()
    else:
        pull_model(options.choose_model(model, None))


@app.command()
@engine_options
def serve(
    engine: dict[str, Any],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any free one.")] = 8000,
    uds: Annotated[str | None, typer.Option(help="Path of a Unix socket, instead of host and port.")] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Name in requests and replies; repeat it for more names.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="OCTAVO_API_KEY", help="Required from clients on every route but /health and /ready."),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, typer.Option(help="Web origins whose pages may call the server (CORS); * is all.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Makes requests without a seed of their own repeatable from start to start.")
    ] = None,
    max_num_queued_reqs: Annotated[
        int, typer.Option(help="Requests that may wait; more are refused with Retry-After.")
    ] = DEFAULTS.max_num_queued_reqs,
    max_num_queued_tokens: Annotated[
        int, typer.Option(parser=options.quantity, metavar="N", help="Tokens that may wait.")
    ] = DEFAULTS.max_num_queued_tokens,
    max_body_bytes: Annotated[
        int, typer.Option(parser=options.quantity, metavar="N", help="Longer request bodies are refused.")
    ] = 16 * 2**20,
    sse_keep_alive_interval: Annotated[
        float, typer.Option(min=0, help="Seconds of silence on a stream after which a comment is sent; 0 is never.")
    ] = 15.0,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that requests in flight may go on after the signal to stop.")
    ] = 30.0,
    stall_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds of silence from an engine with work, after which /health answers 503.")
    ] = 60.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve a model to OpenAI clients."""
    if "" in (host, *(served_model_name or ()), *(api_key or ())):
        raise ConfigError("--host, --served-model-name and --api-key must not be empty")
    from octavo.cli.serve import ServeOptions, configure_logging, serve_model
    from octavo.server.settings import ServerSettings

    _interruptible()
    configure_logging(log_level)
    name = options.choose_model(model, model_option)
    config = EngineConfig(
        model=name,
        **engine,
        max_num_queued_reqs=max_num_queued_reqs,
        max_num_queued_tokens=max_num_queued_tokens,
    )
    settings = ServerSettings(
        api_keys=tuple(api_key or ()),
        cors_origins=tuple(allowed_origins or ()),
        max_body_bytes=max_body_bytes,
        ping_seconds=sse_keep_alive_interval,
        drain_seconds=shutdown_timeout,
        seed=seed,
    )
    listen = ServeOptions(
        host=host,
        port=port,
        uds=uds,
        names=tuple(served_model_name or ()),
        settings=settings,
        stall_timeout=stall_timeout,
    )
    serve_model(name, config, listen)


@app.command()
def chat(
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    url: Annotated[
        str | None, typer.Option(help="Of a running server; without it one is started for the chat.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OCTAVO_API_KEY", help="Of that server.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the model's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the model's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Per answer. Default: what the context allows.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
) -> None:
    """Talk to a model in the terminal."""
    from octavo.cli.chat import chat as run

    _interruptible()
    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    parameters = {name: value for name, value in given.items() if value is not None}
    name = options.choose_model(model, model_option)
    run(name, url=url, api_key=api_key, system=system, prompt=prompt, parameters=parameters)


@app.command()
def info(
    backend: Annotated[str, typer.Option(help="auto, cpu or reference.")] = DEFAULTS.backend,
    isa: Annotated[str, typer.Option(help="Measure with the kernels of this instruction set.")] = DEFAULTS.isa,
    threads: Annotated[int | None, typer.Option(help="Measure with so many threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show the backend, instruction set and threads used here, and what the machine does at best."""
    from octavo.cli.info import show_info

    _interruptible()
    show_info(EngineConfig(model="", backend=backend, isa=isa, threads=threads), as_json=json)


InputLen = Annotated[int, typer.Option(parser=options.quantity, metavar="N", help="Tokens per prompt.")]
OutputLen = Annotated[int, typer.Option(parser=options.quantity, metavar="N", help="Tokens generated per prompt.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@bench_app.command("offline")
@engine_options
def bench_offline(
    engine: dict[str, Any],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts, all queued at once.")] = 32,
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    json: Json = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the random prompts.")] = 0,
) -> None:
    """Throughput: many prompts at once."""
    from octavo.cli.bench import run_bench

    _interruptible()
    config = EngineConfig(
        model=options.choose_model(model, model_option),
        **engine,
        max_num_queued_reqs=num_prompts,
        max_num_queued_tokens=max(num_prompts * input_len, 1),
    )
    run_bench(config, num_prompts=num_prompts, input_len=input_len, output_len=output_len, seed=seed, as_json=json)


@bench_app.command("latency")
@engine_options
def bench_latency(
    engine: dict[str, Any],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    input_len: InputLen = 512,
    output_len: OutputLen = 64,
    json: Json = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the random prompts.")] = 0,
) -> None:
    """Latency: one stream."""
    from octavo.cli.bench import run_bench

    _interruptible()
    config = EngineConfig(model=options.choose_model(model, model_option), **engine)
    run_bench(config, num_prompts=1, input_len=input_len, output_len=output_len, seed=seed, as_json=json)


def main() -> None:
    """Run the command line. What the user can mend is one line on standard error and exit status 1."""
    # Before numpy is imported, as for the engine process (see octavo.engine.client).
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # While modules are imported Ctrl-C ends the process at once: an exception in their midst would become a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OctavoError as error:
        console.print(f"octavo: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
