"""`import octavo` loads next to nothing, and everything is there when it is asked for."""

import json

import pytest

import octavo
from tests.llm.conftest import run

IMPORTED = "import json, sys; before = set(sys.modules); {}; print(json.dumps(sorted(set(sys.modules) - before)))"


def imported(statement: str) -> set[str]:
    """The names of packages that a statement loads."""
    result = run(IMPORTED.format(statement))
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stdout)}


def test_octavo_alone_loads_nothing_but_the_standard_library() -> None:
    result = run(IMPORTED.format("import octavo"))
    assert [name for name in json.loads(result.stdout) if name.startswith("octavo")] == ["octavo"]
    heavy = {"numpy", "asyncio", "pydantic", "fastapi", "zmq", "msgspec", "tokenizers", "rich", "jinja2", "inspect"}
    assert not heavy & imported("import octavo")


def test_sampling_params_need_no_other_package() -> None:
    assert not {"numpy", "pydantic", "fastapi", "zmq", "tokenizers"} & imported(
        "from octavo import SamplingParams, StructuredOutputsParams"
    )


@pytest.mark.parametrize("name", octavo.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(octavo, name).__name__ == name
    assert name in dir(octavo)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'octavo' has no attribute 'LMM'"):
        octavo.LMM  # noqa: B018
    assert run("from octavo import LMM").stderr.strip().splitlines()[-1].startswith("ImportError: cannot import name")


def test_type_checkers_see_the_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("typed")
    program = folder / "program.py"
    program.write_text(
        "import octavo\n"
        "def f(llm: octavo.LLM) -> list[str]:\n"
        "    outputs = llm.generate(['a', 'b'], octavo.SamplingParams(temperature=0))\n"
        "    reveal_type(outputs)\n"
        "    llm.generate([[1, 2], [3]]), llm.generate('a'), llm.generate([1, 2]), llm.chat([{'role': 'user'}])\n"
        "    return [output.text for output in outputs]\n"
        "octavo.SamplingParams(temprature=1)\n"
    )
    found = run("import mypy.api, sys; print(mypy.api.run(['--strict', sys.argv[1]])[0])", str(program), timeout=240)
    assert 'Revealed type is "list[octavo.llm.outputs.RequestOutput]"' in found.stdout, found.stdout + found.stderr
    assert 'Unexpected keyword argument "temprature"' in found.stdout
    assert "Found 1 error" in found.stdout
