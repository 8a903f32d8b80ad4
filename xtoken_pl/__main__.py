"""``python -m xtoken_pl``."""

import sys

from xtoken_pl.cli import main
from xtoken_pl.cli.report import run

if __name__ == "__main__":
    sys.exit(run(main))
