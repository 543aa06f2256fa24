"""`python -m pmlray`."""

from pmlray.cli import main

main()
