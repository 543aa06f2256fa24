"""pyright on the files of pmlray that may differ from how it passed them: those that changed, and
all that import one of them, by however many steps.

What pyright says of a file depends on its rules, on the installed packages, on the file and on what
that imports; while all of these are as they were, so is the answer. A whole run takes half a minute
of one core. Called by pre-commit (.pre-commit-config.yaml).
"""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PASSED = ROOT / ".venv" / ".typechecked"
# Node's default room for young objects is small for a type checker: it collects more often.
NODE_OPTIONS = "--max-semi-space-size=64"


def digest(*parts: bytes | str) -> str:
    each = (sha256(p.encode() if isinstance(p, str) else p).digest() for p in parts)
    return sha256(b"".join(each)).hexdigest()


def surroundings() -> str:
    """Pyright's rules, and which packages there are in which version."""
    packages = sorted(
        folder.name
        for kind in ("dist", "egg")
        for folder in ROOT.glob(f".venv/lib/python3*/site-packages/*.{kind}-info")
    )
    texts = ((ROOT / name).read_bytes() for name in ("pyproject.toml", "requirements.lock"))
    return digest(*texts, *packages)


def sources() -> dict[str, Path]:
    """The files of pmlray by the names of their modules."""
    found = {}
    for path in sorted((ROOT / "pmlray").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def states(files: dict[str, Path]) -> dict[str, str]:
    """All that pyright's answer about a module depends on, as one digest for each module."""
    graph = grimp.build_graph("pmlray", cache_dir=str(ROOT / ".import_linter_cache"))
    around = surroundings()
    content = {name: digest(name, path.read_bytes()) for name, path in files.items()}
    found = {}
    for name in files:
        read = {name, *graph.find_upstream_modules(name)}
        # A module is found by way of the packages that it lies in.
        read |= {m[:i] for m in read for i, letter in enumerate(m) if letter == "."}
        found[name] = digest(around, *(content[m] for m in sorted(read)))
    return found


def main() -> int:
    files = sources()
    now = states(files)
    passed = set(PASSED.read_text().split()) if PASSED.exists() else set[str]()
    changed = [str(files[name]) for name, state in now.items() if state not in passed]
    print(f"{len(changed)} of {len(files)} files are not as they were when pyright passed them")
    if changed:
        options = f"{os.environ.get('NODE_OPTIONS', '')} {NODE_OPTIONS}".strip()
        done = subprocess.run(
            [sys.executable, "-m", "pyright", *changed],
            cwd=ROOT,
            env={**os.environ, "NODE_OPTIONS": options},
        )
        if done.returncode != 0:
            return done.returncode
    PASSED.write_text("\n".join(now.values()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
