"""Python API: searches, comparisons, sizings and checks, without typer."""
