"""Folders of results, told from URLs, which no file system of this machine has.

A path library reads `s3://bucket/x` as the folder `s3:` here, which would be made without a word.
"""

from __future__ import annotations

import re
from pathlib import Path

from pmlray.config.secrets import without_credentials
from pmlray.errors import SpecError

# Of two letters and more, at the beginning or as a part of a path: C:/ is none.
_SCHEME = re.compile(r"(?:^|/)(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)$", re.DOTALL)


def why_no_folder(given: str | Path) -> str | None:
    """Return why something given as a folder is none, with the remedy; None where it may be one.

    Example:
        >>> why_no_folder("/mnt/runs") is None
        True
    """
    found = _SCHEME.search(str(given))
    if found is None:
        return None
    scheme, rest = found["scheme"], found["rest"]
    if scheme.lower() == "file":
        return f"give a folder's path instead of a URL: /{rest}"
    shown = without_credentials(f"{scheme}://{rest}")
    return (
        f"{shown} is no folder: results are kept in a folder, on a shared file system (NFS, EFS,"
        " Filestore, Lustre) that is mounted at the same path on every node; give that path"
    )


def local_folder(given: str | Path, named: str) -> Path:
    """Return a folder that was given; SpecError, with the remedy, where it is a URL.

    named: the option or variable that gave it.
    """
    if (why := why_no_folder(given)) is not None:
        raise SpecError(f"{named}: {why}")
    return Path(given)
