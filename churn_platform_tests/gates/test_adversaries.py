"""Every bad model is refused, changes nothing and is told why; every good challenger passes."""

from __future__ import annotations

import pytest

from churn_platform_tests.gates import outcomes as suite
from churn_platform_tests.gates.cases import BAD, GOOD


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD, ids=[case.name for case in BAD])
def test_a_bad_candidate_is_refused_and_changes_nothing(world, outcomes, case, record_property):
    outcome = outcomes[case.name] = suite.refuse(world, case)
    record_property("outcome", suite.told(outcome))
    assert not outcome.promoted
    assert outcome.changed == []
    assert outcome.missing == [], outcome.stopped
    assert case.says in outcome.said
    assert outcome.refused


@pytest.mark.slow
@pytest.mark.parametrize("case", GOOD, ids=[case.name for case in GOOD])
def test_a_good_challenger_is_promoted_and_serves_until_it_is_rolled_back(world, case, record_property):
    outcome = suite.welcome(world, case)
    record_property("outcome", suite.told(outcome))
    assert outcome.stopped == {}
    assert outcome.promoted
    assert outcome.changed == []


def test_there_are_enough_of_both_and_no_two_of_the_same_name():
    assert len({case.name for case in [*BAD, *GOOD]}) == len(BAD) + len(GOOD)
    assert len(BAD) >= 25
    assert len(GOOD) >= 5


@pytest.mark.slow
def test_the_table_in_the_docs_is_current(outcomes):
    if len(outcomes) < len(BAD):
        pytest.skip("only some of the cases were run: the table is compared when all are")
    assert suite.PAGE.read_text() == suite.page(list(outcomes.values())), "`make gates` writes it anew"
