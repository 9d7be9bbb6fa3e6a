"""``python3 -m nemu``."""

import sys

from nemu.cli import main

if __name__ == "__main__":
    sys.exit(main())
