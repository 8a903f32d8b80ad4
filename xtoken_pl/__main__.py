"""``python -m xtoken_pl``."""

from xtoken_pl.cli import main

if __name__ == "__main__":
    main()
