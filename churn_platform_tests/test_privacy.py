"""Personal data is masked: no byte that the whole platform writes or prints holds what the contract calls personal.

One shop is played, trained, gated, scored, watched and served in real processes, with secrets planted in good rows, in
rows that are quarantined, in exports that are refused whole and in requests that fail. Then everything is looked
through that lies in its home or was printed; see `leaks` for how, and `test_leaks` for whether that finds anything.
"""

from __future__ import annotations

import pytest

from churn_platform.ml.masking import pseudonym
from churn_platform_tests import people
from churn_platform_tests.people import KEY, ZOE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop() -> people.World:
    return people.world()


def test_no_byte_that_the_platform_wrote_or_printed_holds_a_secret(shop: people.World) -> None:
    assert shop.leaks == []
    assert shop.seen > 10_000_000  # so it was not that there was nothing to look at


def test_the_planted_rows_did_go_all_the_way(shop: people.World) -> None:
    """Had they been lost at the door, the proof would prove nothing."""
    assert len(shop.rows) == 7
    assert [place for place, rows in shop.rows.items() if not rows] == []


def test_the_endpoint_answers_by_the_real_id_and_names_no_other_value(shop: people.World) -> None:
    status, answer = shop.answers["known"]
    assert (status, answer["user_id"]) == (200, ZOE["client_no"])
    assert answer["features"]["income"] == 80_000
    statuses = {name: status for name, (status, _) in shop.answers.items()}
    assert statuses == {"known": 200, "unknown": 404, "extra": 422, "broken": 422, "typed": 422}


def test_every_export_was_refused_for_its_own_reason(shop: people.World) -> None:
    (printed,) = shop.printed.glob("*-refused.txt")
    _, *said = printed.read_text().split("---\n")
    signs = [
        "Invalid unicode",
        "Expected Number of Columns",
        "unterminated quote",
        "no column that the contract names",
        "bad_rows_are_few",
    ]
    assert len(said) == len(signs)
    everything = printed.read_text()
    assert [sign for sign in signs if sign not in everything] == []
    assert shop.windows[-1] == "2024-05-01"


def test_the_scanner_would_have_found_them_in_the_very_same_files(shop: people.World) -> None:
    """The pseudonym of the same customer stands in the tables, and is found there."""
    leaks, _ = shop.scan([pseudonym(KEY.encode(), "client-3")])
    places = " ".join(leak.place for leak in leaks)
    for table in ("raw_transactions", "customer_features", "training_set"):
        assert f"/{table}/" in places
    assert "online_store.db" in places
