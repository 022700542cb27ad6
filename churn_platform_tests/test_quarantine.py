"""The quarantine is emptied by mending the cause: no row is lost on the way, and none is taken in twice."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from churn_platform import cli
from churn_platform.ml import expectations, ingestion, validation
from churn_platform.play import Player
from churn_platform.quarantine import held, replay, words
from churn_platform.sources import files
from churn_platform_tests import graph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JANUARY, FEBRUARY = "2024-01-01", "2024-02-01"
GYM = graph.WIDE.replace("complete_until: 2024-05-01", "complete_until: 2024-03-01")


def members() -> pd.DataFrame:
    """What a gym exports in two months, all in one file."""
    random = np.random.default_rng(1)
    parts = [
        pd.DataFrame(
            {
                "member_id": range(60),
                "as_of": [f"{month[:8]}{1 + n % 28:02} 12:00" for n in range(60)],
                "plan": random.choice(["basic", "gold"], 60),
                "visits": random.integers(0, 20, 60),
                "left": random.choice(["Yes", "No"], 60),
            }
        )
        for month in (JANUARY, FEBRUARY)
    ]
    return pd.concat(parts, ignore_index=True)


def export(gym: graph.Platform, rows: pd.DataFrame) -> None:
    rows.to_csv(gym.settings.contract.parent / "members.csv", index=False)


def spoilt(**cells: Any) -> pd.DataFrame:
    """The export with wrong cells, such as visits_3=-1: the visits of row 3."""
    rows = members().astype(object)
    for cell, value in cells.items():
        column, _, row = cell.rpartition("_")
        rows.loc[int(row), column] = value
    return rows


@pytest.fixture
def gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[graph.Platform]:
    monkeypatch.setattr(expectations, "LIMIT", -1)  # the engine gives the same verdicts, in no time
    with dg.DagsterInstance.ephemeral() as instance:  # in memory: nothing here is read from the event log later
        found = graph.empty(tmp_path, GYM).use(monkeypatch)
        found.instance = instance
        yield found


def take_in(gym: graph.Platform, *keys: str) -> None:
    for key in keys or (JANUARY, FEBRUARY):
        result = gym.materialize("raw_snapshots", "validated_snapshots", key=key)
        assert result.success, graph.why(result)


def replayed(gym: graph.Platform) -> tuple[bool, str]:
    """Replay all that is held; whether it succeeded, and what was said. What depends on it is another test's matter."""
    said: list[str] = []
    player = Player(gym.contract, gym.settings, gym.instance, said.append)
    player.catch_up = lambda: bool(said.append("caught up")) or True  # type: ignore[method-assign, assignment]
    succeeded = replay(player, gym.settings, held(gym.contract, gym.tables))
    assert said[-1] == "caught up"
    return succeeded, "\n".join(said)


def published(gym: graph.Platform) -> list[tuple[int, str]]:
    """Who is validated, and in which window: each row has its place."""
    rows = gym.rows("validated_snapshots")
    return sorted(zip(rows["member_id"].tolist(), rows["as_of"].dt.strftime("%Y-%m-%d").tolist(), strict=True))


EVERYONE = sorted(zip(members()["member_id"], members()["as_of"].str[:10], strict=True))


def test_what_is_held_is_counted_by_table_window_and_reason(gym: graph.Platform) -> None:
    export(gym, spoilt(visits_3=-1, visits_4="many", plan_4="secret plan", visits_70=-5))
    take_in(gym)
    found = held(gym.contract, gym.tables)
    assert [(part.table, part.window, part.rows) for part in found] == [
        ("snapshots", JANUARY, 2),
        ("snapshots", FEBRUARY, 1),
    ]
    assert found[0].reasons == {
        "plan is not one of the allowed values": 1,
        "visits is below 0": 1,
        "visits: a value is not a whole number": 1,
    }
    assert "many" not in words(found)
    assert [part.window for part in held(gym.contract, gym.tables, "snapshots", FEBRUARY)] == [FEBRUARY]


def test_rows_that_were_mended_at_the_source_become_good_and_the_others_stay(gym: graph.Platform) -> None:
    export(gym, spoilt(visits_3=-1, visits_4=-1, visits_70=-5))
    take_in(gym)
    export(gym, spoilt(visits_4=-1))
    succeeded, said = replayed(gym)
    assert succeeded
    assert published(gym) == [place for n, place in enumerate(EVERYONE) if place != (4, "2024-01-05")]
    assert [(part.window, part.rows) for part in held(gym.contract, gym.tables)] == [(JANUARY, 1)]
    assert f"window {JANUARY}: 58 good rows before, 59 now; 2 in quarantine before, 1 now" in said
    assert "1  visits is below 0" in said
    assert f"window {FEBRUARY}: 59 good rows before, 60 now; 1 in quarantine before, 0 now" in said


