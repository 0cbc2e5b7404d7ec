"""Install the widest lock with old pips: `python -m tools.installs`. A lock that only a new one understands is no lock.

It goes into a new environment, once with the pip that the first release of this Python brought
(``tools/requirements/oldest-pip.txt``) and once with the one that this Python brings. Every other verb uses the newest, of
``tools/requirements/pip.txt``. Exit status 1 if one fails.
"""

from __future__ import annotations

import sys
from typing import Final

from tools.environments import ROOT, VENVS, install, python
from tools.locks import DEVELOPMENT

PIPS: Final = {"the oldest pip": ROOT / "tools" / "requirements" / "oldest-pip.txt", "this Python's own pip": None}


def main() -> int:
    """Try each pip, and tell how it went."""
    failed = False
    for number, (name, pip) in enumerate(PIPS.items()):
        trouble = install(python(VENVS / f"installs-{number}", DEVELOPMENT, editable=True, pip=pip))
        print(f"{DEVELOPMENT.name} with {name}: {trouble or 'installed'}", flush=True)
        failed = failed or trouble is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
