"""The source `simulated`: our generator, landing month by month, as purchases or as the specification's wide table."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from churn_platform.sources.simulated_process import (
    SIGNUP_LEAD_DAYS,
    Drift,
    Simulation,
    purchases_between,
    simulate,
    wide_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date, datetime

    import pyarrow as pa

    from churn_platform.contract import Contract, Simulated
    from churn_platform.windows import Window


class SimulatedProducer:
    """Lands a window's sign-ups and purchases, or its labelled snapshots if the contract describes those."""

    notice = "Simulated customers: a BG/NBD purchase process with seasonality; nobody in it exists."

    def __init__(self, contract: Contract, source: Simulated) -> None:
        self.contract = contract
        self.source = source

    def _simulation(self, start: date, end: date) -> Simulation:
        return Simulation(
            customers=self.source.customers,
            start=start,
            end=max(end, start + timedelta(days=1)),
            seed=self.source.seed,
            drift=tuple(Drift(drift.kind, drift.at, drift.strength) for drift in self.source.drift),
        )

    def tables(self, window: Window) -> Iterator[tuple[str, pa.Table]]:
        """A chunk of customers at a time, so that memory does not grow with their number."""
        start, end = self.contract.time.start, window.end.date()
        if self.contract.snapshots is not None:
            yield "snapshots", wide_table(self._simulation(start, end), [window.start.date()])
            return
        # People sign up from before the process's own start: that too is to be part of the contract's history.
        for chunk in simulate(self._simulation(start + timedelta(days=SIGNUP_LEAD_DAYS), end)):
            yield "customers", _signed_up(chunk.customers, window.start, window.end)
            yield "transactions", purchases_between(chunk, window.start, window.end)


def _signed_up(customers: pa.Table, start: datetime, end: datetime) -> pa.Table:
    import pyarrow.compute as pc

    time = customers["signup_time"]
    return customers.filter(pc.and_(pc.greater_equal(time, start), pc.less(time, end)))
