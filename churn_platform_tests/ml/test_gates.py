"""The gates, each fed with what it must stop; and a good model, which must pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from churn_platform.contract_file import ContractError
from churn_platform.ml import equality, gates, probes
from churn_platform.ml.retrials import Walk
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

GATES = "gates: {minimum: {roc_auc: 0.6}, min_test_rows: 50, min_test_churners: 10}"
WINDOW, SIGNATURE, BASE, CHAMPION = gates.WINDOW, gates.SIGNATURE, gates.BASE, gates.CHAMPION


def contract_with(text: str = GATES):
    return changed(graph.SIMULATED, (GATES, text))


CONTRACT = contract_with()
FITTED = graph.labelled(200, 3)
PROBES = (probes.UNSEEN, probes.GIVES_AWAY, probes.ID, probes.DIRECTION, probes.INVARIANT, probes.BUDGET)


def evidence(rows: int = 1000, rate: float = 0.3, seed: int = 1, **changes) -> gates.Evidence:
    """Of a good, calibrated candidate and no champion. Who the test rows are has nothing to do with what is said."""
    random = np.random.default_rng(seed)
    said = random.beta(rate * 2, (1 - rate) * 2, rows)
    labels = (random.random(rows) < said).astype("float64")
    candidate = changes.get("candidate", said)
    tested = graph.labelled(rows, 1, start="2023-06-01")
    good = gates.Evidence(
        customers=pd.Series([f"c{number}" for number in range(rows)]),
        tested=tested.assign(churned=changes.get("labels", labels)[:rows]),
        fitted=FITTED,
        split_by="time",
        labels=labels,
        candidate=said,
        champion=None,
        again=candidate,
        walk=None,
        answers=graph.risk,
        train_rate=rate,
        threshold=0.5,
        has_signature=True,
        megabytes=1.0,
        compiled=equality.Compiled(graph.risk, 0.5, {"age": np.array([40.5])}),
    )
    return dataclasses.replace(good, **changes)


@pytest.fixture(autouse=True)
def few_rows_to_compare_the_compiled_model_on(monkeypatch):
    monkeypatch.setattr(equality, "ROWS", 1000)


def verdict(found, name: str):
    return next(finding for finding in found if finding.name == name)


def failed(found) -> list[str]:
    return [finding.name for finding in found if not finding.passed]


def noise(rows: int = 1000, seed: int = 9):
    return np.random.default_rng(seed).random(rows)


def test_a_good_model_passes_every_gate():
    assert failed(gates.judge(CONTRACT, evidence())) == []


def test_verdicts_come_in_the_order_of_the_names():
    everything = contract_with(
        "gates: {minimum: {recall_macro: 0.1, roc_auc: 0.1}, maximum: {brier: 0.9, roc_auc: 1.0}}"
    )
    wanted = [*gates.ALWAYS, "recall_macro_is_good_enough", "roc_auc_is_good_enough", "brier_is_good_enough"]
    assert gates.names(everything) == wanted
    for case in (evidence(), evidence(labels=np.ones(1000)), evidence(candidate=np.full(1000, np.nan))):
        assert [finding.name for finding in gates.judge(everything, case)] == wanted


def test_answering_the_base_rate_for_everybody_is_refused():
    assert BASE in failed(gates.judge(CONTRACT, evidence(candidate=np.full(1000, 0.3))))


def test_a_gain_over_the_base_rate_that_may_be_chance_is_refused():
    labels = evidence(120).labels
    rate = labels.mean()
    noisy = rate + 0.05 * (labels - rate) + np.random.default_rng(3).normal(0, 0.08, 120)
    case = evidence(120, labels=labels, candidate=np.clip(noisy, 0, 1), train_rate=rate)
    found = verdict(gates.judge(CONTRACT, case), BASE)
    assert found.metadata["gain"] > 0 > found.metadata["low"]
    assert not found.passed


def test_random_scores_are_refused():
    assert set(failed(gates.judge(CONTRACT, evidence(candidate=noise())))) == {
        BASE,
        gates.SLICES,
        "roc_auc_is_good_enough",
    }


def test_inverted_probabilities_are_refused():
    good = evidence()
    inverted = dataclasses.replace(good, candidate=1 - good.candidate, again=1 - good.candidate)
    assert set(failed(gates.judge(CONTRACT, inverted))) == {BASE, gates.SLICES, "roc_auc_is_good_enough"}


def test_a_model_that_ranks_well_and_exaggerates_is_refused_by_the_base_rate():
    good = evidence()
    loud = np.clip(good.candidate * 3, 0, 1)
    shouting = dataclasses.replace(good, candidate=loud, again=loud)
    found = gates.judge(contract_with("gates: {minimum: {roc_auc: 0.7}, min_test_rows: 50}"), shouting)
    assert failed(found) == [BASE]


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_test_window_with_one_kind_of_customers_passes_no_gate_but_the_signature(label):
    found = gates.judge(CONTRACT, evidence(labels=np.full(1000, label)))
    assert failed(found) == [name for name in gates.names(CONTRACT) if name != SIGNATURE]


def test_an_empty_test_window_passes_no_gate_but_the_signature():
    nothing = evidence(0)
    assert failed(gates.judge(CONTRACT, nothing)) == [name for name in gates.names(CONTRACT) if name != SIGNATURE]


@pytest.mark.parametrize(
    ("rows", "churners", "enough"), [(49, 20, False), (50, 9, False), (50, 10, True), (50, 50, False)]
)
def test_a_verdict_on_too_few_customers_or_churners_is_refused(rows, churners, enough):
    labels = np.r_[np.ones(churners), np.zeros(rows - churners)]
    case = evidence(rows, labels=labels, candidate=np.where(labels > 0, 0.9, 0.1))
    found = {finding.name: finding.passed for finding in gates.judge(CONTRACT, case)}
    assert found[WINDOW] is enough


@pytest.mark.parametrize("answer", [np.nan, np.inf, -np.inf])
def test_a_single_answer_that_is_no_number_fails_every_judgement_of_the_model(answer):
    good = evidence()
    candidate = good.candidate.copy()
    candidate[17] = answer
    found = gates.judge(CONTRACT, dataclasses.replace(good, candidate=candidate))
    assert failed(found) == [name for name in gates.names(CONTRACT) if name not in (WINDOW, SIGNATURE)]
    assert "1 of the candidate's 1,000 answers" in found[2].words


def test_a_metric_that_cannot_be_computed_fails_its_gate(monkeypatch):
    measured = dict.fromkeys(("roc_auc", "pr_auc", "brier"), float("nan"))
    monkeypatch.setattr(gates.metrics, "evaluate", lambda *_: measured)
    contract = contract_with("gates: {minimum: {roc_auc: 0.0}, maximum: {brier: 1.0}}")
    wanted = [gates.SLICES, "roc_auc_is_good_enough", "brier_is_good_enough"]
    assert failed(gates.judge(contract, evidence())) == wanted


def test_a_missing_signature_is_refused():
    assert failed(gates.judge(CONTRACT, evidence(has_signature=False))) == [SIGNATURE]


@pytest.mark.parametrize(
    ("bound", "metric", "misses", "meets"),
    [
        ("minimum", "roc_auc", 0.99, 0.5),
        ("minimum", "pr_auc", 0.99, 0.3),
        ("maximum", "brier", 0.01, 0.5),
        ("maximum", "calibration_error", 0.0001, 0.5),
        ("minimum", "accuracy", 0.999, 0.5),
        ("minimum", "precision_macro", 0.999, 0.5),
        ("minimum", "recall_macro", 0.999, 0.5),
    ],
)
def test_each_metric_of_a_contract_is_a_gate_that_refuses_and_lets_pass(bound, metric, misses, meets):
    for value, expected in ((misses, [f"{metric}_is_good_enough"]), (meets, [])):
        found = gates.judge(contract_with(f"gates: {{{bound}: {{{metric}: {value}}}}}"), evidence())
        assert failed(found) == expected
        assert found[-1].metadata[bound] == value


def test_a_bound_that_is_met_exactly_is_met():
    contract = contract_with("gates: {minimum: {accuracy: 0.75}, min_test_rows: 4, min_test_churners: 1}")
    case = evidence(4, labels=np.array([0.0, 0, 1, 1]), candidate=np.array([0.1, 0.2, 0.3, 0.9]))
    assert gates.judge(contract, case)[-1].passed


def test_a_metric_between_two_bounds_of_its_own_is_judged_by_both():
    contract = contract_with("gates: {minimum: {roc_auc: 0.6}, maximum: {roc_auc: 0.7}}")
    found = gates.judge(contract, evidence())
    assert failed(found) == ["roc_auc_is_good_enough"]  # too good to be true
    assert "at least 0.6 and at most 0.7" in found[-1].words


def test_the_gates_of_the_specification_can_be_stated_and_judge():
    text = "gates: {minimum: {accuracy: 0.85, precision_macro: 0.80, recall_macro: 0.75}}"
    contract = contract_with(text)
    labels = evidence().labels
    sure = gates.judge(contract, evidence(candidate=np.where(labels > 0, 0.9, 0.1)))
    assert failed(sure) == []
    assert set(failed(gates.judge(contract, evidence(candidate=noise())))) == {
        BASE,
        gates.SLICES,
        "accuracy_is_good_enough",
        "precision_macro_is_good_enough",
        "recall_macro_is_good_enough",
    }


@pytest.mark.parametrize("text", ["gates: {minimum: {accuracy: .nan}}", "gates: {minimum: {accuracy: 85}}"])
def test_a_gate_that_could_not_gate_is_no_contract(text):
    with pytest.raises(ContractError):
        contract_with(text)


def test_a_candidate_that_is_significantly_worse_than_the_champion_is_refused():
    good = evidence()
    worse = np.clip(good.candidate + np.random.default_rng(2).normal(0, 0.35, 1000), 0, 1)
    found = gates.judge(contract_with("gates: {min_test_rows: 50}"), evidence(candidate=worse, champion=good.candidate))
    refused = verdict(found, CHAMPION)
    assert not refused.passed
    assert refused.metadata["high"] < 0
    assert "The champion stays" in refused.remedy


def test_a_candidate_that_is_as_good_as_the_champion_passes():
    good = evidence()
    assert failed(gates.judge(CONTRACT, evidence(champion=good.candidate))) == []


def test_a_candidate_that_is_a_little_worse_by_chance_passes():
    good = evidence()
    little = np.clip(good.candidate + np.random.default_rng(2).normal(0, 0.002, 1000), 0, 1)
    found = gates.judge(CONTRACT, evidence(candidate=little, champion=good.candidate))
    assert failed(found) == []
    assert verdict(found, CHAMPION).metadata["difference"] < 0


def test_the_same_customers_at_many_dates_are_not_taken_for_many_customers():
    """Fifty copies of twenty customers prove no more than twenty customers do."""
    few = evidence(20, seed=5)
    copies = {name: np.tile(getattr(few, name), 50) for name in ("labels", "candidate")}
    known = gates.judge(CONTRACT, evidence(customers=pd.Series(np.tile(few.customers, 50)), **copies))
    separate = gates.judge(CONTRACT, evidence(**copies))
    gains = [verdict(found, BASE).metadata for found in (known, separate)]
    spread = [gain["high"] - gain["low"] for gain in gains]
    assert spread[0] > 5 * spread[1]


def test_a_champion_that_cannot_be_compared_is_said_so():
    found = gates.judge(CONTRACT, evidence(no_champion_because="the champion cannot be compared with"))
    assert all(verdict(found, name).passed for name in (CHAMPION, gates.WALK, gates.STABLE))
    assert "cannot be compared" in verdict(found, CHAMPION).words


def test_every_verdict_that_refuses_says_what_to_do():
    for case in (evidence(candidate=noise(), has_signature=False), evidence(labels=np.ones(1000))):
        for finding in gates.judge(CONTRACT, case):
            assert finding.passed or len(finding.remedy) > 20
            assert finding.words


def test_the_fingerprint_changes_with_what_the_gates_ask_for_and_with_nothing_else():
    same = changed(graph.SIMULATED, ("owner: team:toys", "owner: team:games"))
    assert gates.fingerprint(same) == gates.fingerprint(CONTRACT)
    for other in (
        contract_with("gates: {minimum: {roc_auc: 0.7}, min_test_rows: 50, min_test_churners: 10}"),
        changed(graph.SIMULATED, ("min_windows: 3}", "min_windows: 3, threshold: 0.4}")),
    ):
        assert gates.fingerprint(other) != gates.fingerprint(CONTRACT)


# -- trained again, and on earlier windows


def test_a_candidate_that_does_not_come_out_the_same_again_is_refused():
    good = evidence()
    flattered = np.clip(good.candidate + 0.2 * (good.labels - 0.5), 0, 1)
    found = verdict(gates.judge(CONTRACT, dataclasses.replace(good, candidate=flattered)), gates.RECIPE)
    assert not found.passed
    assert "it answers differently: 1,000 of 1,000 answers, by up to 0.1000" in found.words
    assert "other rows than it says" in found.remedy


@pytest.mark.parametrize("claim", [0.9999, float("nan")])
@pytest.mark.parametrize("name", ["threshold", "train_rate", "test_roc_auc"])
def test_a_candidate_that_says_of_itself_what_does_not_come_out_again_is_refused(name, claim):
    assert gates.RECIPE not in failed(gates.judge(CONTRACT, evidence(claims={name: (0.5, 0.5 + 1e-12)})))
    found = gates.judge(CONTRACT, evidence(claims={name: (claim, 0.5)}))
    assert failed(found) == [gates.RECIPE]
    assert f"it says that its {name} is {claim:.6g}, and comes out with 0.5" in verdict(found, gates.RECIPE).words


def test_a_candidate_that_cannot_be_trained_again_is_refused():
    found = gates.judge(CONTRACT, evidence(again=None, not_again_because="the recipe cannot be trained again: no rows"))
    assert failed(found) == [gates.RECIPE]
    assert verdict(found, gates.RECIPE).words == "the recipe cannot be trained again: no rows"


def walk(worse_in: tuple[int, ...] = (), windows: int = 3, rows: int = 400, **changes) -> Walk:
    """The same customers at several windows; in some of them the recipe knows nothing."""
    parts = [evidence(rows, seed=10 + number) for number in range(windows)]
    found = Walk(
        windows=[f"2023-0{number + 1}-01" for number in range(windows)],
        place=np.repeat(np.arange(windows), rows),
        customers=pd.concat([part.customers for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        recipe=np.concatenate([noise(rows) if n in worse_in else part.candidate for n, part in enumerate(parts)]),
        champion=np.concatenate([part.candidate for part in parts]),
    )
    return dataclasses.replace(found, **changes)


def test_a_recipe_that_was_worse_in_earlier_windows_is_refused_though_the_newest_flatters_it():
    good = evidence()
    found = gates.judge(CONTRACT, dataclasses.replace(good, champion=good.candidate, walk=walk((0, 1))))
    assert failed(found) == [gates.WALK]
    refused = verdict(found, gates.WALK)
    assert refused.metadata["high"] < 0
    assert "2023-03-01 +0.0000" in refused.words


def test_a_recipe_as_good_in_earlier_windows_passes_and_what_was_not_judged_is_named():
    skipped = {"2022-12-01": "the champion was fitted on it"}
    found = verdict(gates.judge(CONTRACT, evidence(walk=walk(skipped=skipped))), gates.WALK)
    assert found.passed
    assert "2022-12-01 is not judged: the champion was fitted on it" in found.words


def test_without_an_earlier_window_to_judge_there_is_nothing_to_hold_against_a_candidate():
    nothing = np.zeros(0)
    none = Walk([], nothing.astype(int), pd.Series([], dtype=str), nothing, nothing, nothing, {"2023-01-01": "too few"})
    found = verdict(gates.judge(CONTRACT, evidence(walk=none)), gates.WALK)
    assert found.passed
    assert "there is no earlier window to compare on; 2023-01-01 is not judged: too few" in found.words


# -- slices


SLICED = "gates: {slices: {minimum: {roc_auc: 0.6}, min_rows: 100, min_churners: 20}}"


def test_a_slice_below_its_floor_is_refused_and_named():
    good = evidence()
    plus = (good.tested["segment"] == "plus").to_numpy()
    found = gates.judge(contract_with(SLICED), evidence(candidate=np.where(plus, 1 - good.candidate, good.candidate)))
    refused = verdict(found, gates.SLICES)
    assert not refused.passed
    assert f"segment = plus ({plus.sum()} rows): roc_auc is 0." in refused.words
    assert "asked for is at least 0.6" in refused.words


def test_a_slice_may_have_bounds_on_any_metric():
    good = evidence()
    premium = (good.tested["segment"] == "premium").to_numpy()
    alarmed = np.where(premium, (good.candidate + 1) / 2, good.candidate)
    text = "gates: {slices: {maximum: {calibration_error: 0.2}, min_rows: 50, min_churners: 10}}"
    assert (
        "segment = premium"
        in verdict(gates.judge(contract_with(text), evidence(candidate=alarmed)), gates.SLICES).words
    )


def test_slices_that_are_too_small_are_skipped_aloud():
    found = verdict(gates.judge(contract_with("gates: {slices: {min_rows: 5000}}"), evidence()), gates.SLICES)
    assert found.passed
    assert "no slice is large enough to judge; too small to judge: segment = plus (" in found.words
    assert found.metadata["slices_skipped"] == 3


def test_an_unknown_value_is_a_slice_too():
    good = evidence()
    tested = good.tested.assign(segment=good.tested["segment"].where(good.tested["segment"] != "plus", None))
    said = np.where(tested["segment"].isna(), 1 - good.candidate, good.candidate)
    found = gates.judge(contract_with(SLICED), dataclasses.replace(good, tested=tested, candidate=said))
    assert "segment = (unknown)" in verdict(found, gates.SLICES).words


# -- stability, training rows, and what cannot be judged


def test_scores_that_move_without_a_reason_in_the_outcomes_are_refused():
    good = evidence()
    moved = np.clip(good.candidate + 0.2, 0, 1)
    found = verdict(gates.judge(CONTRACT, evidence(candidate=moved, champion=good.candidate)), gates.STABLE)
    assert not found.passed
    assert "asked for is at most 0.1, and outcomes do not bear it out" in found.words


def test_scores_that_move_towards_the_truth_pass():
    good = evidence()
    old = np.clip(good.candidate + 0.2, 0, 1)
    found = verdict(gates.judge(CONTRACT, evidence(champion=old)), gates.STABLE)
    assert found.passed
    assert "and outcomes bear it out" in found.words


def test_scores_that_hardly_move_pass():
    good = evidence()
    assert verdict(gates.judge(CONTRACT, evidence(champion=good.candidate * 0.98)), gates.STABLE).passed


def test_a_model_of_few_rows_is_refused():
    found = gates.judge(CONTRACT, evidence(fitted=FITTED.head(99)))
    assert failed(found) == [gates.TRAINING]


def test_a_model_that_fails_when_it_is_asked_on_purpose_is_refused_by_each_gate_that_asks():
    def broken(rows):
        raise ZeroDivisionError("no such customer")

    found = gates.judge(CONTRACT, evidence(answers=broken))
    assert failed(found) == [probes.DIRECTION, probes.INVARIANT, probes.BUDGET, equality.EQUAL]
    assert verdict(found, probes.DIRECTION).words == "it cannot be judged: ZeroDivisionError: no such customer"


def test_a_candidate_that_cannot_be_judged_at_all_is_refused_by_every_gate():
    found = gates.refuse(CONTRACT, "it is a pickle", "Train one.")
    assert failed(found) == gates.names(CONTRACT)


def test_the_candidates_own_threshold_is_the_one_that_counts():
    contract = contract_with("gates: {minimum: {accuracy: 0.9}, min_test_rows: 4, min_test_churners: 1}")
    case = evidence(4, labels=np.array([0.0, 0, 1, 1]), candidate=np.array([0.1, 0.2, 0.3, 0.9]), threshold=0.25)
    assert verdict(gates.judge(contract, case), "accuracy_is_good_enough").passed


def test_a_labelled_table_is_asked_for_what_the_specification_asks_unless_it_says_otherwise():
    stated = "gates: {minimum: {roc_auc: 0.6}, min_test_rows: 20, min_test_churners: 5}"
    silent = changed(graph.WIDE, (stated, ""))
    assert silent.minimum == {"accuracy": 0.85, "precision_macro": 0.80, "recall_macro": 0.75}
    assert gates.names(silent)[-3:] == [f"{metric}_is_good_enough" for metric in silent.minimum]
    assert changed(graph.WIDE, (stated, "gates: {minimum: {}}")).minimum == {}
    assert changed(graph.WIDE, ("", "")).minimum == {"roc_auc": 0.6}
    assert contract_with("gates: {min_test_rows: 50}").minimum == {}


def test_a_candidate_without_a_compiled_model_is_refused_and_told_why():
    found = verdict(gates.judge(CONTRACT, evidence(compiled=None, not_compiled_because="it got lost")), equality.EQUAL)
    assert not found.passed
    assert found.words == "it got lost"
    assert "Materialize candidate_model again" in found.remedy


def test_a_compiled_model_that_answers_differently_for_one_kind_of_customer_is_refused():
    def other(rows):
        return np.where(rows["age"].isna(), 0.9, graph.risk(rows))

    found = verdict(gates.judge(CONTRACT, evidence(compiled=equality.Compiled(other, 0.5, {}))), equality.EQUAL)
    assert not found.passed
    assert "age = missing" in found.words
    assert 0 < found.metadata["differ"] < 500


def test_a_compiled_model_with_another_threshold_is_refused():
    found = verdict(gates.judge(CONTRACT, evidence(compiled=equality.Compiled(graph.risk, 0.4, {}))), equality.EQUAL)
    assert not found.passed


# ------------------------------------------------------------------------------------------------------- the shadow


IN_SHADOW = changed(
    graph.SIMULATED,
    ("min_test_rows: 50,", "min_test_rows: 50, shadow_answers: 100,"),
    ("drift:", "serving: {shadow: true}\ndrift:"),
)


def shadowed(answers: int = 100, failed: int = 0, further: float = 0.0) -> gates.Evidence:
    """Of a candidate that said on live requests what the champion said, and so much more."""
    good, said = evidence(), np.linspace(0.1, 0.5, answers)
    return dataclasses.replace(
        good, champion=good.candidate, shadow=gates.Shadow(answers, failed, said + further, said)
    )


def test_where_the_contract_asks_for_no_shadow_nobody_has_to_be_in_it():
    found = verdict(gates.judge(CONTRACT, dataclasses.replace(shadowed(), shadow=None)), gates.SHADOW)
    assert (found.passed, found.words) == (True, "the contract asks for no answers in the shadow")


def test_before_there_is_a_champion_there_is_no_shadow():
    found = verdict(gates.judge(IN_SHADOW, evidence()), gates.SHADOW)
    assert (found.passed, found.words) == (True, "there is no champion yet")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (shadowed(0), "it gave 0 answers beside the champion's; asked for are 100"),
        (shadowed(99), "it gave 99 answers"),
        (shadowed(5000, failed=1), "it gave no answer to 1 live requests"),
        (shadowed(further=0.11), "distributed 0.1100 away from the champion's; asked for is at most 0.1"),
        (shadowed(further=float("nan")), "distributed nan away"),
        (dataclasses.replace(shadowed(), shadow=None), "the prediction log was not looked at"),
    ],
)
def test_a_candidate_that_does_not_hold_up_in_the_shadow_is_refused(case, words):
    found = gates.judge(IN_SHADOW, case)
    assert failed(found) == [gates.SHADOW]
    assert words in verdict(found, gates.SHADOW).words


def test_a_candidate_that_holds_up_in_the_shadow_passes_whatever_the_order_of_its_answers():
    case = shadowed(further=0.09)
    mixed = dataclasses.replace(case, shadow=dataclasses.replace(case.shadow, candidate=case.shadow.candidate[::-1]))
    for each in (case, mixed):
        assert failed(gates.judge(IN_SHADOW, each)) == []
    assert verdict(gates.judge(IN_SHADOW, mixed), gates.SHADOW).metadata["shift"] == pytest.approx(0.09)


def test_asking_for_answers_in_a_shadow_that_is_off_is_a_contradiction():
    with pytest.raises(ContractError, match="none could ever pass"):
        contract_with("gates: {minimum: {roc_auc: 0.6}, shadow_answers: 10}")
