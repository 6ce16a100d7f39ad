"""Settings come from the command line, the environment and a file, and are right before anything is loaded."""

import re
from pathlib import Path

import pytest

from octavo.cli.configuration import SERVE_SETTINGS
from octavo.cli.foreign import FOREIGN_FLAGS
from octavo.cli.options import default_words
from octavo.deployments.repository_settings import RepositorySettings
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.config import EngineConfig
from octavo.hosting.config import HostingConfig
from octavo.server.keys import KeySettings
from octavo.server.settings import ServerSettings
from octavo.settings import Setting, one_of, settings_of
from octavo.weights.catalogue import DEFAULT_MODEL
from tests.cli.command import octavo, one_line


def refusal(*arguments: str, **variables: str) -> str:
    """The one line with which it is refused."""
    return one_line(octavo(*arguments, **variables))


def shown(*arguments: str, **variables: str) -> list[str]:
    """The effective settings."""
    result = octavo("config", "show", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str, name: str = "octavo.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


COMMANDS = [["serve"], ["config", "show"], ["chat"], ["pull"], ["info"], ["bench", "offline"], ["bench", "latency"]]


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_never_cuts_the_name_of_a_flag(command: list[str], width: int) -> None:
    text = octavo(*command, "--help", COLUMNS=str(width)).stdout
    words = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*(?![\w…-])", text))
    assert "…" not in text
    if command == ["serve"]:
        flags = {flag for each in SERVE_SETTINGS.values() for flag in each.flags}
        assert flags | {"--no-enable-prefix-caching", "--help"} <= words
    longest = max(words, key=len)
    lines = [line for line in text.splitlines() if len(line) > width]
    assert not lines, f"longer than {width}, with {longest}"


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--max-model-len", "abc", ["max_model_len is 'abc'", "a number of tokens such as 4096, 8k or 32Ki"]),
        ("--max-num-seqs", "many", ["max_num_seqs is 'many'", "a whole number from 1 to 65,536"]),
        ("--max-num-seqs", "0", ["max_num_seqs is 0"]),
        ("--port", "70000", ["port is 70000", "from 0 to 65,535"]),
        ("--sse-keep-alive-interval", "nan", ["sse_keep_alive_interval is nan"]),
        ("--sse-keep-alive-interval", "inf", ["sse_keep_alive_interval is inf"]),
        ("--sse-keep-alive-interval", "-1", ["sse_keep_alive_interval is -1"]),
        ("--shutdown-timeout", "1e400", ["shutdown_timeout is inf"]),
        ("--stall-timeout", "soon", ["stall_timeout is 'soon'", "a number"]),
        ("--gpu-memory-utilization", "0", ["gpu_memory_utilization is 0", "above 0 and at most 1"]),
        ("--backend", "tpu", ["backend is 'tpu'", "auto, cpu or reference"]),
        ("--log-level", "loud", ["log_level is 'loud'", "debug, info, warning or error"]),
        ("--priorities", "5", ["priorities is '5'", "0:100"]),
        ("--priorities", "5:1", ["priorities is '5:1'"]),
        ("--host", "", ["host must not be empty"]),
        ("--uds", " ", ["uds must not be empty"]),
        ("--model", "", ["model must not be empty"]),
        ("--api-key", "", ["api_key must not be empty"]),
        ("--admin-api-key", "", ["admin_api_key must not be empty"]),
        ("--cache-config", "redis,host=here", ["the cache 'redis', which is not supported; use local", "size=64MiB"]),
        ("--cache-config", "local,sise=1", ["'sise', which the cache local does not know; use size"]),
        ("--cache-config", "size=1MiB", ["'size=1MiB' without the name of a cache"]),
        ("--cache-config", "local", ["has no size for the cache local"]),
        ("--cache-config", "local,size=much", ["the size 'much', which must be a quantity such as 4096"]),
        ("--cache-config", "local,size=1k", ["1000 bytes is too small; give at least 4096, or 0"]),
        ("--cache-config", "local,size=999TiB", ["bytes is too large: the machine has"]),
        ("--rate-limit", "on", ["rate_limit is 'on'", "off or execution_count"]),
        ("--rate-limit-resource", "R1", ["rate_limit_resource is 'R1'", "<resource_name>:<count>", "R1:4:0"]),
        ("--rate-limit-resource", "R1:4:0:1", ["rate_limit_resource is 'R1:4:0:1'"]),
        ("--rate-limit-resource", ":4", ["rate_limit_resource is ':4'"]),
        ("--rate-limit-resource", "R1:-4", ["rate_limit_resource is 'R1:-4'"]),
    ],
)
def test_a_wrong_value_is_one_line_that_names_setting_place_and_remedy(flag: str, value: str, words: list[str]) -> None:
    line = refusal("serve", flag, value)
    assert all(word in line for word in [*words, f"({flag})"]), line
    setting = SERVE_SETTINGS[flag[2:].replace("-", "_")]
    if flag != "--model":
        assert f"({setting.variable})" in refusal("serve", **{setting.variable: value})


