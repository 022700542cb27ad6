"""From customers to answers, with a store and models that do as they are told."""

import asyncio
import logging
import math

import pytest

from churn_platform.contract_file import parse
from churn_platform.ml.masking import pseudonym
from churn_platform_tests.serving.conftest import contract_text
from churn_platform_tests.serving.doubles import AT, VALUES, MemoryStore, served
from serving.feast_format import FormatError
from serving.lineup import LineUp
from serving.online import Found
from serving.schema import RefusedError
from serving.scorer import Limits, Question, Scorer

DAY = 86_400


class Bench:
    """A scorer, and what is around it."""

    def __init__(self, contract, lineup=None, **options):
        self.store = MemoryStore()
        self.lineup = lineup if lineup is not None else LineUp(champion=served())
        self.kept = []
        self.scorer = Scorer(
            contract, self.store, lineup=lambda: self.lineup, keep=self.kept.extend, clock=lambda: AT + DAY, **options
        )

    def answer(self, *customers, explain=False):
        async def work():
            found = await self.scorer.answer([Question(customer, explain) for customer in customers])
            await asyncio.sleep(0)  # what comes after the answers
            return found

        return asyncio.run(work())


@pytest.fixture
def bench(make_contract):
    return Bench(make_contract())


def code(outcome):
    return outcome.code if isinstance(outcome, RefusedError) else None


def test_a_known_customer_is_answered_with_everything_that_the_answer_was_made_from(bench):
    assert bench.answer("1") == [
        {
            "user_id": "1",
            "churn_probability": 0.8,
            "prediction": "High Risk",
            "features": {"purchases_30d": 2.0, "amount_30d": None, "copy": 3.5, "segment": "gold"},
            "model_version": "3",
            "feature_timestamp": "2024-03-01T00:00:00Z",
            "stale": False,
            "schema_version": 1,
        }
    ]


@pytest.mark.parametrize(
    ("probability", "prediction"), [(0.5, "High Risk"), (0.49999999, "Low Risk"), (0.0, "Low Risk"), (1.0, "High Risk")]
)
def test_the_threshold_itself_is_high_risk(bench, probability, prediction):
    bench.lineup = LineUp(champion=served(probability=probability))
    assert bench.answer("1")[0]["prediction"] == prediction


def test_one_bad_customer_spoils_no_others_answer(bench):
    bench.store.known["8"] = Found([math.inf, None, 1.0, None], AT)
    outcomes = bench.answer("1", "nobody", "8", "2")
    assert [code(outcome) for outcome in outcomes] == [None, "unknown_customer", "unusable_features", None]
    assert [outcomes[0]["user_id"], outcomes[3]["user_id"]] == ["1", "2"]
    assert len(bench.kept) == 2


def test_what_cannot_be_read_of_one_customer_does_not_touch_the_others(bench, monkeypatch):
    read = bench.store.read

    async def broken(customers):
        if "2" in customers:
            raise FormatError("bytes that nobody writes")
        return await read(customers)

    monkeypatch.setattr(bench.store, "read", broken)
    assert [code(outcome) for outcome in bench.answer("1", "2", "nobody")] == [
        None,
        "unusable_features",
        "unknown_customer",
    ]


def test_without_a_champion_nothing_is_answered(bench):
    bench.lineup = LineUp()
    assert [code(outcome) for outcome in bench.answer("1", "2")] == ["not_ready", "not_ready"]
    assert bench.store.asked == []


def test_a_store_that_is_away_is_said_to_everybody_who_asked(bench):
    bench.store.away = True
    assert [code(outcome) for outcome in bench.answer("1", "2")] == ["features_unavailable"] * 2


@pytest.mark.parametrize("probability", [math.nan, math.inf, -0.001, 1.001])
def test_what_is_no_probability_is_never_answered(bench, probability):
    bench.lineup = LineUp(champion=served(probability=probability))
    assert code(bench.answer("1")[0]) == "unusable_answer"
    assert bench.kept == []


