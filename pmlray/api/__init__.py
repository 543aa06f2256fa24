"""Work that a program can ask for: searches, comparisons, sizings, checks; no typer."""
