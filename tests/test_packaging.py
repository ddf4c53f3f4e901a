"""The wheel builds, installs and imports with the core dependencies alone."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IMPORT_PACKAGES = """
import importlib, pkgutil, gradkin
for module in pkgutil.walk_packages(gradkin.__path__, "gradkin."):
    if module.ispkg and module.name != "gradkin.models":  # Flax modules: the extra nn
        importlib.import_module(module.name)
print(gradkin.__file__)
"""

IMPORT_ONLY = """
import sys, time
import jax, jax.numpy
before = dict(jax.config.values)
modules, start = set(sys.modules), time.process_time()
import gradkin
seconds = time.process_time() - start
# jax.extend, in some releases, brings an option of its own; none that was there may change.
assert before.items() <= jax.config.values.items(), "import gradkin changed jax.config"
jax.config.update("jax_num_cpu_devices", 3)  # raises where a backend already runs
assert len(jax.devices("cpu")) == 3
import json
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - modules)}))
"""


def run(*arguments, **keywords):
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **keywords)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def core_files() -> set[Path]:
    """Top-level entries of everything that `pip install gradkin`, without extras, brings."""
    seen, entries, queue = set(), set(), ["gradkin"]
    while queue:
        name = normal(re.split(r"[^\w.-]", queue.pop(), maxsplit=1)[0])
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        queue += [r for r in distribution.requires or [] if "extra ==" not in r]
        if name == "gradkin":  # as installed from the wheel, not from here
            continue
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
        entries |= {Path(str(distribution.locate_file(top))) for top in tops}
    return entries


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    python = (sys.executable, "-m")
    run(*python, "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (wheel,) = folder.glob("gradkin-*.whl")
    target = folder / "site"
    run(*python, "pip", "install", "-q", "--no-deps", "--no-index", "-t", str(target), str(wheel))
    return target


def test_the_wheel_holds_the_library_and_nothing_else(site):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {
        "gradkin"
    }
    installed = {str(p.relative_to(site / "gradkin")) for p in (site / "gradkin").rglob("*.py")}
    source = ROOT / "lib" / "gradkin"
    assert installed == {str(p.relative_to(source)) for p in source.rglob("*.py")}
    assert list(site.glob("*.dist-info/licenses/LICENSE"))


def test_the_wheel_imports_with_the_core_alone(site, tmp_path):
    for entry in core_files():
        (tmp_path / entry.name).symlink_to(entry)
    assert (tmp_path / "jax").exists()
    assert not (tmp_path / "flax").exists()
    path = f"import sys; sys.path += [{str(site)!r}, {str(tmp_path)!r}]\n"
    where = run(sys.executable, "-I", "-S", "-c", path + IMPORT_PACKAGES, cwd=tmp_path)
    assert where.strip() == str(site / "gradkin" / "__init__.py")


def test_import_is_light(tmp_path):
    results = [json.loads(run(sys.executable, "-c", IMPORT_ONLY, cwd=tmp_path)) for _ in range(3)]
    modules = {name.partition(".")[0] for name in results[0]["modules"]}
    heavy = {"tensorflow", "tensorflow_datasets", "torch", "flax", "sklearn", "matplotlib", "chex"}
    assert not heavy & modules
    assert min(result["seconds"] for result in results) <= 0.3
