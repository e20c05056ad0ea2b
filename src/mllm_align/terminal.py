"""Where tables are printed: as wide as the terminal, and wide enough to be read where there is none."""

import os

from rich.console import Console

# Columns where output goes into a file or a pipe, and the variable COLUMNS does not say it.
PIPED = 120


def console() -> Console:
    """A console on standard output that colours nothing by itself."""
    found = Console(highlight=False)
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=PIPED)
