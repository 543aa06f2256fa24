"""Stores that others have written to, and terminals and disks that are not as one would like."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import StoreError
from pmlray.live_packs import LivePack, put_live
from pmlray.types import Pack
from tests.fakes import SyntheticRunner
from tests.integration.conftest import ROOT, pmlray

EVIL = "\x1b]0;title\x07why \x1b[31mred \u00e9\x1b[2J"


@pytest.fixture
def store(make_search: Callable[..., PreparedSearch], tmp_path: Path) -> FileStore:
    """A store with a law in it, and a pack in training."""
    search = make_search("law.n_bootstrap=20")
    store = FileStore(tmp_path / "store")
    (store.folder / SEARCH_FILE).write_text(search.spec.model_dump_json())
    points = search.spec.space.points()
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in points]
    SyntheticRunner(store).run(Pack(0, tuple(runs[:12])))
    pack = Pack(1, tuple(replace(run, why=EVIL) for run in runs[12:14]))
    store.put_plan(pack)
    (store.folder / "live").mkdir()
    put_live(store.folder, LivePack(pack.pack_id, EVIL, 2e9, 2))
    return store


def test_an_ascii_terminal_shows_whatever_is_in_a_store(store: FileStore) -> None:
    plain = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    with store.driver_lock():
        code, out, err = pmlray("watch", str(store.folder), "--once", **plain)
    assert code == 0, err
    assert "why red \\xe9" in err and "\x1b" not in out + err
    for command in (["report", str(store.folder)], ["--help"], ["size", "--help"]):
        code, out, err = pmlray(*command, **plain)
        assert code == 0 and out.isascii() and "\x1b" not in out + err, err


FULL = """
import hashlib, os, sys
from pathlib import Path
from pmlray.api.search_run import report_store
from pmlray.errors import StoreError
folder = Path(sys.argv[1])
def digests():
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "filler"]
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
report_store(folder)
whole = digests()
try:
    with open(folder / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**16))
except OSError:
    pass
with open(folder / "filler", "r+b") as filler:
    filler.truncate(os.path.getsize(folder / "filler") - 2**18)
try:
    report_store(folder)
except StoreError as error:
    print("SAID", error)
print("WHOLE", digests() == whole)
(folder / "filler").unlink()
report_store(folder)
"""


def test_a_full_disk_leaves_the_report_of_before_whole(store: FileStore) -> None:
    mount = 'cp -r "$1" "$1.kept" && mount -t tmpfs -o size=12m none "$1" && cp -r "$1.kept/." "$1"'
    command = [sys.executable, "-c", FULL, str(store.folder)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && shift && exec "$@"', "sh", str(store.folder),
         *command],
        capture_output=True, text=True, timeout=200, cwd=ROOT,
    )  # fmt: skip
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SAID the report cannot be written" in done.stdout and "No space left" in done.stdout
    assert "WHOLE True" in done.stdout


@pytest.mark.parametrize("part", ["report", "report/report.html", "report/figures"])
def test_a_report_is_not_written_through_a_link(
    part: str, store: FileStore, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    if part == "report/report.html":
        mine.write_text("mine")
    else:
        mine.mkdir()
    (store.folder / part).parent.mkdir(exist_ok=True)
    (store.folder / part).symlink_to(mine)
    done = CliRunner().invoke(app, ["report", str(store.folder)])
    assert isinstance(done.exception, StoreError) and "symbolic link" in str(done.exception)
    assert mine.read_text() == "mine" if mine.is_file() else not list(mine.iterdir())


def test_nothing_is_sent_to_mlflow_through_a_link(store: FileStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of whoever sends")
    adapter = store.adapters / store.observations()[0].run_key
    adapter.mkdir()
    (adapter / "adapter_config.json").symlink_to(secret)
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = CliRunner().invoke(app, ["sync", str(store.folder), "--tracking-uri", database])
    assert isinstance(done.exception, StoreError) and "symbolic link" in str(done.exception)
    copies = [p for p in tmp_path.rglob("adapter_config.json") if not p.is_symlink()]
    assert not copies
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    files = (p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink() and p != secret)
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() != digest for p in files)
