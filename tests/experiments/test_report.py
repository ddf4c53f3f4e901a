"""The committed evidence says what the code says, and the pages say what the evidence says."""

import dataclasses
import html.parser

import pytest

from experiments.runner import bibliography, discover, evidence, page, replications
from experiments.runner.report import disagreements, write_report
from experiments.runner.run import execute, prepare

COMMITTED = replications.collect()
BIB = r"""
% a comment
@article{toy,
  title  = {On {Toys}: a \emph{study}, part {II}},
  author = {Andr{\'e}, Zo{\"e} and Erd{\H{o}}s, Paul},
  year   = {1905},
  eprint = {2101.00001},
}
@inproceedings{many, title = "Many", author = {Ann A and B B and C C and D D}, year = 2020,
  doi = {10.1/x}}
"""


@pytest.mark.parametrize("name", COMMITTED)
def test_evidence_holds(name):
    found = COMMITTED[name]
    module = discover.load(found["experiment"])
    assert not disagreements(module, found)
    assert found["preset"] != "smoke"
    own = getattr(module.PRESETS[found["preset"]], "data", None)
    other = None if found["config"].get("data") == own else found["config"]["data"]
    assert f"{name}.json" == evidence.file_name(found["experiment"], other)


@pytest.mark.parametrize("name", discover.names())
def test_experiment_has_evidence(name):
    assert name in COMMITTED, f"run it: python -m experiments run {name} --save-evidence"


def test_replications_is_not_stale():
    if not COMMITTED:
        pytest.skip("no evidence is committed")
    stored = replications.FILE.read_text()
    assert stored == replications.render(COMMITTED), "run: python -m experiments report"


@pytest.fixture
def saved(toys, tmp_path):
    """Evidence of both toys in a folder of results."""
    for name in ("toy/descent", "toy/walk"):
        run = prepare(name, seeds=2, root=toys, out=tmp_path / "out")
        found = execute(run, run.module.load(run.config))
        assert found is not None
        evidence.write(tmp_path / "results" / run.file, found)
    return {
        "out": tmp_path / "report.html",
        "results": tmp_path / "results",
        "markdown": tmp_path / "REPLICATIONS.md",
        "root": toys,
    }


def test_report(saved, capsys, monkeypatch, walk):
    assert write_report(**saved) == 0
    table = saved["markdown"].read_text()
    assert "2 claims in 2 runs: 1 reproduced, 1 not reproduced, 0 inconclusive." in table
    rows = [line for line in table.splitlines() if line.startswith("| toy")]
    assert len(rows) == 2
    assert r"0 \| 1" in rows[1]
    assert "✗ not reproduced" in rows[1]
    text = saved["out"].read_text()
    check_page(text)
    assert text.count("data:image/png;base64,") == 2
    assert '<span class="badge not-reproduced">' in text
    assert "src=http" not in text.replace('"', "")

    # A verdict that the metrics do not give is found, and a reworded claim can be written again.
    file = saved["results"] / "toy" / "walk.json"
    wrong = evidence.read(file)
    wrong["claims"][0] |= {"verdict": "reproduced", "holds": True}
    evidence.write(file, wrong)
    assert write_report(**saved) == 1
    assert "has verdict 'reproduced', now 'not reproduced'" in capsys.readouterr().out
    reworded = dataclasses.replace(walk.CLAIMS[0], text="It does not spread")
    monkeypatch.setattr(walk, "CLAIMS", (reworded,))
    assert write_report(**saved) == 1
    assert "run it again, or report --reassess" in capsys.readouterr().out
    assert write_report(**saved, reassess=True) == 0
    assert evidence.read(file)["claims"][0]["text"] == "It does not spread"


def test_disagreements_see_metrics_and_code(saved, descent):
    found = evidence.read(saved["results"] / "toy" / "descent.json")
    assert not disagreements(descent, found)
    metrics = {**found["metrics"], "loss": [[1.0, 2.0], [1.0, 0.5]]}
    said = " ".join(disagreements(descent, {**found, "metrics": metrics}))
    assert "now [2.0, 0.5]" in said
    assert "holds True, now False" in said
    assert "is not reproduced, committed as reproduced" in said
    other = {**found["config"], "data": "parabola"}
    said = " ".join(disagreements(descent, {**found, "metrics": metrics, "config": other}))
    assert "committed as" not in said


def test_bibliography(tmp_path):
    (tmp_path / "references.bib").write_text(BIB)
    papers = bibliography.read(tmp_path / "references.bib")
    assert papers["toy"].title == "On Toys: a study, part II"
    assert papers["toy"].label == "André and Erdős 1905"
    assert papers["toy"].url == "https://arxiv.org/abs/2101.00001"
    assert papers["many"] == ("Many", "A et al.", "2020", "https://doi.org/10.1/x")


@pytest.mark.parametrize("key", bibliography.read())
def test_every_paper_can_be_named(key):
    paper = bibliography.read()[key]
    assert paper.title
    assert paper.authors
    assert paper.year.isdigit()
    assert not set(r"\{}$") & set(paper.title + paper.authors)


def test_docstrings_become_prose(walk):
    text = page.prose("Title.\n\nA <b> of ``x``.\n\n    python -m y\n    z\n\nEnd.")
    assert text == (
        "<p>A &lt;b&gt; of <code>x</code>.</p>\n<pre><code>python -m y\nz</code></pre>\n<p>End.</p>"
    )
    assert page.heading(walk) == "Pearson 1905: a random walk spreads like the square root of time"


def check_page(text: str) -> None:
    """Every tag is closed in its turn."""
    stack = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in {"meta", "img", "br"}:
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Parser().feed(text)
    assert not stack
