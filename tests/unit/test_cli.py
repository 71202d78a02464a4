"""The command `fedtide`: what a person sees when something is wrong."""

from __future__ import annotations

import importlib
import re
import tomllib
import types
from pathlib import Path

import pytest

from fedtide import cli, errors
from fedtide.doctor_command import PROBLEMS_EXIT_CODE
from fedtide.errors import FedtideError


def planted(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """The command `client` raises this when it runs."""

    def run(_parsed: object) -> int:
        if error is not None:
            raise error
        return 3

    module = types.SimpleNamespace(add_arguments=lambda _parser: None, run=run)
    monkeypatch.setattr(importlib, "import_module", lambda _name: module)


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sail"])
    assert stop.value.code == 2
    assert "invalid choice: 'sail'" in capsys.readouterr().err


def test_no_command_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([], 2), (["--help"], 0), (["--version"], 0)):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == code
    assert "fedtide 0." in capsys.readouterr().out


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["export"]) == 2
    error = capsys.readouterr().err
    assert "torch" in error
    assert "pip install '.[export]'" in error


def brings_a_runtime(project: str) -> set[str]:
    """The extras that install an ONNX Runtime, of a pyproject.toml."""
    extras = tomllib.loads(project)["project"]["optional-dependencies"]
    return {name for name, wanted in extras.items() if "onnxruntime" in " ".join(wanted)}


def test_extras_that_go_beside_any_runtime_bring_none() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    roles = {"client", "client-ort-training", "coordinator", "export"}
    assert brings_a_runtime(project) == roles
    planted = project.replace('ray = ["ray', 'ray = ["onnxruntime", "ray')
    assert brings_a_runtime(planted) == {*roles, "ray"}


@pytest.mark.parametrize("kind", FedtideError.__subclasses__())
def test_an_error_is_a_message_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[FedtideError]
) -> None:
    planted(monkeypatch, kind("it is so", hint="do this"))
    assert cli.main(["client"]) == kind.exit_code
    assert capsys.readouterr().err == "fedtide: error: it is so\n\nhint: do this\n"


def test_exit_codes_differ_and_are_documented() -> None:
    kinds = [k for k in FedtideError.__subclasses__() if k.__module__ == errors.__name__]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert errors.__doc__ is not None
    for kind in kinds:
        line = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line)
        assert line.endswith(f"exit {kind.exit_code}")


def test_other_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planted(monkeypatch, None)
    assert cli.main(["client"]) == 3
    planted(monkeypatch, KeyboardInterrupt())
    assert cli.main(["client"]) == 130
    assert capsys.readouterr().err == "fedtide: interrupted\n"
    planted(monkeypatch, BrokenPipeError())
    assert cli.main(["client"]) == 0
    planted(monkeypatch, RuntimeError("our own bug keeps its traceback"))
    with pytest.raises(RuntimeError):
        cli.main(["client"])


@pytest.mark.parametrize("command", ["client", "coordinator"])
def test_a_missing_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert cli.main([command, "--config", str(tmp_path / "absent.toml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_every_exit_code_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    table = page.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    kinds: list[type[FedtideError]] = [FedtideError, *FedtideError.__subclasses__()]
    ours = {kind.exit_code for kind in kinds if kind.__module__ == errors.__name__}
    assert documented == sorted({0, *ours, PROBLEMS_EXIT_CODE, 130})
