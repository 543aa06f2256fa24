"""Every command that a text names is one that pmlray has: cards, helps, errors, documents."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from pmlray.cli import app
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import prepare_comparison, prepare_search
from pmlray.config.search_spec import SearchSpec

ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app)
NAMES = "|".join(GROUP.commands)
# What stands for a value: capitals, or a value that a template or an f-string fills in.
FILLED = "⟨⟩"
PLACEHOLDER = re.compile(rf"[A-Z][A-Z_]*(\.[a-z]+)?|.*{FILLED}.*")
# An option, or what can only be a value, so that a command ends where prose goes on.
CAPITALS, PATH = r"[A-Z][A-Z_]+(?:\.[a-z]+)?(?!\w)", rf"[\w.-]*[/{FILLED}][\w./{FILLED}-]*"
WORD = rf"(?: +(?:--[a-z][a-z-]*|{CAPITALS}|{PATH}))"
IN_PROSE = re.compile(rf"\bpmlray ((?:{NAMES})\b(?: (?:pull|list)\b)?{WORD}*)")
IN_TICKS = re.compile(r"`(?:\.venv/bin/|python -m )?pmlray\s+([^`]+)`")
LINE = re.compile(r"^[\s#$]*(?:\.venv/bin/|python -m )?pmlray ([a-z]+ .*|[a-z]+)$", re.M)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


@dataclass(frozen=True)
class Named:
    """A command in a text; whole: it is to be typed as it stands."""

    where: str
    text: str
    whole: bool


def python_texts(file: Path) -> Iterator[str]:
    """Every string of a module, with FILLED where an f-string has a value."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)}
            parts = [v.value if isinstance(v, ast.Constant) else FILLED for v in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield node.value if isinstance(node.value, str) else ""


def named_commands() -> Iterator[Named]:
    listed = subprocess.run(
        ["git", "ls-files", "--", "*.py", "*.md", "*.yaml", "*.j2", "*.sh", "*.sbatch"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in (n for n in listed if not n.startswith("tests/") and (ROOT / n).is_file()):
        if name.endswith(".py"):
            for text in python_texts(ROOT / name):
                yield from in_ticks(name, text)
                rest = " ".join(IN_TICKS.sub("", text).split())
                yield from (Named(name, found, False) for found in IN_PROSE.findall(rest))
            continue
        text = re.sub(r"\{\{.*?\}\}", FILLED, (ROOT / name).read_text("utf-8"))
        yield from in_ticks(name, FENCE.sub("", text))
        shell = [code for kind, code in FENCE.findall(text) if kind in ("", "bash", "sh")]
        code = "\n".join(shell) if name.endswith(".md") else text
        for found in LINE.findall(code.replace("\\\n", " ")):
            # What a comment, a second column or a pipe begins is no part of it.
            command = re.split(r"\s{3,}(?![-\s])|\s#|\s\|\s|\s&$", found)[0]
            yield Named(name, " ".join(command.split()), True)


def in_ticks(name: str, text: str) -> Iterator[Named]:
    yield from (Named(name, " ".join(t.split()), False) for t in IN_TICKS.findall(text))


def fault(text: str, whole: bool) -> str | None:
    """What is wrong with a command, by the real command line."""
    before = {o for p in GROUP.params for o in p.opts} | {"--help"}
    words = [w for w in shlex.split(text.rstrip(".,:;")) if w not in before]
    if not words or PLACEHOLDER.fullmatch(words[0]):
        return None
    command, rest = GROUP.commands.get(words[0]), words[1:]
    if command is None:
        return f"there is no command {words[0]}"
    if rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    options = {o: p for p in command.params for o in (*p.opts, *p.secondary_opts)}
    places = [p for p in command.params if p.param_type_name == "argument"]
    context, given, vague = command.context_class(command), set(), "..." in rest
    rest = [word for word in rest if word != "..."]
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            word, _, value = word.partition("=")
            param = options.get(word)
            if param is None:
                return f"{words[0]} has no option {word}"
            given.add(param.name)
            if param.is_flag:
                continue
            if not value and not rest:
                # A text may name an option without a value of it.
                return f"{word} needs a value" if whole else None
            value = value or rest.pop(0)
        else:
            left = [p for p in places if p.name not in given or p.nargs == -1]
            if not left:
                return f"{words[0]} takes no {word}"
            param, value = left[0], word
            given.add(param.name)
        if not PLACEHOLDER.fullmatch(value):
            many = getattr(param, "multiple", False) or param.nargs == -1
            try:
                param.process_value(context, [value] if many else value)
            except typer.BadParameter as error:
                return f"{word}: {error.message}"
    needed = {p.name: p.opts[0] for p in command.params if p.required}
    lacking = [option for name, option in needed.items() if name not in given]
    # A text may name a command by an option alone.
    if lacking and not vague and (whole or needed.keys() & given):
        return f"{words[0]} needs {', '.join(lacking)}"
    return None


def test_every_command_that_a_text_names_can_be_typed() -> None:
    found = list(named_commands())
    assert len(found) > 100 and len({n.text.split()[0] for n in found}) > 15
    checked = [(named, fault(named.text, named.whole)) for named in found]
    faults = [f"{n.where}: pmlray {n.text}: {why}" for n, why in checked if why is not None]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frob X", "no command frob"),
        ("recall ADAPTER", "takes no ADAPTER"),
        ("recall --adapter FOLDER --facts FILE", "no option --facts"),
        ("recall --adapter FOLDER", "needs --records"),
        ("size --records FILE --model NAME --steps many", "--steps"),
        ("size --records FILE --model NAME --prompt-format loud", "--prompt-format"),
    ],
)
def test_a_command_that_pmlray_lacks_is_found(text: str, says: str) -> None:
    assert says in (fault(text, True) or "")


@pytest.mark.parametrize("name", ["validate", "plan", "search", "submit", "compare"])
def test_the_key_in_the_help_of_set_is_one_that_the_file_has(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    (override,) = re.findall(r"--set (\w+(?:\.\w+)*=\w+)", shown)
    if name == "compare":
        prepare_comparison(ROOT / "searches/comparisons/smoke.yaml", [override])
    else:
        prepare_search(ROOT / "searches/smoke.yaml", [override])


def test_the_keys_that_helps_name_are_keys_of_the_files() -> None:
    kinds: tuple[Any, ...] = (SearchSpec, CompareSpec)
    keys = {
        f"{part}.{key}"
        for kind in kinds
        for part, field in kind.model_fields.items()
        for key in getattr(field.annotation, "model_fields", ())
    }
    assert {"budget.gpu_seconds", "model.dtype"} <= keys
    parts = "|".join({key.partition(".")[0] for key in keys})
    commands = list(GROUP.commands.values())
    commands += [sub for c in commands for sub in getattr(c, "commands", {}).values()]
    helps = [c.help or "" for c in commands]
    helps += [getattr(param, "help", None) or "" for c in commands for param in c.params]
    named = re.findall(rf"\b(?:{parts})\.[a-z_]+\b", "\n".join(helps))
    assert named and not set(named) - keys
