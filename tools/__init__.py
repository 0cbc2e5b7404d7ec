"""What the Makefile runs: standard library only, since it makes the environments that everything else runs in."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one is told here
    sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.13 ...")
