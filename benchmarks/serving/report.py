"""What was measured, as figures with their spread, ratios to the reference, and a Markdown table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.serving.load import Load

REFERENCE, OURS = "reference", "ours"


@dataclass(frozen=True)
class Started:
    """One start of a way.

    Attributes:
        way: its name.
        round: counted from 1.
        cold_start: seconds until it was ready and had answered once.
        answers: P(churn) of the first customers, in their order; how many is not the same in all rounds.
    """

    way: str
    round: int
    cold_start: float
    answers: list[float]


@dataclass(frozen=True)
class Measured:
    """One way under one load in one round.

    Attributes:
        way: its name.
        round: counted from 1.
        concurrency: requests in flight.
        load: what the load generator met.
        cpu_ms: milliseconds of CPU a request, of all processes of the way together.
        pss_mb: their proportional set size after the load, in MB.
    """

    way: str
    round: int
    concurrency: int
    load: Load
    cpu_ms: float
    pss_mb: float

    def value(self, name: str) -> float:
        """A figure by its name: throughput, p50_ms, p99_ms, cpu_ms or pss_mb."""
        owner = self if name in ("cpu_ms", "pss_mb") else self.load
        return float(getattr(owner, name))


def spread(values: Iterable[float]) -> dict[str, float]:
    """The least, the middle and the most of some values."""
    ordered = sorted(values)
    return {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}


def difference(starts: list[Started], way: str, other: str = REFERENCE) -> float | None:
    """The largest difference between two ways' probabilities; None where one of them did not run."""
    theirs = [start.answers for start in starts if start.way == other]
    mine = [start.answers for start in starts if start.way == way]
    pairs = (pair for one in mine for two in theirs for pair in zip(one, two, strict=False))
    return max((abs(a - b) for a, b in pairs), default=None)


def ratio(found: list[Measured], way: str, concurrency: int, name: str) -> dict[str, float] | None:
    """By what factor a way is better than the reference, from round to round.

    Throughput is divided by the reference's; of times and CPU the reference's are divided by the way's, so that more
    is better in each. None where a round of either is missing.
    """
    by_round = {
        (one.way, one.round): one.value(name) for one in found if one.concurrency == concurrency and one.load.requests
    }
    pairs = [
        (by_round[REFERENCE, number], value)
        for (whose, number), value in by_round.items()
        if whose == way and (REFERENCE, number) in by_round
    ]
    factors = [mine / theirs if name == "throughput" else theirs / mine for theirs, mine in pairs if theirs and mine]
    return spread(factors) if factors else None


def report(starts: list[Started], found: list[Measured], packages: tuple[int, int]) -> dict[str, Any]:
    """Everything that was measured; the headline's figures first.

    Args:
        starts: of all ways and rounds.
        found: of all ways, rounds and loads.
        packages: how many the endpoint takes, and the whole platform.
    """
    ours = [one for one in found if one.way == OURS]
    cold = [start.cold_start for start in starts if start.way == OURS]

    def headline(concurrency: int, name: str) -> float | None:
        factors = ratio(found, OURS, concurrency, name)
        return factors["median"] if factors else None

    return {
        "throughput_ratio_c64": headline(64, "throughput"),
        "p99_ratio_c64": headline(64, "p99_ms"),
        "p50_ratio_c1": headline(1, "p50_ms"),
        "cold_start_s": statistics.median(cold) if cold else None,
        "rss_mb": max((one.pss_mb for one in ours), default=None),
        "max_probability_difference": difference(starts, OURS),
        "errors": sum(one.load.failed for one in ours),
        "dependency_share": packages[0] / packages[1],
        "packages": {"serving": packages[0], "platform": packages[1]},
        "ways": [_way(starts, name) for name in dict.fromkeys(start.way for start in starts)],
        "loads": [
            _load(found, *key) for key in dict.fromkeys((one.concurrency, one.way) for one in sorted(found, key=_order))
        ],
        "rounds": [asdict(one) for one in found],
    }


def _order(one: Measured) -> int:
    return one.concurrency


def _way(starts: list[Started], name: str) -> dict[str, Any]:
    return {
        "way": name,
        "cold_start_s": spread(start.cold_start for start in starts if start.way == name),
        "max_probability_difference": difference(starts, name),
    }


def _load(found: list[Measured], concurrency: int, way: str) -> dict[str, Any]:
    runs = [one for one in found if (one.concurrency, one.way) == (concurrency, way)]
    names = ("throughput", "p50_ms", "p99_ms", "cpu_ms", "pss_mb")
    return {
        "way": way,
        "concurrency": concurrency,
        **{name: spread(one.value(name) for one in runs) for name in names},
        "errors": sum(one.load.failed for one in runs),
        "ratios": {name: ratio(found, way, concurrency, name) for name in names[:-1]},
    }


def table(found: dict[str, Any]) -> str:
    """The loads of a report as Markdown: median (least-most) of the rounds, and ratios to the reference."""
    names = ["connections", "way", "requests/s", "p50 ms", "p99 ms", "CPU ms/request", "PSS MB", "errors"]
    names += ["faster", "p50", "p99", "CPU"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for one in found["loads"]:
        figures = [_range(one[name]) for name in ("throughput", "p50_ms", "p99_ms", "cpu_ms", "pss_mb")]
        ratios = [_range(one["ratios"][name], "x") for name in ("throughput", "p50_ms", "p99_ms", "cpu_ms")]
        lines.append(f"| {one['concurrency']} | {one['way']} | {' | '.join([*figures, str(one['errors']), *ratios])} |")
    lines += ["", "| way | cold start s | largest difference of a probability |", "|---|---|---|"]
    for one in found["ways"]:
        apart = one["max_probability_difference"]
        lines.append(f"| {one['way']} | {_range(one['cold_start_s'])} | {'' if apart is None else f'{apart:.1e}'} |")
    packages = found["packages"]
    share = f"The endpoint takes {packages['serving']} of the platform's {packages['platform']} packages"
    return "\n".join([*lines, "", f"{share}: {found['dependency_share']:.1%}."])


def parts_table(http: float, whole: float, parts: dict[str, float]) -> str:
    """The parts as Markdown.

    Args:
        http: CPU microseconds of a request that is answered without a prediction.
        whole: of one that is.
        parts: of each part of a prediction, as `breakdown` finds them.
    """
    rest = whole - http - sum(parts.values())
    rows = {"HTTP: server, connection, front": http, **parts, "the rest: body, queue, waking up": rest}
    lines = ["| part | CPU microseconds a request | share |", "|---|---|---|"]
    lines += [f"| {name} | {value:.1f} | {value / whole:.0%} |" for name, value in rows.items()]
    return "\n".join([*lines, f"| a prediction | {whole:.1f} | 100% |"])


def _range(values: dict[str, float] | None, unit: str = "") -> str:
    if values is None:
        return ""
    least, middle, most = (_figure(values[name]) for name in ("min", "median", "max"))
    return f"{middle}{unit}" if least == most else f"{middle}{unit} ({least}-{most})"


def _figure(value: float) -> str:
    """Three digits that count, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