def test_rows_become_good_when_the_contract_is_mended(gym: graph.Platform) -> None:
    export(gym, spoilt(plan_3="silver", plan_64="silver"))
    take_in(gym)
    mended = gym.other(("[basic, gold]", "[basic, gold, silver]"))
    assert replayed(mended)[0]
    assert published(mended) == EVERYONE
    assert held(mended.contract, mended.tables) == []


def test_a_row_whose_time_was_mended_goes_to_its_own_window(gym: graph.Platform) -> None:
    """It waited in the first window of its file; the window that it belongs to has been processed already."""
    export(gym, spoilt(as_of_70="never", as_of_71="2199-01-01", as_of_5="1999-01-01"))
    take_in(gym)
    assert [(part.window, part.rows) for part in held(gym.contract, gym.tables)] == [(JANUARY, 3)]
    export(gym, spoilt(as_of_71="2199-01-01"))
    succeeded, said = replayed(gym)
    assert succeeded
    assert published(gym) == [place for place in EVERYONE if place != (11, "2024-02-12")]
    assert [(part.window, part.rows) for part in held(gym.contract, gym.tables)] == [(JANUARY, 1)]
    assert f"window {FEBRUARY}: 58 good rows before, 59 now" in said


def test_a_row_from_the_future_is_taken_in_when_its_time_comes_once(
    gym: graph.Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(datetime):
        """A clock that stands at the end of January."""

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2024, 1, 30, tzinfo=tz)

    export(gym, spoilt(as_of_1="2024-02-20 12:00", member_id_1=99)[:60])
    with monkeypatch.context() as patch:
        for module in (ingestion, validation, files):
            patch.setattr(module, "datetime", Early)
        take_in(gym, JANUARY)
        assert "as_of lies outside the history" in words(held(gym.contract, gym.tables))
        assert (99, "2024-02-20") not in published(gym)
    export(gym, spoilt(as_of_1="2024-02-20 12:00", member_id_1=99))
    take_in(gym, FEBRUARY)  # its time has come, and its window is over
    assert published(gym).count((99, "2024-02-20")) == 1
    assert replayed(gym)[0]
    assert held(gym.contract, gym.tables) == []
    assert published(gym).count((99, "2024-02-20")) == 1
    assert len(published(gym)) == 120


def test_a_window_whose_files_were_moved_away_stays_as_it_is(gym: graph.Platform) -> None:
    export(gym, spoilt(visits_3=-1))
    take_in(gym)
    before = gym.rows("validated_snapshots")
    export(gym, members()[60:])
    succeeded, said = replayed(gym)
    assert succeeded
    assert f"window {JANUARY}: the source holds no rows of it any more" in said
    pd.testing.assert_frame_equal(gym.rows("validated_snapshots"), before)


def test_a_window_that_is_still_bad_keeps_its_last_good_version_and_the_replay_says_so(gym: graph.Platform) -> None:
    export(gym, spoilt(visits_3=-1))
    take_in(gym)
    before = gym.rows("validated_snapshots")
    export(gym, spoilt(**{f"visits_{row}": -1 for row in range(40)}))
    succeeded, said = replayed(gym)
    assert not succeeded
    assert "FAILED" in said
    assert "bad_rows_are_few" in said
    pd.testing.assert_frame_equal(gym.rows("validated_snapshots"), before)


def test_the_command_shows_the_quarantine_and_refuses_a_table_that_is_none(gym: graph.Platform) -> None:
    runner = CliRunner()
    assert "The quarantine is empty." in runner.invoke(cli.app, ["quarantine"]).output
    nothing = runner.invoke(cli.app, ["quarantine", "replay", "--window", JANUARY])
    assert "Nothing is in quarantine there." in nothing.output
    export(gym, spoilt(visits_3=-1))
    take_in(gym, JANUARY)
    assert f"snapshots, window {JANUARY}: 1 rows" in runner.invoke(cli.app, ["quarantine"]).output
    refused = runner.invoke(cli.app, ["quarantine", "replay", "--table", "snapshot"])
    assert refused.exit_code == 2
    assert "snapshots" in refused.output
