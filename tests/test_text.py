"""The repository speaks of the project only: nothing of the machine it was written on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".bib", ".json", ".ipynb", ".cfg", ""}
# Written in pieces so that this file does not match itself.
FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.])/(?:" + "work|root|home|Users" + r")/\w",
    "a temporary folder": r"(?<![\w.$])/" + r"tmp/",
    "an address of a package registry": "py" + r"pi\.org|python" + "hosted|--index" + "-url",
    "a leftover merge": "^" + "<<<<" + "<<<|^>>>>" + ">>> ",
}


def tracked() -> list[Path]:
    """The files of the repository: what git tracks, or everything where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git does not list the files here")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_text_has_no(what):
    pattern = re.compile(FORBIDDEN[what], flags=re.M)
    hits = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.suffix in TEXT and (match := pattern.search(path.read_text(errors="replace")))
    ]
    assert not hits, f"{what} in {hits}"


def test_no_file_is_large():
    large = [f"{p.relative_to(ROOT)}" for p in tracked() if p.stat().st_size > 1_500_000]
    assert not large, f"larger than 1.5 MB: {large}"


def test_python_files_say_what_they_are():
    silent = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix == ".py"
        and path.parent.name != "colabs"
        and path.stat().st_size
        and not re.match(r'(?:#.*\n)*r?"""', path.read_text())
    ]
    assert not silent, f"no module docstring: {silent}"
