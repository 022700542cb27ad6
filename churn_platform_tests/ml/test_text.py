"""Whoever asks for a customer may write the id in any way that ingestion takes for the same."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn_platform.contract import Column
from churn_platform.ml.ingestion import stored
from churn_platform.ml.text import TRIMMED, plain

VISIBLE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("written", "same"),
    [
        (" 1001\t", "1001"),
        ("\ufeff1001", "1001"),
        ("\u00a01001\u200b", "1001"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("10 01", "10 01"),
        ("A-1", "A-1"),
    ],
)
def test_an_id_is_brought_into_the_form_of_the_tables(written: str, same: str) -> None:
    assert plain(written) == same


@given(st.text(st.sampled_from(TRIMMED), max_size=3), VISIBLE, st.text(st.sampled_from(TRIMMED), max_size=3))
def test_the_form_is_that_of_ingestion(before: str, middle: str, after: str) -> None:
    with duckdb.connect() as con:
        assert plain(before + middle + after) == (stored(con, Column(type="string"), before + middle + after) or "")
