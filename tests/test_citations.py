"""references.bib and the citations in the code say the same."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIB = (ROOT / "references.bib").read_text()
KEYS = re.findall(r"^@\w+\{([^,\s]+),", BIB, flags=re.M)
CITE = re.compile(r":cite:`([^`]+)`")


def citations() -> dict[str, str]:
    """Bib key -> one file that cites it."""
    cited = {}
    for path in sorted((ROOT / "lib").rglob("*.py")):
        for group in CITE.findall(path.read_text()):
            cited |= {key.strip(): path.name for key in group.split(",")}
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        text = path.read_text()
        for group in CITE.findall(text):
            cited |= {key.strip(): path.name for key in group.split(",")}
        for node in ast.parse(text).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(t, ast.Name) and t.id == "PAPERS" for t in targets):
                assert isinstance(node, ast.Assign)
                cited |= dict.fromkeys(ast.literal_eval(node.value), path.name)
    return cited


def test_no_key_is_defined_twice():
    assert len(KEYS) == len(set(KEYS)), sorted(k for k in KEYS if KEYS.count(k) > 1)


def test_every_citation_has_an_entry():
    missing = {key: file for key, file in citations().items() if key not in KEYS}
    assert not missing, f"references.bib lacks {missing}"


def test_every_entry_is_cited():
    unused = sorted(set(KEYS) - citations().keys())
    assert not unused, f"nothing cites {unused}"


@pytest.mark.parametrize("entry", re.split(r"^(?=@)", BIB, flags=re.M)[1:], ids=KEYS)
def test_entry_is_complete(entry):
    for field in ("title", "author", "year"):
        assert re.search(rf"^\s*{field}\s*=\s*[{{\"]?\S", entry, flags=re.M), f"no {field}"
    assert entry.count("{") == entry.count("}"), "braces do not balance"
