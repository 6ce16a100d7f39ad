"""What the documents say is true: files, modules, classes, flags and targets exist, and every block of commands runs.

Blocks of README.md and CONTRIBUTING.md are run with the default model behind the address that they name.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import api_document, python_document

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
]
SOURCES = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]

NOT_RUN = {
    "make serve": "does not end; installs, pulls and serves, which `make test` and the server of this test do",
    "make test": "this test is a part of it",
    "make lint": "installs what this test runs in, and is a part of `make test`",
    "pip install pre-commit": "changes the repository's hooks",
    "pip install --no-deps --editable .": "builds the kernels anew, which takes minutes",
    "pytest tests/": "tests that are run anyway",
    "examples/sentiment.py": "does not end; the tests of the examples serve it",
    "models/sentiment/predict": "asks what that serves",
}
"""Lines that are left out, by what they contain, and why."""

SMALLER = {"octavo chat": "octavo chat --max-tokens 24", "--num-prompts 8": "--num-prompts 1 --input-len 64"}
"""What is run with less work to do."""


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def spans() -> Iterator[tuple[str, str]]:
    """Every `piece of code` within a sentence."""
    for document in DOCUMENTS:
        prose = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"`([^`\n]+)`", prose):
            yield document, span


def files() -> set[str]:
    """What git would keep, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if listed.returncode == 0:
        return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    return {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}  # a copy without a repository


def test_every_file_that_is_named_exists() -> None:
    known = files()
    named = [
        (document, span)
        for document, span in spans()
        if re.fullmatch(r"[\w./-]+\.(py|pyi|cpp|h|md|toml|txt)|[\w./-]+/", span)
    ]
    assert len(named) > 50
    missing = [
        (document, span)
        for document, span in named
        if not any(f"/{name}".endswith(f"/{span}") or f"/{name}".find(f"/{span.rstrip('/')}/") >= 0 for name in known)
        and span != "octavo.toml"  # a user's own
    ]
    assert not missing


def test_every_link_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", text_of(document)):
            assert "://" in target or (ROOT / document).parent.joinpath(target).exists(), (document, target)


def test_every_module_and_name_exists() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for document, span in spans():
        if re.fullmatch(r"octavo(\.[a-z_]+)+", span):
            path = ROOT / "src" / span.replace(".", "/")
            module, _, name = span.rpartition(".")
            parent = ROOT / "src" / module.replace(".", "/")
            in_parent = [file for file in (parent.with_suffix(".py"), parent / "__init__.py") if file.exists()]
            found = path.is_dir() or path.with_suffix(".py").exists()
            assert found or any(re.search(rf"\b{name}\b", file.read_text()) for file in in_parent), (document, span)
        elif named := re.fullmatch(r"([A-Z][a-z]+[A-Z]\w+)(?:\.(\w+))?(?:\(.*\))?", span):
            assert re.search(rf"\b{named[1]}\b", source), (document, span)
            assert named[2] is None or re.search(rf"\b{named[2]}\b", source), (document, span)


def test_every_flag_and_every_target_exists() -> None:
    written = "\n".join(
        path.read_text(encoding="utf-8") for path in [*SOURCES, ROOT / "Makefile", ROOT / ".ci" / "run"]
    )
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        text = text_of(document)
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE):
            assert target in targets, (document, target)
        for flag in set(re.findall(r"`(--[a-z][a-z-]+)", text)):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert flag in written or re.search(rf"\b{name}\b", written), (document, flag)


def test_the_architecture_has_a_row_for_every_room() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", text_of("docs/architecture.md"), flags=re.MULTILINE)
    rooms = {path.parent.name for path in ROOT.glob("src/octavo/*/__init__.py")}
    assert {room for room, _ in rows} == rooms
    for room, start in rows:
        for file in re.findall(r"`([^`]+\.py)`", start):
            assert (ROOT / "src/octavo" / room / file).exists(), (room, file)


# --- blocks -----------------------------------------------------------------------------------------------------------


def blocks() -> list[tuple[str, str, str]]:
    """The fenced blocks of the documents for newcomers: document, language, text."""
    return [
        (document, *block)
        for document in ("README.md", "CONTRIBUTING.md")
        for block in re.findall(r"^```(\w+)\n(.*?)^```", text_of(document), flags=re.DOTALL | re.MULTILINE)
    ]


def runnable(script: str) -> str:
    """A block of shell commands without the lines that are not run."""
    return "".join(line for line in script.splitlines(keepends=True) if not any(part in line for part in NOT_RUN))


def test_what_is_not_run_is_there() -> None:
    everything = "".join(text for _, _, text in blocks())
    assert all(part in everything for part in NOT_RUN)


@pytest.mark.skipif(os.environ.get("OCTAVO_TEST_OFFLINE") == "1", reason="no network to fetch the model from")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("document", "language", "text"), [pytest.param(*block, id=f"{block[0]}-{i}") for i, block in enumerate(blocks())]
)
def test_blocks_run(default_server: str, document: str, language: str, text: str, tmp_path: Path) -> None:
    text = text.replace("http://127.0.0.1:8000", default_server)
    for command, smaller in SMALLER.items():
        text = text.replace(command, smaller)
    if language == "sh":
        shell = runnable(text).replace(".venv/bin/", f"{shlex.quote(str(Path(sys.executable).parent))}/")
        command = ["bash", "-euo", "pipefail", "-c", shell]
    elif language == "python":
        command = [sys.executable, "-c", text]
    else:
        assert language in ("toml", "text"), "a language that this test does not know"
        return
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250, input="Say hello.")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert '"error"' not in result.stdout


def test_the_api_is_written_down_as_it_is() -> None:
    assert api_document.document() == text_of("docs/api.md"), "run `make docs`"
    assert python_document.document() == text_of("docs/python.md"), "run `make docs`"
