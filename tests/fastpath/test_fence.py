"""The fast path stands behind one door: without the package everything else works as before."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

WITHOUT = """
import asyncio, importlib, importlib.abc, pkgutil, sys

class Deleted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "mcp_sidecar.fastpath" or name.startswith("mcp_sidecar.fastpath."):
            raise ModuleNotFoundError(name, name=name)
        return None

sys.meta_path.insert(0, Deleted())
import mcp_sidecar
for module in pkgutil.walk_packages(mcp_sidecar.__path__, "mcp_sidecar."):
    if ".fastpath" not in module.name and not module.name.endswith("__main__") and ".demo" not in module.name:
        importlib.import_module(module.name)

from tests.support.in_memory import answered, posted, through

async def main():
    async with through() as way:
        asked = posted(b'{"jsonrpc":"2.0","id":7,"method":"ping"}')
        result = answered(b'{"jsonrpc":"2.0","id":7,"result":{}}')
        for _ in range(3):
            written = await way.request(asked, result)
            assert b"".join(written).endswith(b'"result":{}}'), written

asyncio.run(main())
print("works")
"""


@pytest.mark.long
def test_without_the_package_everything_else_works() -> None:
    """Every other module is imported, and a session is served."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("works"), done.stderr


def test_nothing_but_the_composition_root_knows_of_it() -> None:
    """In the package, and among the tests of everything else."""
    knowing = {
        str(file.relative_to(ROOT))
        for part in ("mcp_sidecar", "tests")
        for file in sorted((ROOT / part).rglob("*.py"))
        if not {"fastpath", "node_modules"} & set(file.relative_to(ROOT).parts)
        if "fastpath" in (text := file.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(("mcp_sidecar.fastpath", "tests.fastpath"))
    }
    assert knowing == {"mcp_sidecar/app.py"}
