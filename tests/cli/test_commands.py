"""The command line as a person uses it: in a process of its own where that is what the test is about."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.cli.command import octavo, octavo_process, one_line


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`octavo serve` on a free port; yields the process and its URL once it says it is ready."""
    command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"ready on (http://\S+)", line):
                yield process, found[1]
                break
        else:
            pytest.fail("".join(said))
    finally:
        process.kill()
        process.communicate()


def test_info_names_what_is_used_and_measures_it() -> None:
    facts = json.loads(octavo("info", "--threads", "1", "--json").stdout)
    assert facts["threads"] == 1
    assert facts["isa"] == (facts["isas"][0] if facts["isas"] else None)
    rates = ("memory_bytes_per_second", "float_operations_per_second", "integer_operations_per_second")
    assert all(facts[rate] > 1e8 for rate in rates)
    assert f"instruction set  {facts['isa'] or 'numpy'}" in octavo("info").stdout


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--isa", "mmx"], "mmx"),
        (["--kv-cache-dtype", "fp8"], "fp32, fp16 or int8"),
        (["--quantization", "q3"], "q8 or q4"),
        (["--backend", "reference", "--quantization", "q8"], "native kernels"),
        (["--backend", "reference", "--kv-cache-dtype", "int8"], "native kernels"),
    ],
)
def test_settings_of_the_kernels_are_refused_by_name(tiny_model: Path, flags: list[str], named: str) -> None:
    assert named in one_line(octavo("bench", "offline", str(tiny_model), "--num-prompts", "1", *flags))


def test_version_and_help() -> None:
    assert octavo_process("--version").stdout.startswith("octavo 0.")
    assert "bench" in octavo_process("--help").stdout


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["bench", "offline"], ["bench", "latency"]])
def test_an_unknown_model_is_one_line(command: list[str], tmp_path: Path) -> None:
    line = one_line(octavo_process(*command, "no-such-model", OCTAVO_CACHE=str(tmp_path)))
    assert "no-such-model" in line
    assert "smollm2:135m" in line


def test_the_catalogue_is_listed_without_blanks_at_the_end_of_lines() -> None:
    listed = octavo("pull", "--list")
    assert {"smollm2:135m", "gpt2"} <= {line.split()[0] for line in listed.stdout.splitlines()}
    assert not re.search(r" $", listed.stdout, re.MULTILINE)


def test_a_truncated_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0\1\0")
    assert "cut.gguf" in one_line(octavo("bench", "offline", str(tmp_path / "cut.gguf")))
    assert "cut.gguf" in octavo_process("serve", str(tmp_path / "cut.gguf"), "--port", "0").stderr


def test_an_unsupported_architecture_is_named(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    )
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).symlink_to(tiny_model / file)
    result = octavo_process("serve", str(tmp_path), "--port", "0")
    assert result.returncode == 1
    assert "MambaForCausalLM" in result.stderr
    assert "LlamaForCausalLM" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_one_line(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = one_line(octavo_process("serve", str(tiny_model), "--port", port))
    assert port in line
    assert "in use" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kv-cache-memory-bytes", "100"], ["100 bytes holds no page", "4,096 bytes"]),
        (["--max-model-len", "100000"], ["100000", "256 positions"]),
        (["--max-num-seqs", "0"], ["max_num_seqs is 0"]),
        (["--max-num-batched-tokens", "4", "--max-num-seqs", "8"], ["4 is less than max_num_seqs 8"]),
        (["--tensor-parallel-size", "2"], ["tensor_parallel_size 2"]),
        (["--dtype", "bfloat16"], ["bfloat16", "float32"]),
        (["--backend", "tpu"], ["tpu", "auto, cpu or reference"]),
        (["--threads", "0"], ["threads is 0"]),
        (["--gpu-memory-utilization", "1.5"], ["gpu_memory_utilization is 1.5"]),
        (["--kv-cache-memory-bytes", "4000GiB"], ["4,294,967,296,000 bytes", "of memory here"]),
        (["--max-num-seqs", "1000000000"], ["max_num_seqs is 1000000000"]),
        (
            ["--kv-cache-memory-bytes", "16KiB", "--max-model-len", "128"],
            ["needs 8 pages", "has 4 pages", "64 or less"],
        ),
    ],
)
def test_settings_that_cannot_work_are_one_line(tiny_model: Path, flags: list[str], words: list[str]) -> None:
    line = one_line(octavo("bench", "offline", str(tiny_model), "--backend", "reference", *flags))
    for word in words:
        assert word in line


