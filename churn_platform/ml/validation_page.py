"""A window's validation as a page that people read: one file that loads nothing, so it opens in a closed network.

Great Expectations' own data docs fetch their styles from public servers. This page holds counts, bounds and the
contract's own words; no value of any row stands in it.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from churn_platform.contract import Contract
    from churn_platform.ml.expectations import Verdict
    from churn_platform.ml.validation import Finding, Split

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; vertical-align: top; }
th { border-bottom: 2px solid #c5cdd6; } td { border-bottom: 1px solid #e5e9ee; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.passed { color: #17693a; } .failed { color: #a3201d; font-weight: 600; } .remedy { color: #57606b; }
"""
_WIDTH, _HEIGHT, _BASE = 720, 180, 140  # of the chart, in pixels; bars stand on the base


def render(
    contract: Contract,
    table_name: str,
    window: str,
    divided: Split,
    *,
    findings: list[Finding],
    verdict: Verdict,
    volumes: dict[str, int],
) -> str:
    """The page, as HTML.

    Args:
        contract: the contract.
        table_name: the table.
        window: the window's key.
        divided: its rows, divided.
        findings: the verdicts on the window as a whole; a failed one refuses it.
        verdict: of the expectations.
        volumes: window to number of good rows: those compared, and this one.
    """
    passed = all(finding.passed for finding in findings)
    outcome = "published" if passed else "refused: its last good version stays, if there is one"
    title = f"{contract.name}: {table_name}, window {window}"
    good = divided.rows - divided.bad
    checks = [
        [
            escape(finding.name.replace("_", " ")),
            _verdict(finding.passed),
            escape(finding.words) + ("" if finding.passed else f'<div class="remedy">{escape(finding.remedy)}</div>'),
        ]
        for finding in findings
    ]
    results = [
        [
            escape(result.expectation),
            escape(result.column),
            escape(result.words),
            _verdict(result.passed),
            f"{result.unexpected:,}",
        ]
        for result in verdict.results
    ]
    reasons = [[escape(reason), f"{count:,}"] for reason, count in divided.reasons.items()]
    quarantine = _table(["reason", "#rows"], reasons) if reasons else "<p>No row was quarantined.</p>"
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
<p>The window was <span class="{"passed" if passed else "failed"}">{outcome}</span>. Of {divided.rows:,} rows
{good:,} are good and {divided.bad:,} went to quarantine. Contract {escape(contract.fingerprint)},
{escape(contract.owner)}.</p>
<h2>The window as a whole</h2>
<p>A check that fails refuses the window.</p>
{_table(["check", "verdict", "found"], checks)}
<h2>Good rows, beside the windows before</h2>
{_chart(volumes, window)}
<h2>Quarantined rows, by reason</h2>
<p>A row may have several reasons. The rows stand in the table quarantine_{escape(table_name)}.</p>
{quarantine}
<h2>Expectations</h2>
<p>Judged by {escape(verdict.judge)} on {verdict.rows:,} rows, of which up to
{contract.tables.items()[table_name].max_quarantined:.1%} may break an expectation.</p>
{_table(["expectation", "column", "expected", "verdict", "#unexpected rows"], results)}
</body>
</html>
"""


def as_markdown(divided: Split, findings: list[Finding], verdict: Verdict) -> str:
    """The page's tables, for Dagster's own pages: a browser opens no file for a page that came from a server."""
    checks = [
        [
            finding.name.replace("_", " "),
            "passed" if finding.passed else "**failed**",
            finding.words + ("" if finding.passed else f" {finding.remedy}"),
        ]
        for finding in findings
    ]
    reasons = [[reason, f"{count:,}"] for reason, count in divided.reasons.items()]
    parts = [_markdown_table(["check", "verdict", "found"], checks)]
    if reasons:
        parts.append(_markdown_table(["quarantined because", "rows"], reasons))
    return "\n\n".join([*parts, verdict.table()])


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdict(passed: bool) -> str:
    return f'<span class="{"passed" if passed else "failed"}">{"passed" if passed else "failed"}</span>'


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table of cells that are HTML already; a column whose head starts with # holds numbers."""
    kinds = [' class="number"' if name.startswith("#") else "" for name in head]

    def line(tag: str, cells: list[str]) -> str:
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"
        )

    heading = line("th", [escape(name.lstrip("#")) for name in head])
    return "\n".join(["<table>", heading, *(line("td", row) for row in rows), "</table>"])


def _chart(volumes: dict[str, int], window: str) -> str:
    """Bars, one a window, as an inline drawing."""
    most, step = max([*volumes.values(), 1]), _WIDTH / max(len(volumes), 1)
    parts = []
    for place, (key, rows) in enumerate(sorted(volumes.items())):
        height = (_BASE - 20) * rows / most
        left, middle = place * step + 0.1 * step, (place + 0.5) * step
        colour = "#2f6fb0" if key == window else "#aab7c4"
        bar = f'x="{left:.1f}" y="{_BASE - height:.1f}" width="{0.8 * step:.1f}" height="{height:.1f}"'
        parts += [
            f'<rect {bar} fill="{colour}"><title>{escape(key)}: {rows:,} rows</title></rect>',
            f'<text x="{middle:.1f}" y="{_BASE - height - 4:.1f}">{rows:,}</text>',
            f'<text x="{middle:.1f}" y="{_BASE + 14}">{escape(key[2:])}</text>',
        ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="good rows of each window" '
        f'font-size="9" text-anchor="middle" fill="#1d2733">{"".join(parts)}</svg>'
    )
