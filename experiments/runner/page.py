"""The report: one HTML page that needs nothing beside it."""

import base64
import inspect
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import figures
from experiments.runner import bibliography, encoding
from experiments.runner.table import MARKS, needed, summary

CSS = Path(__file__).with_name("page.css")
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
"""

Item = tuple[str, Mapping[str, Any], ModuleType]  # name, evidence, experiment


def draw(module: ModuleType, found: Mapping[str, Any]) -> bytes:
    """Return the experiment's figure of the stored metrics as PNG."""
    with figures.style():
        figure = module.plot(encoding.decode(found["metrics"]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def render(items: Sequence[Item], pictures: Sequence[bytes], *, title: str) -> str:
    """Return the page of the given evidence."""
    papers = bibliography.read()
    parts = [HEAD.format(title=escape(title), css=CSS.read_text()), f"<h1>{escape(title)}</h1>"]
    parts.append(tally([claim for _, found, _ in items for claim in found["claims"]]))
    if len(items) > 1:
        parts.append(contents(items, papers))
    for item, picture in zip(items, pictures):
        parts.append(section(item, picture, papers))
    parts.append(
        "<footer class=soft><p>Written by <code>python -m experiments report</code>. A claim's "
        "threshold was fixed before its run; the figures are drawn from the stored metrics.</p>"
        "</footer>\n</body>\n</html>"
    )
    return "\n".join(parts) + "\n"


def tally(claims: Sequence[Mapping[str, Any]]) -> str:
    """How many claims came out how."""
    verdicts = [claim["verdict"] for claim in claims]
    badges = [
        f"<li>{badge(v, f'{verdicts.count(v)} {v}')}</li>" for v in MARKS if verdicts.count(v)
    ]
    return f"<ul class=tally>{''.join(badges)}</ul>"


def badge(verdict: str, text: str | None = None) -> str:
    """A verdict in its colour, with a mark for those who do not see it."""
    shown = escape(text or verdict)
    return f'<span class="badge {verdict.replace(" ", "-")}">{MARKS[verdict]} {shown}</span>'


def contents(items: Sequence[Item], papers: Mapping[str, bibliography.Paper]) -> str:
    """The list of sections."""
    rows = []
    for name, found, module in items:
        cited = "; ".join(papers[key].label for key in found["papers"] if key in papers)
        counts = [c["verdict"] for c in found["claims"]]
        badges = " ".join(badge(v, str(counts.count(v))) for v in MARKS if v in counts)
        rows.append(
            f'<tr><td><a href="#{anchor(name)}">{escape(heading(module))}</a>'
            f"<span class=soft>{escape(cited)}</span></td>"
            f"<td class=soft>{escape(name)}</td><td class=number>{badges}</td></tr>"
        )
    head = "<thead><tr><th>replication</th><th>experiment</th><th>claims</th></tr></thead>"
    return f"<nav><table>{head}<tbody>{''.join(rows)}</tbody></table></nav>"


def section(item: Item, picture: bytes, papers: Mapping[str, bibliography.Paper]) -> str:
    """One experiment: paper, prose, claims, figure, circumstances."""
    name, found, module = item
    known = [papers[key] for key in found["papers"] if key in papers]
    seeds = len(found["seeds"])
    image = base64.b64encode(picture).decode()
    return "\n".join(
        [
            f'<section id="{anchor(name)}">',
            f"<p class=eyebrow>{escape(name)} · {escape(found['preset'])} · {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'} · {found['seconds']:.0f} s</p>",
            f"<h2>{escape(heading(module))}</h2>",
            *(f"<p class=byline>{cite(paper)}</p>" for paper in known),
            prose(inspect.getdoc(module) or ""),
            claim_table(found["claims"]),
            f'<figure><img alt="Figure of {escape(name)}" src="data:image/png;base64,{image}">'
            "</figure>",
            circumstances(found),
            "</section>",
        ]
    )


def heading(module: ModuleType) -> str:
    """The docstring's first line, without the citation in brackets: the paper is named below."""
    title = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    return re.sub(r"\s*\([^()]*arXiv[^()]*\)", "", title).rstrip(".")


def cite(paper: bibliography.Paper) -> str:
    """Authors and year with the link, and the title."""
    text = escape(paper.label)
    if paper.url:
        text = f'<a href="{escape(paper.url)}">{text}</a>'
    return f"{text}, {escape(paper.title)}"


def prose(docstring: str) -> str:
    """The docstring's paragraphs after its title; indented ones are code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip())[1:]:
        if paragraph.startswith("    "):
            parts.append(f"<pre><code>{escape(inspect.cleandoc(paragraph))}</code></pre>")
        else:
            text = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(paragraph))
            parts.append(f"<p>{text}</p>")
    return "\n".join(parts)


def claim_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """What each claim says, what the paper reports, what was measured."""
    if not claims:
        return "<p class=soft>This preset evaluates no claim.</p>"
    rows = [
        f"<tr><td>{escape(claim['text'])}</td>"
        f'<td data-label="paper">{escape(claim["reported"])}</td>'
        f'<td class=number data-label="measured">{escape(summary(claim["measured"]))} '
        f"<span class=soft>{escape(needed(claim))}</span></td>"
        f"<td>{badge(claim['verdict'])}</td></tr>"
        for claim in claims
    ]
    head = "<tr><th>claim</th><th>paper reports</th><th>measured</th><th>verdict</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def circumstances(found: Mapping[str, Any]) -> str:
    """The config, and where and with what it ran."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    facts = {
        **{name: str(value) for name, value in found["config"].items()},
        "device": found["device"],
        "peak memory": memory(found),
        "versions": versions,
        "commit": found["commit"] or "not in a checkout",
    }
    shown = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<details><summary>Configuration and machine</summary><dl>{shown}</dl></details>"


def memory(found: Mapping[str, Any]) -> str:
    """Peak memory of the process, and of the accelerator where there is one."""
    device = found.get("peak_device_mb")
    return f"{found['peak_rss_mb']} MB" + (f", {device} MB on the device" if device else "")


def anchor(name: str) -> str:
    """The name as a fragment of an address."""
    return re.sub(r"[^\w-]+", "-", name)
