"""Known vulnerabilities of what is pinned in requirements.lock, by pip-audit and PyPI's advisories.

    python scripts/audit.py

pip-audit gets an environment of its own: nothing of pmlray needs it. A finding fails, unless it
stands in EXPLAINED. Where the index cannot be reached, or serves no advisories as a mirror does,
that is said, and nothing fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PIP_AUDIT = "pip-audit==2.10.1"
LOCK = Path(__file__).parents[1] / "requirements.lock"
# An advisory's id, and why it does not concern pmlray.
EXPLAINED: Mapping[str, str] = {}
MOST_SECONDS = 300


def findings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(package, advisory) of a report of pip-audit's that nobody has explained."""
    return [
        (f"{found['name']} {found['version']}", vulnerability["id"])
        for found in report["dependencies"]
        for vulnerability in found.get("vulns", ())
        if not {vulnerability["id"], *vulnerability.get("aliases", ())} & EXPLAINED.keys()
    ]


def pins(lock: str) -> list[str]:
    """The pins of a lock file, without their hashes."""
    return re.findall(r"^[\w.-]+==[^\s\\]+", lock, re.MULTILINE)


def skipped(report: Mapping[str, Any]) -> list[str]:
    """The packages that the index has no advisories of."""
    return [found["name"] for found in report["dependencies"] if "skip_reason" in found]


def audit(python: Path, pinned: Sequence[str], folder: Path) -> Mapping[str, Any] | None:
    """pip-audit's report of these packages; None when the index did not answer."""
    asked = folder / "asked.txt"
    asked.write_text("\n".join(pinned))
    command = [python, "-m", "pip_audit", "--no-deps", "--disable-pip", "--requirement", asked,
               "--format", "json", "--progress-spinner", "off", "--timeout", "15"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None


def main() -> None:
    """Audit the lock and print what was found."""
    pinned = pins(LOCK.read_text())
    with tempfile.TemporaryDirectory(prefix="pmlray-audit-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                   PIP_AUDIT]  # fmt: skip
        installed = subprocess.run(install, capture_output=True, timeout=MOST_SECONDS)
        # One first: a mirror without advisories need not be asked for them all.
        first = audit(python, pinned[:1], folder) if installed.returncode == 0 else None
        if first is None or skipped(first):
            print("audit: the package index gives no advisories here; nothing was audited")
            return
        report = audit(python, pinned, folder)
    if report is None:
        print("audit: the package index did not answer; nothing was audited")
        return
    found = findings(report)
    for package, advisory in found:
        print(f"audit: {package} has {advisory}: raise its pin, or explain it in scripts/audit.py")
    print(f"audit: {len(pinned) - len(skipped(report))} of {len(pinned)} packages audited,"
          f" {len(found)} findings, {len(EXPLAINED)} explained")  # fmt: skip
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