def test_a_model_that_fails_is_an_error_without_ids_in_the_log(bench, caplog):
    bench.lineup = LineUp(champion=served(probability=ValueError("zanzibar")))
    with caplog.at_level(logging.DEBUG, "bentoml.churn"):
        outcome = bench.answer("zanzibar", "1")[1]
    assert outcome.code == "internal_error"
    assert "zanzibar" not in caplog.text + outcome.message
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("written", ["1", " 1", "1\u00a0", "\ufeff1"])
def test_an_id_is_found_however_it_is_written_and_answered_as_it_was_asked(bench, written):
    assert bench.answer(written)[0]["user_id"] == written


def test_where_customers_are_hashed_the_store_and_the_log_see_pseudonyms_only(make_contract):
    contract = make_contract(hashed=True)
    key = b"a key for tests"
    bench = Bench(contract, key=key)
    hashed = pseudonym(key, "1")
    bench.store.known = {hashed: Found(list(VALUES), AT)}
    assert bench.answer("1")[0]["user_id"] == "1"
    assert bench.store.asked == [[hashed]]
    assert bench.kept[0].customer == hashed
    with pytest.raises(ValueError, match="needs the key"):
        Bench(contract)


@pytest.mark.parametrize(
    ("days", "when", "stale", "refused"),
    [
        (2, "mark", False, None),
        (0.5, "mark", True, None),
        (2, "refuse", False, None),
        (0.5, "refuse", None, "stale_features"),
    ],
)
def test_features_that_are_older_than_the_contract_allows_are_marked_or_refused(days, when, stale, refused):
    text = contract_text() + f"  max_feature_age_days: {days}\n  when_stale: {when}\n"
    outcome = Bench(
        parse(text.replace("serving: {customer_field: user_id}", "serving:\n  customer_field: user_id"))
    ).answer("1")[0]
    assert code(outcome) == refused
    if refused is None:
        assert outcome["stale"] is stale


def test_an_explained_answer_says_in_words_what_moved_it(bench):
    (answer,) = bench.answer("1", explain=True)
    assert [reason["feature"] for reason in answer["reasons"]] == ["purchases_30d", "segment", "amount_30d"]
    assert answer["reasons"][0] == {
        "feature": "purchases_30d",
        "contribution": 0.3,
        "words": "2 purchases in the last 30 days, below the usual 3",
    }
    assert "reasons" not in bench.answer("1")[0]


# -- who answers


def test_a_canary_takes_its_share_of_the_customers_and_always_the_same_ones(bench):
    bench.store.known = {str(number): Found(list(VALUES), AT) for number in range(2000)}
    bench.lineup = LineUp(champion=served("3"), canary=served("4", probability=0.1), share=0.2)
    customers = list(bench.store.known)
    first = {answer["user_id"]: answer["model_version"] for answer in bench.answer(*customers)}
    again = {answer["user_id"]: answer["model_version"] for answer in bench.answer(*reversed(customers))}
    assert first == again
    assert 320 < sum(version == "4" for version in first.values()) < 480
    assert {(one.version, one.arm, one.probability) for one in bench.kept} == {
        ("3", "champion", 0.8),
        ("4", "canary", 0.1),
    }
    bench.lineup = LineUp(champion=served("3"), canary=served("5"), share=0.2)
    other = {answer["user_id"] for answer in bench.answer(*customers) if answer["model_version"] == "5"}
    assert other != {customer for customer, version in first.items() if version == "4"}, "others for each canary"


def test_what_the_shadow_says_is_kept_and_not_answered(bench):
    bench.lineup = LineUp(champion=served("3"), shadow=served("4", probability=0.1))
    assert bench.answer("1")[0]["churn_probability"] == 0.8
    assert [(one.probability, one.shadow_version, one.shadow_probability) for one in bench.kept] == [(0.8, "4", 0.1)]


