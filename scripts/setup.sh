# Sourced by quickstart and test: makes .venv once and installs the pinned packages, each held against
# its hash, and pmlray. What that brings besides are the CUDA packages of PyPI's torch.
# A stamp of what was installed makes the next call a no-op.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    for candidate in python3.11 python3.12 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'; then
            echo "$candidate"
            return
        fi
    done
    echo "pmlray needs Python 3.11 or 3.12; install one and run this again" >&2
    exit 2
}

stamp=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.installed 2>/dev/null)" != "$stamp" ]; then
    python=$(find_python)
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train,notebook]'
    echo "$stamp" > .venv/.installed
fi
