"""Version of this installation of pmlray, its source folder, and the files that come with it."""

import site
import sysconfig
from pathlib import Path

__version__ = "0.1.0"
SOURCE = Path(__file__).parent
# Folders that a wheel holds beside the package.
SHIPPED = ("searches", "cluster")


def shipped(name: str) -> Path:
    """Return a file or folder that comes with pmlray, as it can be read from the working folder.

    In a clone it lies beside the package, else where pip puts shared files. Where it is neither,
    as in a job of a cluster, the name itself.

    Example:
        >>> shipped("searches/smoke.yaml").name
        'smoke.yaml'
    """
    data = (sysconfig.get_path("data"), site.getuserbase(), SOURCE.parent)
    roots = (SOURCE.parent, *(Path(base) / "share" / "pmlray" for base in data))
    found = next((root / name for root in roots if (root / name).exists()), Path(name))
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed by somebody else
        return found
    return found.relative_to(here) if found.is_relative_to(here) else found


def here_or_shipped(path: Path) -> Path:
    """Return a path that exists, else the shipped file of that name; without one, the path."""
    inside = path.parts[:1] and path.parts[0] in SHIPPED and ".." not in path.parts
    return shipped(str(path)) if inside and not path.exists() else path
