"""CONTRIBUTING.md's diagram shows the imports as they are."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import networkx as nx

ROOT = Path(__file__).parents[2]
# Errors and types: what every room may import, and the diagram leaves out.
FLOOR_0 = {"errors", "atomic_files", "rebuild", "types", "live_packs", "ports", "version",
           "notebook_html"}  # fmt: skip


def shown_edges() -> set[tuple[str, str]]:
    (diagram,) = re.findall(
        r"```mermaid\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    edges = re.findall(r"^ *(\w+) --> (\w+(?: & \w+)*)$", diagram, re.MULTILINE)
    assert edges, "no arrow was found in the diagram"
    return {(room, below) for room, targets in edges for below in targets.split(" & ")}


def imported_rooms() -> nx.DiGraph:
    """Which room imports from which; pmlray's own public names are those of its rooms."""
    modules = grimp.build_graph("pmlray", cache_dir=None)
    rooms = nx.DiGraph()
    for module in modules.modules:
        for imported in modules.find_modules_directly_imported_by(module):
            room, below = (name.split(".")[1:2] for name in (module, imported))
            if room and below and room != below and not FLOOR_0 & {*room, *below}:
                rooms.add_edge(*room, *below)
    rooms.remove_node("__main__")
    return rooms


def test_the_diagram_s_arrows_are_the_imports() -> None:
    assert shown_edges() == set(nx.transitive_reduction(imported_rooms()).edges)
