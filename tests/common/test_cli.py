"""The `fedward` command: what it loads, what it says, and how it ends."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click
import pytest
import typer

from fedward.common import cli, errors
from fedward.common.cli import GROUPS, Group, main, root
from fedward.common.study.load import EXAMPLE
from fedward.common.version import version, versions

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "flwr", "polars", "opacus", "dp_accounting", "sklearn", "matplotlib", "scipy")
HELP = [
    ["--help"],
    ["study", "--help"],
    *(["study", name, "--help"] for name in ("new", "check", "hash", "show")),
]


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE, encoding="utf-8")
    return path


def failing(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Make `fedward fail` a command that does `action`."""
    app = typer.Typer(add_completion=False)
    app.command("fail")(lambda: action() and None)
    module = ModuleType("fedward_test_failing")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    groups = {**GROUPS, "fail": Group(module.__name__, "server", "Fails.")}
    monkeypatch.setattr(cli, "GROUPS", groups)


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def action() -> NoReturn:
        raise error

    return action


def loaded_by(arguments: list[str]) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `fedward arguments`."""
    code = (
        "import sys, json\n"
        "from fedward.common.cli import main\n"
        f"main({arguments!r})\n"
        "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["study", "--help"], ["study", "hash"], ["study", "check"]],
)
def test_light_commands_load_nothing_heavy(arguments: list[str], study_file: Path) -> None:
    if arguments[-1] in ("hash", "check"):
        arguments = [*arguments, str(study_file)]
    assert loaded_by(arguments) & set(HEAVY) == set()


def test_the_test_above_would_notice(study_file: Path) -> None:
    assert "torch" in loaded_by(["study", "show", str(study_file)])


def test_groups_are_imported_only_when_invoked() -> None:
    modules = [group.module for group in GROUPS.values()]
    code = (
        "import sys\nfrom fedward.common.cli import main\nmain(['--help'])\n"
        f"assert not [m for m in {modules!r} if m in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_exists_and_says_what_it_needs(name: str) -> None:
    group = GROUPS[name]
    assert importlib.util.find_spec(group.module) is not None
    assert group.help.endswith(".")
    if group.extra:
        assert f"\n{group.extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_is_complete(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for part in ("Usage: fedward", "Example", "Options:", "Exit codes:", "  0    Success"):
        assert part in text
    # Nothing of click's or rich's markup is left over.
    assert "\b" not in text
    assert "[bold" not in text
    assert "install-completion" not in text


def test_root_help_lists_every_group_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for name, group in GROUPS.items():
        assert re.search(rf"^  {name} +{re.escape(group.help[:30])}", text, re.MULTILINE)
    for code in (0, 1, 2, 3, 11, 130):
        assert re.search(rf"^ +{code} +[A-Z]", text, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedward {version()}\n"
    assert versions()["fedward"] == version()
    assert versions()["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


@pytest.mark.parametrize(
    "arguments", [[], ["stuby"], ["study"], ["study", "check"], ["--wrong"], ["study", "new"]]
)
def test_a_wrong_command_line_is_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Usage: fedward" in captured.out + captured.err
    assert "Traceback" not in captured.err


REFUSALS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
REFUSALS = [k for k in REFUSALS if issubclass(k, errors.FedwardError) and k.exit_code != 1]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_one_line_and_its_own_code(
    kind: type[errors.FedwardError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, raising(kind("it is\nso", hint="do this")))
    assert main(["fail"]) == kind.exit_code
    captured = capsys.readouterr()
    assert captured.err == "error: it is so: do this\n"
    assert captured.out == ""


def test_a_defect_says_where_but_not_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, raising(ValueError("Mrs Smith, born 1950")))
    assert main(["fail"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "this is a defect in fedward: ValueError at cli.py, line " in message
    assert "please report it" in message
    assert "Smith" not in message


def test_what_failed_among_tasks_side_by_side_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = errors.OutputError("it is full", hint="make room")
    failing(monkeypatch, raising(ExceptionGroup("tasks", [ExceptionGroup("", [refusal])])))
    assert main(["fail"]) == errors.OutputError.exit_code
    assert capsys.readouterr().err == "error: it is full: make room\n"
    failing(monkeypatch, raising(ExceptionGroup("tasks", [ValueError("Mrs Smith")])))
    assert main(["fail"]) == 1
    assert "this is a defect in fedward: ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, raising(errors.DataError("x", hint="y")))
    if how == "environment":
        monkeypatch.setenv("FEDWARD_DEBUG", "1")
    assert main([*(["--debug"] if how == "option" else []), "fail"]) == 5
    message = capsys.readouterr().err
    assert message.startswith("Traceback")
    assert message.endswith("error: x: y\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_is_130(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, raising(error))
    assert main(["fail"]) == 130
    assert capsys.readouterr().err.startswith("error: stopped by Ctrl-C: ")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_10(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, raising(OSError(code, "No space", "/ward/smith.csv")))
    assert main(["fail"]) == 10
    message = capsys.readouterr().err
    assert message.startswith("error: cannot write smith.csv: the disk ")


def test_another_os_error_is_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, raising(OSError(errno.EIO, "text")))
    assert main(["fail"]) == 1


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ModuleNotFoundError("No module named 'grpc'", name="grpc.aio")
    failing(monkeypatch, raising(missing))
    assert main(["fail"]) == 11
    message = capsys.readouterr().err
    assert "`fedward fail` needs the package grpc" in message
    assert "pip install 'fedward[server]'" in message


def test_a_missing_package_is_noticed_when_the_group_is_imported() -> None:
    """As in an installation without the extra: the import system does not find polars."""
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('polars', 'flwr', 'matplotlib', 'jinja2'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from fedward.common.cli import main\n"
        "sys.exit(main(['simulate', 'study.toml']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    # Either the import or the missing study file comes first; neither is a traceback.
    assert done.returncode in (3, 11)
    assert "Traceback" not in done.stderr


def test_a_missing_module_of_our_own_is_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {"gone": Group("fedward.common.gone", "", "Gone.")}
    monkeypatch.setattr(cli, "GROUPS", groups)
    assert main(["gone"]) == 1
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_exit_codes_of_click_and_sys_exit_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, raising(SystemExit(7)))
    assert main(["fail"]) == 7
    failing(monkeypatch, raising(typer.Exit(4)))
    assert main(["fail"]) == 4


def test_a_closed_pipe_is_not_a_defect(study_file: Path) -> None:
    """The reader goes away before anything is written."""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from fedward.common.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "study", "check", str(study_file)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_flower_is_told_to_be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "0")
    main(["--version"])
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "0", "the user's own choice is kept"


def test_the_installed_script_is_this_function() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'fedward = "fedward.common.cli:main"' in text
    assert isinstance(root, click.Group)