@pytest.mark.parametrize("probability", [math.nan, ValueError("broken")])
def test_a_shadow_that_fails_harms_nobody_and_is_kept_as_failed(bench, probability):
    bench.lineup = LineUp(champion=served("3"), shadow=served("4", probability=probability))
    assert bench.answer("1")[0]["churn_probability"] == 0.8
    assert [(one.shadow_version, one.shadow_probability) for one in bench.kept] == [("4", None)]


def test_version_threshold_and_probability_of_an_answer_belong_together_while_champions_change(make_contract):
    """Champions that say of which version they are, in their probability, take over as fast as they can."""
    lineups = [LineUp(champion=served(str(n), probability=n / 10, threshold=n / 10)) for n in range(1, 10)]
    bench = Bench(make_contract(), limits=Limits(batch=7))
    bench.store.seconds = 0.001

    async def work():
        seen = []

        async def ask():
            for _ in range(60):
                seen.append(await bench.scorer.submit(Question("1")))  # noqa: PERF401 - one after the other

        async def change():
            for turn in range(150):
                bench.lineup = lineups[turn % len(lineups)]
                await asyncio.sleep(0.0007)

        await asyncio.gather(change(), *(ask() for _ in range(10)))
        return seen

    seen = asyncio.run(work())
    assert len(seen) == 600
    assert len({answer["model_version"] for answer in seen}) > 3
    for answer in seen:
        assert answer["churn_probability"] == int(answer["model_version"]) / 10
        assert answer["prediction"] == "High Risk"


# -- many at once


def test_requests_that_come_together_are_read_and_scored_together_and_each_gets_its_own(make_contract):
    bench = Bench(make_contract(), limits=Limits(batch=64))
    bench.store.seconds = 0.01

    async def work():
        return await asyncio.gather(*(bench.scorer.submit(Question(str(1 + n % 9))) for n in range(200)))

    answers = asyncio.run(work())
    assert [answer["user_id"] for answer in answers] == [str(1 + n % 9) for n in range(200)]
    assert len(bench.store.asked) < 10
    assert max(map(len, bench.store.asked)) <= 64


def test_nobody_is_forgotten_who_asks_at_the_moment_when_the_queue_has_run_empty(make_contract):
    bench = Bench(make_contract(), limits=Limits(batch=1))

    async def ask(turns):
        for _ in range(turns):
            await asyncio.wait_for(bench.scorer.submit(Question("1")), 5)
            for _ in range(turns % 3):
                await asyncio.sleep(0)

    async def work():
        for clients in (1, 2, 3):
            await asyncio.gather(*(ask(200 + number) for number in range(clients)))

    asyncio.run(work())


def test_a_full_queue_refuses_at_once_and_what_waits_too_long_is_told_so(make_contract):
    bench = Bench(make_contract(), limits=Limits(queue=5, batch=1, deadline=0.15))
    bench.store.seconds = 0.1

    async def work():
        futures, refused = [], []
        for _ in range(10):
            try:
                futures.append(bench.scorer.submit(Question("1")))
            except RefusedError as refusal:
                refused.append(refusal.code)
        return await asyncio.gather(*futures), refused

    outcomes, refused = asyncio.run(work())
    assert refused == ["overloaded"] * 5
    codes = [code(outcome) for outcome in outcomes]
    assert codes[:2] == [None, None]
    assert codes[-1] == "deadline_exceeded"


def test_whoever_has_gone_is_not_read_for(make_contract):
    bench = Bench(make_contract(), limits=Limits(batch=1))
    bench.store.seconds = 0.01

    async def work():
        futures = [bench.scorer.submit(Question(str(n))) for n in range(1, 6)]
        futures[4].cancel()
        await asyncio.gather(*futures[:4])
        await asyncio.sleep(0.05)

    asyncio.run(work())
    assert ["5"] not in bench.store.asked
