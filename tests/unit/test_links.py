"""Relative links and anchors of every Markdown file lead somewhere."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What git does not keep may lie in a clone too.
NOT_OURS = {".venv", "runs", "node_modules", "build", "dist", "shared"}
FENCED = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
IN_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def documents(root: Path) -> list[Path]:
    """The project's Markdown files."""
    found = (path.relative_to(root) for path in root.rglob("*.md"))
    return sorted(
        root / path
        for path in found
        if not any(part in NOT_OURS or part.startswith(".") for part in path.parts)
    )


def anchors(text: str) -> set[str]:
    """The ids that GitHub gives the headings of a Markdown text."""
    seen: Counter[str] = Counter()
    found = set[str]()
    for heading in HEADING.findall(FENCED.sub("", text)):
        # A heading's link or emphasis counts as its words.
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(slug if seen[slug] == 0 else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def broken_links(document: Path, root: Path) -> list[str]:
    """The relative links of a document that lead to no file of the project, or to no heading."""
    text = IN_CODE.sub("", FENCED.sub("", document.read_text(encoding="utf-8")))
    broken = []
    for link in LINK.findall(text):
        if ELSEWHERE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        inside = target.is_relative_to(root)
        found = inside and target.exists()
        if found and anchor:
            is_text = target.suffix == ".md"
            found = is_text and anchor in anchors(target.read_text(encoding="utf-8"))
        if not found:
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", documents(ROOT), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document, ROOT) == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "there.md").write_text("# One thing: `a`, b\n\n## Twice\n\n## Twice\n")
    page = root / "page.md"
    page.write_text(
        "# Page\n[1](there.md#one-thing-a-b) [2](there.md#twice-1) [3](#page) [4](https://x.y/z.md)"
        " `[5](none)`\n```\n[6](none)\n```\n"
        "[7](none.md) [8](there.md#twice-2) [9](#one) ![10](none.svg) [11](../page.md)\n"
        "[over two\nlines](none/)\n"
    )
    lost = ["none.md", "there.md#twice-2", "#one", "none.svg", "../page.md", "none/"]
    assert broken_links(page, root) == lost


def test_every_result_is_listed_beside_the_benchmarks() -> None:
    bench = ROOT / "scripts" / "bench"
    listed = set(re.findall(r"\(results/(\w+\.md)", (bench / "README.md").read_text()))
    assert listed == {path.name for path in (bench / "results").glob("*.md")}


def test_every_benchmark_that_can_be_started_is_listed() -> None:
    bench = ROOT / "scripts" / "bench"
    started = {
        str(path.relative_to(bench))
        for path in bench.rglob("*.py")
        if "\n    python scripts/bench/" in path.read_text() and "__main__" in path.read_text()
    }
    listed = set(re.findall(r"^\|.*?\| `([\w/]+\.py)", (bench / "README.md").read_text(), re.M))
    assert started == listed
