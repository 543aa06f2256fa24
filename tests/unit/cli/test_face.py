"""The command line as such: errors, --debug, completion, and --dry-run where something costs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from pmlray.cli import PANELS, app, main
from pmlray.errors import RunError
from pmlray.version import __version__

COSTLY = ("search", "compare", "size", "submit")
runner = CliRunner()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["pmlray", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_an_error_is_a_message_and_with_debug_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "validate", "nowhere.yaml") == 2
    assert capsys.readouterr().err.startswith("error: there is no file nowhere.yaml")
    monkeypatch.setattr(sys, "argv", ["pmlray", "--debug", "validate", "nowhere.yaml"])
    logger = logging.getLogger("pmlray")
    monkeypatch.setattr(logger, "level", logger.level)
    with pytest.raises(Exception, match=r"there is no file nowhere\.yaml"):
        main()
    assert logger.level == logging.DEBUG


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TypeError("what"), 4, "TypeError: what; this is a fault of pmlray: `pmlray --debug"),
        (RunError("2 packs failed"), 3, "error: 2 packs failed"),
        (PermissionError(13, "Permission denied", "x"), 3, "check that path, its permissions"),
    ],
)
def test_what_nobody_foresaw_says_what_to_do_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    said: str,
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr("pmlray.cli.search_commands.prepare_search", fail)
    assert run_main(monkeypatch, "validate", "x.yaml") == code
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_PMLRAY_COMPLETE": "complete_bash", "COMP_WORDS": words,
                 "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
        return runner.invoke(app, [], env=asked, prog_name="pmlray").stdout.split()

    assert completed("pmlray sea") == ["search"]
    assert "--dry-run" in completed("pmlray submit --dry")


def test_the_version_is_told() -> None:
    done = runner.invoke(app, ["--version"])
    assert done.exit_code == 0 and done.stdout == f"pmlray {__version__}\n"


def test_the_help_is_in_panels_and_tells_where_results_go() -> None:
    shown = runner.invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert runner.invoke(app, ["doctor", "tokens"]).exit_code == 2, "it is pmlray tokens"
    assert all(f"─ {panel} ─" in shown for panel in PANELS)
    for name, option in (("search", "--store"), ("compare", "--store"), ("size", "--out"),
                         ("submit", "--store"), ("doctor", "--store"), ("report", "--out"),
                         ("search", "--profile"), ("search", "--tracking-uri"),
                         ("size", "--profile"), ("size", "--revision"), ("init", "--revision"),
                         ("init", "--task")):  # fmt: skip
        params = typer.main.get_group(app).commands[name].params
        (told,) = (getattr(p, "help", "") for p in params if option in p.opts)
        assert "default: " in told.lower(), (name, option)


@pytest.mark.parametrize("name", COSTLY)
def test_all_that_costs_can_be_run_dry(name: str) -> None:
    command = typer.main.get_group(app).commands[name]
    assert "--dry-run" in {option for p in command.params for option in p.opts}


def test_a_dry_submit_tells_what_it_would_send_and_asks_nobody(search_file: Path) -> None:
    records = search_file.parent / "facts.csv"
    records.write_text("query,target\n" + "".join(f"{i}:,{i} is {i}\n" for i in range(99)))
    nobody = "http://127.0.0.1:1"
    options = ["--set", "task={kind: records, records: facts.csv}", "--profile", "no.yaml"]
    done = runner.invoke(app, ["submit", str(search_file), "--address", nobody, *options])
    assert "no.yaml" in str(done.exception)
    done = runner.invoke(
        app, ["submit", str(search_file), "--address", nobody, *options[:2], "--dry-run", "--json"]
    )
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["arguments"] == ["search", "search.yaml"] and found["address"] == nobody
    assert found["upload_bytes"] > records.stat().st_size and found["first_pack"]
    assert found["search_id"].startswith("unit-")