def test_two_models_are_refused(tiny_model: Path) -> None:
    assert "name one" in one_line(octavo("bench", "offline", "a", "--model", "b"))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("work", [["offline", "--num-prompts", "3"], ["latency"]])
def test_bench_prints_the_keys(tiny_model: Path, work: list[str], backend: str) -> None:
    lengths = ["--input-len", "40", "--output-len", "8"]
    result = octavo("bench", *work, "--model", str(tiny_model), *lengths, "--backend", backend, "--json")
    figures = json.loads(result.stdout)
    keys = {
        "output_tokens_per_second",
        "total_tokens_per_second",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "time_to_first_token_seconds",
        "kv_utilization",
        "roofline_fraction",
        "peak_rss_bytes",
    }
    assert keys <= figures.keys()
    assert all(figures[key] > 0 for key in keys)
    assert figures["backend"] == backend
    assert figures["kv_utilization"] <= 1
    assert figures["total_tokens_per_second"] == pytest.approx(figures["output_tokens_per_second"] * 6)


def test_bench_of_one_token(tiny_model: Path) -> None:
    assert octavo_process("bench", "offline", str(tiny_model), "--input-len", "1", "--output-len", "1").returncode == 0


@pytest.mark.parametrize("flags", [["--kv-cache-memory-bytes", "10"], ["--max-model-len", "9999"]])
def test_serving_what_cannot_work_is_one_line(tiny_model: Path, flags: list[str]) -> None:
    one_line(octavo_process("serve", str(tiny_model), "--port", "0", *flags))


@pytest.mark.parametrize("flag", ["--api-key", "--host", "--served-model-name"])
def test_empty_values_are_refused(tiny_model: Path, flag: str) -> None:
    assert flag in one_line(octavo("serve", str(tiny_model), flag, ""))


def test_serve_answers_the_sdk_and_drains(tiny_model: Path) -> None:
    with serving(tiny_model, "--served-model-name", "tiny", "--api-key", "secret", "--seed", "1") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
        messages = [{"role": "user", "content": "the quick brown fox"}]
        whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, seed=4)  # type: ignore[arg-type]
        stream = client.chat.completions.create(
            model="tiny",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=12,
            seed=4,
            stream=True,
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert streamed == whole.choices[0].message.content
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
        # A request in flight when the signal comes is answered in full; the process then ends by itself.
        with client.completions.with_streaming_response.create(
            model="tiny", prompt="the", max_tokens=150, stream=True, extra_body={"ignore_eos": True}
        ) as response:
            lines = response.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert first.startswith("data: {")
        assert rest[-1] == "data: [DONE]"
        assert process.wait(20) == 0


@pytest.mark.parametrize("moment", [0.3, 0.6, 0.9, 1.2, 1.6, 2.0])
def test_ctrl_c_at_any_moment_of_the_start_leaves_nothing_behind(tiny_model: Path, moment: float) -> None:
    command = [sys.executable, "-m", "octavo", "serve", str(tiny_model), "--port", "0"]
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"TMPDIR": temporary}
        )
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)  # ends when the last process has closed it
        assert os.listdir(temporary) == []
    # On a busy machine it may be the interpreter that is still starting, and says so; none of our code is in that.
    assert not re.search(r'File ".*/octavo/\w', said), said
    assert "octavo:" not in said
    assert "requests in flight" not in said or "is ready" in said, "before, there are none"


def test_chat_answers_a_prompt_and_standard_input(tiny_model: Path) -> None:
    with serving(tiny_model) as (_, url):
        flags = ["--url", url, "--seed", "3", "--max-tokens", "8"]
        given = octavo_process("chat", "-p", "the quick", *flags)
        assert given.returncode == 0, given.stderr
        assert len(given.stdout.strip()) > 0
        assert octavo("chat", *flags, stdin="the quick").stdout == given.stdout
        refused = octavo("chat", "-p", "x", "--url", url, "--max-tokens", "100000")
        assert "maximum context length" in one_line(refused)
    assert "no server answers" in one_line(octavo("chat", "-p", "x", "--url", "http://127.0.0.1:9"))


def test_chat_brings_its_own_server_for_itself_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SERVED_MODEL_NAME", "other"), ("API_KEY_FILE", "/no/such/file"), ("CONFIG", "/no/such/file")):
        monkeypatch.setenv(f"OCTAVO_{name}", value)
    result = octavo_process("chat", str(tiny_model), "-p", "the quick", "--seed", "3", "--max-tokens", "8")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip()) > 0
