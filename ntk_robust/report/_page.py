"""The report as one HTML page that needs nothing else."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ntk_robust._core import Contours, Figure, Series
from ntk_robust.report._figure import INK, PALETTE, RULE, figure_svg
from ntk_robust.report._format import format_value

_READING = """
<p>Each check is an experiment on a published statement. Its claims compare a measured number, known up to its
<em>uncertainty</em>, with a prediction; a claim overlooks departures up to its <em>resolution</em>.</p>
<ul>
<li><span class="badge SUPPORTED">SUPPORTED</span> the whole interval agrees with the prediction, and the uncertainty is
not larger than the resolution. It is not a proof.</li>
<li><span class="badge VIOLATED">VIOLATED</span> the whole interval contradicts the prediction.</li>
<li><span class="badge INCONCLUSIVE">INCONCLUSIVE</span> neither: the measurement is too coarse to say.</li>
<li><span class="badge NOT_APPLICABLE">NOT APPLICABLE</span> a hypothesis of the statement does not hold in this
experiment.</li>
</ul>
<p>Each check has a <em>negative control</em>: the same experiment where the statement is false. The control must come
out <span class="badge control VIOLATED">VIOLATED</span>, or the check could not have noticed a false statement and its
support does not count. <em>Tightness</em> is how much of a bound the measurement uses: 1 is attained, and a bound used
to less than a thousandth is true and says little.</p>
"""


def render_page(results: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The page of `results.json` and `run.json` as they are on disk."""
    studies, checks, pending = results["studies"], results["checks"], results["pending"]
    sections = [
        _header(results, run),
        _section("reading", "How to read this", [_READING] if checks else []),
        _section("verdicts", "Verdicts", [_verdicts(checks, pending)] if checks or pending else []),
        _section("studies", "Studies", [_study(study) for study in studies]),
        _section("checks", "Checks", [_check(check) for check in checks]),
        _section("provenance", "Where these numbers come from", [_provenance(run)]),
    ]
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(results['title'])}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Written by ntk_robust. The same numbers are in <code>results.json</code>, and everything about "
        "the run in <code>run.json</code>, beside this page.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(results: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    arguments, device = run.get("arguments", {}), run.get("device", {})
    facts = {
        "Verdict": _badge(results["verdict"]) if results["verdict"] else "–",
        "State": "complete" if results["complete"] else f"<b>incomplete</b>: {len(results['pending'])} parts missing",
        "Profile": _text(arguments.get("profile")),
        "Data": _text(arguments.get("data")),
        "Seed": _text(run.get("seed")),
        "Device": _text(device.get("kind")),
        "Precision": _text(arguments.get("dtype") or run.get("default_float")),
        "Time": _text(run.get("time_utc")),
    }
    items = "".join(f"<li><b>{name}</b>{value}</li>" for name, value in facts.items() if value != "–")
    links = {"reading": "How to read this"} if results["checks"] else {}
    links |= {"verdicts": "Verdicts"} if results["checks"] or results["pending"] else {}
    links |= {name: name.capitalize() for name in ("studies", "checks") if results[name]}
    links |= {"provenance": "Provenance"}
    anchors = "".join(f'<a href="#{name}">{title}</a>' for name, title in links.items())
    return (
        f'<header><h1>{_text(results["title"])}</h1><p class="lead">{_text(results["summary"])}</p>'
        f'<ul class="facts">{items}</ul><nav>{anchors}</nav></header>'
    )


def _section(name: str, title: str, parts: Sequence[str]) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{"".join(parts)}</section>' if parts else ""


def _verdicts(checks: Sequence[Mapping[str, Any]], pending: Sequence[str]) -> str:
    rows = [
        (
            f'<a href="#check-{_text(check["name"])}">{_text(check["name"])}</a>',
            _prose(check["statement"]),
            _badge(check["verdict"]),
            _badge(check["control_verdict"], control=True),
            _text(check["seconds"], digits=2),
        )
        for check in checks
    ]
    rows += [(_text(name), "", _badge("PENDING"), "", "") for name in pending]
    classes = ("name", "statement", "", "", "number")
    return f'<div class="card">{_table(("Check", "Statement", "Verdict", "Control", "Seconds"), rows, classes)}</div>'


def _study(study: Mapping[str, Any]) -> str:
    return (
        f'<article class="card" id="study-{_text(study["name"])}"><h3>{_text(study["title"])}</h3>'
        + _paragraphs(study["text"])
        + _figures(study["figures"], f"study-{study['name']}")
        + _tables(study["tables"])
        + _histories(study.get("histories"))
        + "</article>"
    )


def _histories(folder: str | None) -> str:
    if folder is None:
        return ""
    return f'<p class="note">The history of every run, with its arguments, is in <code>{_text(folder)}</code>.</p>'


