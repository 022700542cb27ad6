"""Good data that was spoilt is refused, quarantined or read as if nothing had happened: see docs/corruptions.md."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_platform_tests.corruptions import CORRUPTIONS, DOCUMENT, SECRET, Corruption, Outcome, attempt, document

pytestmark = pytest.mark.usefixtures("home")
FEW = 2
EXAMPLES = int(os.environ.get("CHURN_FUZZ", FEW))


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES == FEW,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_spoilt_data_meets_what_is_declared(corruption: Corruption, data: st.DataObject) -> None:
    table, kind = data.draw(st.sampled_from(corruption.cases))
    outcome, met = attempt(corruption, table, kind, data.draw(st.randoms(use_true_random=False)))
    assert outcome is corruption.outcome, (outcome, met.refusal, met.reasons)
    said = [met.refusal] if outcome is Outcome.REFUSED else met.reasons
    for words in said:
        assert re.search(corruption.says, words, re.DOTALL), words
        assert SECRET.split("@")[0] not in words
        assert "Traceback" not in words
    if outcome is Outcome.REFUSED:
        assert re.search(rf"tables\.{table}|validated_{table}|data\.", met.refusal), met.refusal


def test_at_least_forty_ways_are_tried_and_no_two_of_a_name() -> None:
    names = [corruption.name for corruption in CORRUPTIONS]
    assert len(names) == len(set(names))
    assert sum(corruption.outcome is not Outcome.UNSEEN for corruption in CORRUPTIONS) >= 40


def test_the_page_says_what_each_corruption_met() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m churn_platform_tests.corruptions"
