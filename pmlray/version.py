"""Version and source folder of this installation of pmlray."""

from pathlib import Path

__version__ = "0.1.0"
SOURCE = Path(__file__).parent
