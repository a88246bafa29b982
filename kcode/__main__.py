"""`python -m kcode` is `kcode`."""

from __future__ import annotations

from kcode.cli import main

if __name__ == "__main__":
    main()
