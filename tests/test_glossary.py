"""The glossary and the code speak the same language."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "mcp_sidecar"
ROWS: Final = re.findall(
    r"^\| (\*\*.+?) \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
)
TERMS: Final = [term.lower() for words, _ in ROWS for term in re.findall(r"\*\*(.+?)\*\*", words)]

EXPLAINED: Final = ("healing", "sessions", "streams", "verdicts", "waiting")
"""The packages whose nouns are our own; the others speak of HTTP, settings and metrics."""

# Nouns of HTTP, MCP and Python.
STANDARD: Final = frozenset({"Answer", "Call", "Pages", "Reply", "Services", "Open"})


def spoken(name: str) -> str:
    """A name as words: ``HealAttempt`` and ``heal_attempt`` are both "heal attempt"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name).lower()


def living(node: ast.stmt) -> bool:
    """A class whose objects change or do something; not a value, a set of words, a promise or a mistake."""
    if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
        return False
    is_frozen = any("frozen=True" in ast.unparse(each) for each in node.decorator_list)
    bases = " ".join(map(ast.unparse, node.bases))
    return not is_frozen and not re.search(r"Enum|Protocol|Exception|Error", bases)


def living_classes() -> list[str]:
    """Those of the packages whose nouns are explained."""
    files = [file for package in EXPLAINED for file in (PACKAGE / package).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return sorted(
        {node.name for tree in trees for node in tree.body if living(node) and isinstance(node, ast.ClassDef)}
    )


SOURCE: Final = spoken(" ".join(file.read_text(encoding="utf-8") for file in sorted(PACKAGE.rglob("*.py"))))


@pytest.mark.parametrize("term", TERMS)
def test_every_word_is_in_use(term: str) -> None:
    """A word that the code no longer says leaves the glossary."""
    assert term in SOURCE


def test_every_word_is_explained_once_and_briefly() -> None:
    """One or two sentences; whoever needs more finds it in the module."""
    assert len(TERMS) == len(set(TERMS))
    assert [words for words, meaning in ROWS if len(re.findall(r"[.!?](?= |$)", meaning)) > 2] == []


@pytest.mark.parametrize("name", [name for name in living_classes() if " " not in spoken(name)])
def test_a_class_that_is_one_word_is_explained(name: str) -> None:
    """A noun that stands alone is a standard term, or the glossary has it (in the singular, or as what it does)."""
    word = spoken(name)
    stems = {word, word.removesuffix("s"), word.removesuffix("er")}
    assert name in STANDARD or any(stems & set(term.split()) for term in TERMS)
