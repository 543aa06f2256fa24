"""The guide to clusters names files, placeholders, commands and options that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer.main

from pmlray.cli import app

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
GUIDE = (CLUSTER / "README.md").read_text()
PLACEHOLDERS = ("REGISTRY", "AMI_ID", "EFS_ADDRESS", "PROJECT_ID", "FILESTORE_IP", "IMAGE_FAMILY",
                "BUCKET")  # fmt: skip


def test_every_file_it_names_is_there_and_every_file_is_named() -> None:
    named = set(re.findall(r"\b((?:cluster|searches)/[\w./-]+\.\w+)\b", GUIDE))
    no_file_of_ours = {"searches/X.yaml", "cluster/profiles/P.yaml", "cluster/mlflow/.env"}
    assert not [name for name in named - no_file_of_ours if not (ROOT / name).is_file()]
    entries = {p for p in CLUSTER.rglob("*.*") if p.suffix in (".yaml", ".sbatch", ".sh")}
    hidden = {"cluster/mlflow/serve.sh", "cluster/profiles/cpu.yaml"}
    assert {str(p.relative_to(ROOT)) for p in entries} - named == hidden


def test_every_placeholder_of_the_files_is_explained() -> None:
    texts = "".join(path.read_text() for path in CLUSTER.rglob("*.yaml"))
    assert not [word for word in PLACEHOLDERS if word not in texts or word not in GUIDE]


def test_every_pmlray_command_it_shows_exists_with_its_options() -> None:
    group = typer.main.get_group(app)
    text = GUIDE.replace("\\\n", " ")
    shown = re.findall(
        r"^pmlray (.+)$", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)), re.M
    )
    assert len(shown) > 8
    for line in shown:
        name, *arguments = shlex.split(line, comments=True)
        known = {option for p in group.commands[name].params for option in p.opts}
        assert {a for a in arguments if a.startswith("--")} <= known, line
