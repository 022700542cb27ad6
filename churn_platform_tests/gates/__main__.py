"""`make gates`: the adversarial suite alone, a line for each case; writes the table in docs/gates.md anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


class Report:
    """Prints a line for each case as it ends, and keeps what became of it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Print the case; and an error that is not a case's own."""
        from churn_platform_tests.gates import outcomes as suite

        told = [plain for name, plain in report.user_properties if name == "outcome" and report.when == "call"]
        found = [suite.heard(plain) for plain in told]
        for outcome in found:
            self.done.append(outcome)
            sys.stdout.write(f"{suite.line(outcome)}\n")
        if report.failed and not found:
            sys.stdout.write(f"{report.nodeid} ({report.when}):\n{report.longreprtext}\n")
        sys.stdout.flush()


def main() -> int:
    """Run all cases; the status says whether all ended as they must."""
    report = Report()
    options = "addopts=--import-mode=importlib -p no:cacheprovider"  # pytest own words would drown the cases
    quiet = ["-o", options, "-p", "no:terminal", "-k", "candidate or challenger", *sys.argv[1:]]
    status = pytest.main([*quiet, str(Path(__file__).parent)], plugins=[report])
    # only now: pytest has to be there before what it rewrites is imported
    from churn_platform_tests.gates import outcomes as suite
    from churn_platform_tests.gates.cases import BAD, GOOD

    well = [outcome.case for outcome in report.done if suite.ended_well(outcome)]
    refused, passed = (sum(case in well for case in cases) for cases in (BAD, GOOD))
    if refused == len(BAD):
        suite.PAGE.write_text(suite.page([outcome for outcome in report.done if outcome.case in BAD]))
    sys.stdout.write(f"bad refused {refused}/{len(BAD)}, good passed {passed}/{len(GOOD)}\n")
    return int(status) or int(refused < len(BAD) or passed < len(GOOD))


if __name__ == "__main__":
    sys.exit(main())
