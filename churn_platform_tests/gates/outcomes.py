"""Running the cases: what became of each, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from churn_platform import promotion
from churn_platform.checks import model_gates
from churn_platform.ml import gates
from churn_platform.ml.models import ModelError
from churn_platform.ml.splits import NotEnoughDataError
from churn_platform.resources.tracking import RegistryError
from churn_platform.settings import PROJECT
from churn_platform_tests import graph
from churn_platform_tests.gates.cases import BAD, GOOD, JUDGED, LOADING, STEP, Case
from churn_platform_tests.gates.world import World

PAGE = PROJECT / "docs" / "gates.md"
BEGIN, END = "<!-- cases: written by `make gates`, not by hand -->", "<!-- end of cases -->"
_WORDS = {
    LOADING: "training or registration: there is no candidate",
    JUDGED: "promotion: no verdict of these gates on this version",
    STEP: "the step that judges",
}


@dataclass
class Outcome:
    """What became of a case."""

    case: Case
    stopped: dict[str, str] = field(default_factory=dict)  # gate to what it said
    changed: list[str] = field(default_factory=list)  # what a bad model changed that it must not change
    promoted: bool = False

    @property
    def missing(self) -> list[str]:
        """The gates that should have refused it and did not."""
        return [gate for gate in self.case.stops if gate not in self.stopped]

    @property
    def said(self) -> str:
        """All that was said against it."""
        return "\n".join(self.stopped.values())

    @property
    def refused(self) -> bool:
        """Whether a bad case ended as it must."""
        said = self.case.says in self.said
        return bool(self.stopped) and said and not (self.missing or self.changed or self.promoted)


def refuse(world: World, case: Case) -> Outcome:
    """Bring a bad case into the world, and look at what it changes."""
    outcome, before = Outcome(case), world.state()
    try:
        version = case.make(world)
    except (ModelError, NotEnoughDataError) as error:
        outcome.stopped[LOADING] = str(error)
    else:
        shop = world.in_shadow if case.shadow else world.shop
        outcome.stopped |= {} if case.unjudged else world.judge(shop)
        try:
            promotion.promote(shop.tables, shop.tracking, version, "the adversary")
            outcome.promoted = True
        except RegistryError as error:
            outcome.stopped |= {JUDGED: str(error)} if case.unjudged else {}
    after = world.state()
    for what in ("champion", "log", "answers"):
        if getattr(before, what) != getattr(after, what):
            outcome.changed.append(what)
    return outcome


def welcome(world: World, case: Case) -> Outcome:
    """Bring a good challenger into the world, let it serve, and roll back."""
    before = world.state()
    version = case.make(world)
    contract = world.by or world.contract
    tracking = graph.Tracking(contract, world.shop.settings)
    outcome = Outcome(case)
    for finding in model_gates.judge(contract, world.shop.tables, tracking, tracking.version(version)):
        champion = finding.metadata.get("champion")
        tracking.record_gate(version, finding.name, finding.passed, finding.words, champion)
        outcome.stopped |= {} if finding.passed else {finding.name: finding.words}
    if outcome.stopped:
        return outcome
    promotion.promote(world.shop.tables, tracking, version, "the suite")
    served = world.state()
    outcome.promoted = served.champion == version == served.answers[0]["model_version"]
    promotion.rollback(world.shop.tables, tracking, before.champion, "the suite")
    if world.state().answers != before.answers:
        outcome.changed.append("answers, after rolling back")
    return outcome


def told(outcome: Outcome) -> list[Any]:
    """An outcome in plain types, as a process of the test run hands it to another."""
    return [outcome.case.name, outcome.stopped, outcome.changed, outcome.promoted]


def heard(plain: list[Any]) -> Outcome:
    """The outcome that `told` made plain."""
    name, *what = plain
    return Outcome(next(case for case in [*BAD, *GOOD] if case.name == name), *what)


def ended_well(outcome: Outcome) -> bool:
    """Whether a case ended as it must."""
    return outcome.promoted and not outcome.changed if outcome.case in GOOD else outcome.refused


def line(outcome: Outcome) -> str:
    """A case on the terminal."""
    case, kind = outcome.case, "good" if outcome.case in GOOD else "bad "
    how = ", ".join(outcome.stopped) or ("promoted, served, rolled back" if case in GOOD else "NOTHING STOPPED IT")
    how += f" (not by {', '.join(outcome.missing)})" if outcome.missing else ""
    how += f" (changed: {', '.join(outcome.changed)})" if outcome.changed else ""
    return f"{'ok  ' if ended_well(outcome) else 'FAIL'} {kind} {case.name}: {how}"


def table(outcomes: list[Outcome]) -> str:
    """The table of bad models and what stopped each."""
    order = {name: place for place, name in enumerate(gates.ALWAYS)}
    lines = ["| the candidate | was stopped by | which says, among other things |", "|---|---|---|"]
    for outcome in sorted(outcomes, key=lambda outcome: BAD.index(outcome.case)):
        counted = outcome.case.stops if outcome.case.by_chance else outcome.stopped
        stopped = sorted(counted, key=lambda gate: (order.get(gate, len(order)), gate))
        listed = (
            "every gate: none can judge it"
            if len(stopped) > len(order)
            else ", ".join(_WORDS.get(gate, f"`{gate}`") for gate in stopped)
        )
        lines.append(f'| {outcome.case.name} | {listed} | "{outcome.case.says}" |')
    return "\n".join(lines)


def page(outcomes: list[Outcome], path: Path = PAGE) -> str:
    """The page with the table as these outcomes have it."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(outcomes)}\n\n{END}{after}"
