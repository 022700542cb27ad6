"""The default source lands all of the package's data, each row once, in the window in which it happened."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pytest

from churn_platform.contract_file import parse
from churn_platform.ml import ingestion
from churn_platform.settings import PROJECT
from churn_platform.sources import open_source
from churn_platform.sources.base import SourceError
from churn_platform.sources.complete_journey import CompleteJourneyProducer
from churn_platform.sources.landing import LandingSource
from churn_platform_tests.worlds import all_windows, engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from churn_platform.windows import Window

pytestmark = pytest.mark.usefixtures("home")
TEXT = (PROJECT / "contract.yaml").read_text(encoding="utf-8")
CONTRACT = parse(TEXT)


@pytest.fixture(scope="module")
def producer() -> CompleteJourneyProducer:
    return CompleteJourneyProducer(CONTRACT)


def test_the_year_lands_whole_and_each_row_in_its_own_month(producer: CompleteJourneyProducer) -> None:
    con = duckdb.connect()
    counted: Counter[str] = Counter()
    for window in all_windows(CONTRACT):
        for name, table in producer.tables(window):
            counted[name] += table.num_rows
            if name == "transactions":
                con.register("t", table)
                first, last = con.execute(
                    "SELECT min(transaction_timestamp), max(transaction_timestamp) FROM t"
                ).fetchall()[0]
                assert window.start.replace(tzinfo=None) <= first
                assert last < window.end.replace(tzinfo=None)
    beyond = producer._con.execute(
        "SELECT count(*) FROM transactions WHERE transaction_timestamp >= '2018-01-01'"
    ).fetchall()[0][0]
    assert counted["transactions"] == 1_469_307 - beyond
    assert beyond < 1_000
    assert counted["customers"] == 801
    assert counted["contacts"] > 4_000


def test_the_packages_times_are_local_times_of_the_contracts_zone() -> None:
    text = TEXT.replace("timezone: UTC", "timezone: America/New_York")
    january = all_windows(parse(text))[0]
    rows = {name: table.num_rows for name, table in CompleteJourneyProducer(parse(text)).tables(january)}
    plain = {name: table.num_rows for name, table in CompleteJourneyProducer(CONTRACT).tables(all_windows(CONTRACT)[0])}
    assert rows == plain


def test_it_says_what_the_data_is_and_is_not_for(producer: CompleteJourneyProducer) -> None:
    assert "simulated" in producer.notice
    assert "educational" in producer.notice


def test_landing_goes_on_month_by_month_and_a_repeated_landing_changes_nothing(
    producer: CompleteJourneyProducer, tmp_path: Path
) -> None:
    source = LandingSource(CONTRACT, tmp_path)
    con = duckdb.connect()
    assert source.watermark(con) is None
    january = source.next_window()
    landed = source.land(january, producer)
    assert source.watermark(con) == january.end
    assert source.next_window().key == "2017-02-01"
    with engine(CONTRACT) as own:

        def rows() -> int:
            view = source.rows(own, "transactions", january)
            return len(ingestion.typed_rows(own, CONTRACT, "transactions", view, january))

        once = rows()
        assert source.land(january, producer) == landed
        assert rows() == once > 100_000
        typed = ingestion.typed_rows(own, CONTRACT, "transactions", source.rows(own, "transactions", january), january)
        assert typed.filter("_issues IS NOT NULL").aggregate("count(*)").fetchall() == [(0,)]


def test_half_a_landing_is_no_landing(producer: CompleteJourneyProducer, tmp_path: Path) -> None:
    source = LandingSource(CONTRACT, tmp_path)

    class Killed(CompleteJourneyProducer):
        def tables(self, window):  # type: ignore[no-untyped-def]
            yield next(iter(producer.tables(window)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.land(source.next_window(), Killed(CONTRACT))
    assert source.landed() == []
    assert source.next_window().key == "2017-01-01"


class Parts:
    """Lands a window in any number of parts, and may be killed after some of them."""

    notice = "made up"

    def __init__(self, parts: int, killed: bool = False) -> None:
        self.parts = parts
        self.killed = killed

    def tables(self, window: Window) -> Iterator[tuple[str, pa.Table]]:
        for part in range(self.parts):
            moment = window.start.replace(tzinfo=None)
            yield "transactions", pa.table({"transaction_timestamp": [moment], "basket_id": [part]})
        if self.killed:
            raise KeyboardInterrupt


def parts_of(source: LandingSource) -> list[str]:
    return sorted(path.name for path in (source.landing / "transactions").iterdir())


def test_a_window_that_lands_again_in_fewer_parts_leaves_none_of_the_old_ones(tmp_path: Path) -> None:
    source = LandingSource(CONTRACT, tmp_path)
    january, february = source.pending(all_windows(CONTRACT)[1].end)
    source.land(january, Parts(3))
    source.land(february, Parts(2))
    assert source.land(january, Parts(1)) == 1
    assert parts_of(source) == ["2017-01-01-000.parquet", "2017-02-01-000.parquet", "2017-02-01-001.parquet"]
    assert source.watermark(duckdb.connect()) == february.end


def test_a_landing_that_is_killed_while_it_replaces_another_is_mended_by_landing_again(tmp_path: Path) -> None:
    source = LandingSource(CONTRACT, tmp_path)
    january, february = source.pending(all_windows(CONTRACT)[1].end)
    source.land(january, Parts(3))
    source.land(february, Parts(1))
    with pytest.raises(KeyboardInterrupt):
        source.land(january, Parts(2, killed=True))
    assert source.watermark(duckdb.connect()) is None, "what is after a window that is not whole waits for it"
    assert source.next_window() == january
    source.land(january, Parts(2))
    assert source.watermark(duckdb.connect()) == february.end
    assert parts_of(source) == ["2017-01-01-000.parquet", "2017-01-01-001.parquet", "2017-02-01-000.parquet"]


def test_at_the_end_of_the_history_nothing_more_lands(tmp_path: Path) -> None:
    source = LandingSource(CONTRACT, tmp_path)
    (source.landing / "_landed").mkdir(parents=True)
    for window in all_windows(CONTRACT):
        (source.landing / "_landed" / f"{window.key}.done").touch()
    with pytest.raises(SourceError, match="landed already"):
        source.next_window()


def test_the_contract_decides_which_source_is_opened(home: Path) -> None:
    from churn_platform.settings import settings

    assert isinstance(open_source(CONTRACT, settings()), LandingSource)