def _check(check: Mapping[str, Any]) -> str:
    badges = f"{_badge(check['verdict'])} {_badge(check['control_verdict'], control=True, prefix='control ')}"
    control = _claims(check["control_claims"]) + _notes(check["control_notes"])
    return (
        f'<article class="card" id="check-{_text(check["name"])}"><div class="head"><h3>{_text(check["name"])}</h3>'
        f"<div>{badges}</div></div><p>{_prose(check['statement'])}</p>"
        f'<p class="citation">{_text(check["citation"])}</p>'
        + _claims(check["claims"])
        + _notes(check["notes"])
        + _figures(check["figures"], f"check-{check['name']}")
        + _tables(check["tables"])
        + f"<details><summary>Negative control: what it found</summary>{control}</details></article>"
    )


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    header = ("Claim", "Verdict", "Measured", "± uncertainty", "Predicted", "Resolution", "Tightness")
    rows = [
        (
            _prose(claim["name"])
            + (' <span class="badge">hypothesis</span>' if claim.get("role") == "hypothesis" else "")
            + (f'<span class="note">{_prose(claim["note"])}</span>' if claim.get("note") else ""),
            _badge(claim["verdict"]),
            _text(claim["measured"]),
            _text(claim["uncertainty"], digits=2),
            f"{_relation(claim['relation'])} {_prediction(claim['predicted'])}",
            _text(claim["resolution"], digits=2),
            _text(claim.get("tightness"), digits=2) + (" (says little)" if claim.get("vacuous") else ""),
        )
        for claim in claims
    ]
    return _table(header, rows, ("name", "", "number", "number", "number", "number", "number"))


def _relation(relation: str) -> str:
    return {"<=": "≤", ">=": "≥", "==": "=", "in": "in"}[relation]


def _prediction(predicted: Any) -> str:
    return f"[{_text(predicted)}]" if isinstance(predicted, list) else _text(predicted)


def _figures(figures: Sequence[Mapping[str, Any]], owner: str) -> str:
    drawn = []
    for record in figures:
        series = tuple(_frozen_series(item) for item in record["series"])
        behind = _frozen_contours(record.get("contours"))
        svg = _drawn(Figure(**{**record, "name": f"{owner}-{record['name']}", "series": series, "contours": behind}))
        label = html.escape(record["title"], quote=True)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        caption = f"<b>{_prose(record['title'])}</b>{_prose(record['caption'])}"
        drawn.append(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _frozen_series(record: Mapping[str, Any]) -> Series:
    numbers = {name: record[name] for name in ("x", "y", "y_lower", "y_upper")}
    numbers = {name: values and tuple(float(value) for value in values) for name, values in numbers.items()}
    return Series(label=record["label"], style=record["style"], **numbers)


def _frozen_contours(record: Mapping[str, Any] | None) -> Contours | None:
    if record is None:
        return None
    x, y = (tuple(float(value) for value in record[name]) for name in ("x", "y"))
    return Contours(record["label"], x, y, tuple(tuple(float(value) for value in row) for row in record["values"]))


@lru_cache(maxsize=256)
def _drawn(figure: Figure) -> str:
    """The figure with the page's colors; a page is written after every part, and its figures are drawn once."""
    svg = figure_svg(figure)
    for number, color in enumerate(PALETTE):
        svg = re.sub(color, f"var(--s{number})", svg, flags=re.IGNORECASE)
    return svg.replace(INK, "currentColor").replace(RULE, "var(--rule)")


def _tables(tables: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for table in tables:
        columns = list(zip(*table["rows"], strict=True)) or [()] * len(table["columns"])
        classes = ["number" if _is_numeric(column) else "" for column in columns]
        rows = [[_prose(cell) if isinstance(cell, str) else _text(cell) for cell in row] for row in table["rows"]]
        body = _table([_prose(name) for name in table["columns"]], rows, classes, kind="data")
        caption = f'<p class="caption">{_prose(table["caption"])}</p>' if table["caption"] else ""
        parts.append(f"<h4>{_prose(table['title'])}</h4>{body}{caption}")
    return "".join(parts)


def _is_numeric(column: Iterable[Any]) -> bool:
    numeric = (int, float, type(None))
    return all(isinstance(cell, numeric) or cell in ("nan", "inf", "-inf") for cell in column)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str], kind: str = "claims") -> str:
    marks = [f' class="{name}"' if name else "" for name in classes]
    head = "".join(f"<th{mark}>{cell}</th>" for mark, cell in zip(marks, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _provenance(run: Mapping[str, Any]) -> str:
    rows = [(_text(name.replace("_", " ")), f"<code>{_text(value)}</code>") for name, value in _flat(run)]
    body = "".join(f'<tr><td class="key">{name}</td><td>{value}</td></tr>' for name, value in rows)
    return f'<div class="card"><div class="scroll"><table><tbody>{body}</tbody></table></div></div>'


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} · ")
        else:
            yield f"{prefix}{name}", value


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{_prose(note)}</p>' for note in notes)


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_prose(part)}</p>" for part in text.split("\n\n") if part.strip())


def _badge(verdict: str, *, control: bool = False, prefix: str = "") -> str:
    kind = f"control {verdict}" if control else verdict
    return f'<span class="badge {kind}">{prefix}{_text(verdict.replace("_", " "))}</span>'


# A subscript or superscript of one character or in braces; gao2019_regret and file_name.py have neither.
_SCRIPT = re.compile(r"(?<=[^\s])([_^])(?:\{([^{}]+)\}|([^\W_]|\*))(?![A-Za-z0-9])")


def _prose(text: str) -> str:
    """A sentence as escaped text, with the subscripts and superscripts that it writes as x_i and x^{t+1}."""

    def script(match: re.Match[str]) -> str:
        tag = "sub" if match[1] == "_" else "sup"
        return f"<{tag}>{match[2] or match[3]}</{tag}>"

    return _SCRIPT.sub(script, _text(text))


def _text(value: Any, digits: int = 5) -> str:
    """A value as escaped text."""
    return html.escape(format_value(value, digits), quote=True)