def test_a_wrong_value_of_a_file_names_file_and_key(write) -> None:  # type: ignore[no-untyped-def]
    file = write('[deployments.small]\nmodel = "a"\nmax-num-seqs = "many"\n')
    assert "max_num_seqs is 'many'" in (line := refusal("serve", "--config", file))
    assert f"({file}: deployments.small.max_num_seqs)" in line
    file = write("[server]\nport = true\n")
    assert f"({file}: server.port)" in refusal("serve", "--config", file)


def test_two_settings_that_do_not_fit_are_named_with_their_places() -> None:
    line = refusal("serve", "--max-num-batched-tokens", "4", OCTAVO_MAX_NUM_SEQS="8")
    assert "4 is less than max_num_seqs 8" in line
    assert "max_num_batched_tokens: --max-num-batched-tokens, max_num_seqs: OCTAVO_MAX_NUM_SEQS" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", ["server.prot is unknown", "did you mean port?"]),
        ("[sever]\nport = 1", ["sever is unknown", "did you mean server?"]),
        ('[deployments.a]\nmodel = "m"\nmax_num_seq = 1', ["deployments.a.max_num_seq is unknown", "max_num_seqs?"]),
        (
            '[deployments.a]\nmodel = "m"\nport = 1',
            ["a.port is a setting of the server; write it under [server]"],
        ),
        ("[server]\nmax-num-seqs = 1", ["server.max_num_seqs is a setting of a deployment", "[deployments.NAME]"]),
        ("[deployments.a]\nmax_num_seqs = 1", ["deployments.a.model is missing"]),
        ('[deployments.a]\nmodel = ""', ["deployments.a.model is ''"]),
        ('deployments = "a"', ["deployments must be tables"]),
        ('[deployments]\nmodel = "m"', ["deployments.model must be a table", "[deployments.NAME], and then model ="]),
        ("server = 3", ["server must be a table"]),
        ("[server", ["cannot read"]),
        ('[server]\nport = 1\n"port " = 2', ["unknown"]),
        ('[deployments.a]\nmodel="m"\nmax_num_seqs=1\nmax-num-seqs=2', ["max_num_seqs twice"]),
        (
            '[deployments.a]\nmodel="m"\n[deployments.b]\nmodel="n"\nserved_model_name="a"',
            ["is a name of two deployments: a (m) and b (n)"],
        ),
        ('[deployments." "]\nmodel="m"', ["cannot be named ' '"]),
        ('[deployments.""]\nmodel="m"', ["cannot be named ''"]),
        ('[deployments.".."]\nmodel="m"', ["cannot be named '..'"]),
        ('[deployments.a]\nmodel="m"\nserved_model_name=["b", "."]', ["cannot be named '.'"]),
        ('[deployments.a]\nmodel=["m"]', ["deployments.a.model is ['m'], but must be the name of a model"]),
        ('[server]\nallowed_origins = ["app.example"]', ["allowed_origins has 'app.example'", "https://"]),
        ('[server]\nallowed_origins = ["https://app.example/"]', ["allowed_origins has 'https://app.example/'"]),
        ('[server]\napi_key="k"\n[server.keys.ann]\nkey="k"', ["api_key and keys.ann have the same key"]),
        (
            '[server.keys.ann]\nkey="k"\n[server.keys.bob]\nkey="k"\npriorities=[0,1]',
            ["keys.ann and keys.bob have the same key"],
        ),
        ("[server]\napi_key = []", ["api_key must not be empty"]),
        ("[server.keys]", ["server.keys has no key"]),
        ("[server.keys.ann]\npriorities = [0, 1]", ["server.keys.ann has no key"]),
        ('[server.keys.ann]\nkey = "k"\npriorites = [0, 1]', ["keys.ann.priorites is unknown", "priorities?"]),
        ('[server.keys.ann]\nkey = "k"\npriorities = [1, 0]', ["priorities is [1, 0]"]),
        ('[server.keys.ann]\nkey_file = "/no/such/file"', ["/no/such/file", "No such file"]),
        ('[server]\nadmin_api_key = "k"\n[server.keys.ann]\nkey = "k"', ["admin API key is an API key, too"]),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(write, text: str, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    line = refusal("serve", "--config", write(text))
    assert all(word in line for word in words), line


def test_the_cache_may_be_written_in_tritons_ways(write) -> None:  # type: ignore[no-untyped-def]
    for given in (
        ["--cache-config=local,size=1048576"],
        ["--cache-config", "local,size=1", "--cache-config", "local,size=1MiB"],  # the last one holds
        ["--config", write('[server]\ncache-config = ["local,size=1MiB"]\n')],
    ):
        assert "cache_config = [" in "".join(shown(*given))
    assert any(line.startswith('cache_config = ["local"') for line in shown(OCTAVO_CACHE_CONFIG="local,size=1MiB"))
    assert any(
        line.startswith("response_cache_byte_size = 1048576") for line in shown("--response-cache-byte-size=1Mi")
    )
    both = refusal("serve", "--response-cache-byte-size=1Mi", "--cache-config=local,size=1Mi")
    assert "cache_config and response_cache_byte_size say the same; give one of them" in both


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in refusal("serve", "--config", str(tmp_path / "none.toml"))
    assert "directory" in refusal("serve", "--config", str(tmp_path))


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(write) -> None:  # type: ignore[no-untyped-def]
    file = write(
        '[server]\nport = 1\nhost = "h"\nseed = 3\n[deployments.a]\nmodel = "m"\nthreads = 5\npage_size = 32\n'
    )
    lines = shown("--config", file, "--port", "2", OCTAVO_PORT="3", OCTAVO_HOST="env", OCTAVO_THREADS="7")
    assert "port = 2  # --port" in lines
    assert 'host = "env"  # OCTAVO_HOST' in lines
    assert f"seed = 3  # {file}: server.seed" in lines
    assert "threads = 7  # OCTAVO_THREADS" in lines
    assert f"page_size = 32  # {file}: deployments.a.page_size" in lines
    assert "max_num_seqs = 128  # default" in lines
    assert '[deployments."a"]' in lines
    assert f'model = "m"  # {file}: deployments.a.model' in lines
    assert 'model = "m"  # OCTAVO_MODEL' in shown(OCTAVO_MODEL="m")
    assert f'model = "{DEFAULT_MODEL}"  # default' in shown()


def test_what_config_show_prints_is_a_file_that_says_the_same(write) -> None:  # type: ignore[no-untyped-def]
    file = write(
        '[server]\nport = 1\npriorities = [-3, 9]\n[deployments."a:b"]\nmodel = "m"\nserved-model-name = ["x"]\n'
    )
    lines = shown("--config", file)
    again = shown("--config", write("\n".join(lines), "again.toml"))
    without_places = [re.sub(r"  [#(].*", "", line) for line in lines]
    assert [re.sub(r"  [#(].*", "", line) for line in again] == without_places


def test_keys_are_not_shown() -> None:
    assert not any(
        "hidden-key" in line for line in shown("--api-key", "hidden-key", OCTAVO_ADMIN_API_KEY="hidden-key-2")
    )


def test_several_models_are_several_deployments() -> None:
    lines = shown("a", "b", "--model", "c", "--max-num-seqs", "9")
    assert [line for line in lines if line.startswith("[dep")] == [f'[deployments."{name}"]' for name in "abc"]
    assert lines.count("max_num_seqs = 9  # --max-num-seqs") == 3
    assert "several" in refusal("serve", "a", "b", "--served-model-name", "x")
    assert "a is named twice" in refusal("serve", "a", "b", "a")
    assert "a is named twice" in refusal("serve", "--model", "a", "--model", "a")
    assert 'model = "a"  # MODELS' in shown("a", OCTAVO_MODEL="a")
    assert '[deployments."x"]' in shown("a", "--served-model-name", "x")


@pytest.mark.parametrize("command", [*COMMANDS[:4], *COMMANDS[5:]], ids=" ".join)
def test_an_empty_name_of_a_model_is_refused(command: list[str]) -> None:
    assert "empty" in refusal(*command, "")
    if command != ["pull"]:
        assert "empty" in refusal(*command, "--model", "")


def test_an_empty_key_of_the_environment_is_refused_at_start() -> None:
    assert "api_key must not be empty (OCTAVO_API_KEY)" in refusal("serve", OCTAVO_API_KEY="")
    assert "(OCTAVO_API_KEY)" in refusal("serve", OCTAVO_API_KEY=" \n")
    assert "api_key_file must not be empty" in refusal("serve", OCTAVO_API_KEY_FILE="")


def test_a_file_without_keys_is_refused(write) -> None:  # type: ignore[no-untyped-def]
    assert "has no key" in refusal("serve", "--api-key-file", write("# none\n\n", "keys"))
    assert "No such file" in refusal("serve", OCTAVO_API_KEY_FILE="/no/such/file")


def test_an_unknown_flag_is_one_line_with_the_nearest() -> None:
    assert "--max-num-seqs" in refusal("serve", "--max-num-seq", "4")
    assert "'serve'" in refusal("serv")


@pytest.mark.parametrize("flag", ["--enable-auto-tool-choice", "--chat-template=x.jinja", "--trust-remote-code"])
def test_a_flag_of_vllms_says_what_to_do_instead(flag: str) -> None:
    assert f"No such option '{flag.partition('=')[0]}'; leave it out: " in refusal("serve", flag)


def test_what_vllm_has_beside_is_no_flag_here() -> None:
    assert not {flag for each in SERVE_SETTINGS.values() for flag in each.flags} & FOREIGN_FLAGS.keys()


def test_a_misspelt_variable_is_pointed_out() -> None:
    result = octavo("config", "show", OCTAVO_MAX_NUM_SEQ="3")
    assert "OCTAVO_MAX_NUM_SEQS?" in result.stderr


def test_the_variable_that_kubernetes_makes_of_a_service_is_no_port() -> None:
    assert "port = 8000  # default" in shown(OCTAVO_PORT="tcp://10.0.0.7:80")


def row(each: Setting) -> str:
    """A setting's row in the documentation."""
    values = f" One of {one_of(each.choices)}." if each.choices else ""
    return f"| `{each.name}` | {default_words(each)} | {each.help}{values} |"


@pytest.mark.parametrize(
    "owner", [ServerSettings, RepositorySettings, KeySettings, DeploymentSettings, EngineConfig, HostingConfig]
)
def test_the_documentation_has_every_setting_as_it_is(owner: type) -> None:
    page = Path(__file__).parents[2].joinpath("docs/configuration.md").read_text()
    rows = [row(each) for each in settings_of(owner).values()]
    assert "\n".join(rows) in page, "docs/configuration.md should have\n" + "\n".join(rows)


def test_a_quantity_may_be_of_any_size() -> None:
    for text, size in {"64k": 64_000, "512MiB": 512 * 2**20, "1.5g": 1_500_000_000, "1TiB": 2**40}.items():
        lines = shown("m", "--kv-cache-memory-bytes", text)
        assert f"kv_cache_memory_bytes = {size}  # --kv-cache-memory-bytes" in lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--allow-client-shm=true"], "true"),
        (["--allow-client-shm=1"], "true"),
        (["--allow-client-shm", "true"], "true"),
        (["--allow-client-shm=False"], "false"),
        (["--allow-client-shm", "false"], "false"),
        (["--no-allow-client-shm"], "false"),
        (["--allow-client-shm"], "true"),
    ],
)
def test_switches_may_have_values_as_tritons_have(words: list[str], expected: str) -> None:
    for arguments in ([*words, "m"], ["m", *words]):
        assert any(line.startswith(f"allow_client_shm = {expected}  # ") for line in shown(*arguments))


def test_a_switch_has_no_other_value() -> None:
    assert "does not take a value" in refusal("serve", "--allow-client-shm=maybe")
