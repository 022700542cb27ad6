"""A contract in words, for people who want to know what they have just written down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import plain

if TYPE_CHECKING:
    from churn_platform.contract import Column, Contract, Search, Table


def explain(contract: Contract) -> str:
    """The contract, read back."""
    return "\n".join(
        [
            f"Contract {contract.name}, answered for by {contract.owner} (fingerprint {contract.fingerprint})",
            "",
            *_time(contract),
            *_tables(contract),
            *_features(contract),
            *_label(contract),
            *_model(contract),
            *_value(contract),
            *_monitoring(contract),
        ]
    )


def _time(contract: Contract) -> list[str]:
    time = contract.time
    end = f"until {time.end}" if time.end else "with no end"
    history = f"{time.cadence} windows from {time.start} {end}, in {time.timezone}"
    called = f"{contract.customer.name} ({contract.customer.type})"
    return [f"History: {history}. A customer is called {called}.", ""]


def _tables(contract: Contract) -> list[str]:
    lines = [f"Tables, from the source `{contract.source.kind}`:"]
    for name, table in contract.tables.items().items():
        where = table.path or table.relation or ("a query" if table.query else "")
        lines.append(f"  {name}{f' ({where})' if where else ''}: customer in {table.customer}{_roles(table)}")
        lines += [f"    {column}: {_column(spec)}" for column, spec in table.columns.items()]
        once = f"; {', '.join(table.unique)} may appear once only" if table.unique else ""
        lines.append(
            f"    a window of it is refused with {_fewer(table.min_rows)}more than {table.max_quarantined:.1%} "
            f"bad rows{once}{_compared(table)}"
        )
    return [*lines, ""]


def _compared(table: Table) -> str:
    """What else refuses a window, where the contract says so itself."""
    said = {
        "max_rows": "more than {:,} good rows",
        "min_volume": "less than {:.0%} of the smallest of the windows before",
        "max_volume": "more than {:g} times the largest of the windows before",
        "min_overlap": "less than {:.0%} of its customers in common with the windows before",
        "max_repeated": "more than {:.0%} of the rows equal to another",
        "max_silence_days": "no row in its last {:g} days",
    }
    words = [text.format(getattr(table, key)) for key, text in said.items() if getattr(table, key) is not None]
    return f"; or with {', or with '.join(words)}" if words else ""


def _fewer(rows: int) -> str:
    if not rows:
        return ""
    return "no good row, or with " if rows == 1 else f"fewer than {rows:,} good rows, or with "


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"


def _roles(table: Table) -> str:
    words = ""
    for role in ("time", "arrived", "amount", "order"):
        column = getattr(table, role, None)
        if column:
            words += f", {role} in {column}"
    return words


def _column(column: Column) -> str:
    words = [column.type, "may be missing" if column.nullable else "always there"]
    if column.from_ is not None:
        words.append(f"read from {column.from_}")
    if column.format is not None:
        words.append(f"written as {column.format}")
    if column.min is not None or column.max is not None:
        low = "" if column.min is None else f"from {plain(column.min)} "
        high = "" if column.max is None else f"up to {plain(column.max)}"
        words.append(f"{low}{high}".strip())
    if column.allowed is not None:
        words.append(f"one of {', '.join(column.allowed)}")
    if column.pattern is not None:
        words.append(f"like {column.pattern}")
    masked = {
        "drop": "personal: never read",
        "hash": "personal: stored as a keyed hash",
        "bucket": f"personal: stored in steps of {plain(column.bucket or 0.0)}",
    }
    if column.pii in masked:
        words.append(masked[column.pii])
    return ", ".join(words) + (f" ({column.description})" if column.description else "")


def _features(contract: Contract) -> list[str]:
    watched = set(contract.watched_features)
    lines = [f"{_count(len(contract.feature_names), 'feature')}, version {contract.features.version}:"]
    for name in contract.feature_names:
        kind = "category" if contract.is_categorical(name) else "number"
        note = "" if name in watched else "; not watched for drift"
        lines.append(f"  {name} ({kind}): {contract.describe_feature(name)}{note}")
    if contract.slices:
        lines.append(f"  reported by slice: {', '.join(contract.slices)}")
    return [*lines, ""]


def _label(contract: Contract) -> list[str]:
    if contract.snapshots is not None:
        table, label = contract.snapshots, contract.snapshots.label
        wait = label.matures_after_days
        date = f"the date of all rows, {table.observed_at}" if table.time is None else "the row's date"
        known = f"{_count(wait, 'day')} after {date}" if wait else f"on {date}"
        other = f" ({label.negative!r}: stayed)" if label.negative is not None else ""
        return [f"Churn: {label.column} is {label.positive!r}{other}; known {known}.", ""]
    label_spec = contract.label
    if label_spec is None:
        return []
    lead = f" after a lead of {label_spec.lead_days} days" if label_spec.lead_days else ""
    who = f"a customer who bought in the last {_count(label_spec.active_within_days, 'day')}"
    churns = f"{who} buys nothing for {_count(label_spec.horizon_days, 'day')}{lead}"
    return [f"Churn: {churns}. First observation after {_count(label_spec.warmup_days, 'day')} of history.", ""]


def _model(contract: Contract) -> list[str]:
    model, gates = contract.model, contract.gates
    bounds = [f"{metric} at least {bound}" for metric, bound in contract.minimum.items()]
    bounds += [f"{metric} at most {bound}" for metric, bound in gates.maximum.items()]
    how = (
        f"tested on {_newest(model.test_windows)}, validated on {_before(model.validation_windows)}; the first is "
        f"trained when {_count(model.min_windows, 'window')} are labelled"
    )
    if contract.snapshots is not None and contract.snapshots.time is None:
        how = "trained on 60% of the customers, validated on 20% and tested on 20%"
    calibrated = {
        "auto": "calibrated as suits the validation rows",
        "none": "not calibrated",
        "sigmoid": "calibrated by a sigmoid",
        "isotonic": "calibrated by isotonic regression",
    }
    how = f"{_searched(model.search)}; {calibrated[model.calibration]}; {how}"
    high = f"from {model.threshold:.0%} on"
    if contract.value is not None:
        high = f"from the probability on that earns most on the validation rows ({model.threshold:.0%} if none earns)"
    return [
        f"Model: {model.family}, seed {model.seed}; {how}. High Risk {high}.",
        f"Gates: at least {_count(gates.min_test_rows, 'test row')} with {_count(gates.min_test_churners, 'churner')}; "
        "a recorded signature; better "
        f"than the churn rate alone and not worse than the champion, both with {gates.confidence:.0%} confidence"
        + (f"; {'; '.join(bounds)}." if bounds else "."),
        *_more_gates(contract),
        "",
    ]


def _value(contract: Contract) -> list[str]:
    value = contract.value
    if value is None:
        return []
    worth = f"{value.customer_value:g}" if not isinstance(value.customer_value, str) else value.customer_value
    if value.value_factor != 1:
        worth = f"{value.value_factor:g} times {worth}"
    most = f"at most {value.capacity:,} customers a window" if value.capacity is not None else "as many as that"
    listed = [
        f"{value.hold_out:.0%} of the chosen are left alone by lot, to measure what contacts do"
        if value.hold_out
        else "nobody is left alone by lot, so what contacts do is not measured",
        f"a customer rests for {_count(value.rest_days, 'day')}",
    ]
    if value.suppression is not None:
        listed.append(f"those in {value.suppression} are never contacted")
    figures = f"a kept customer is worth {worth}; contacting one costs {value.offer_cost:g} and keeps "
    return [
        f"Decisions: {figures}{value.acceptance:.0%} of those about to leave.",
        f"  Contacted are those of whom more is expected than it costs, best first, {most}; {'; '.join(listed)}.",
        "",
    ]


def _searched(search: Search | None) -> str:
    if search is None:
        return "no search for better hyperparameters"
    return (
        f"hyperparameters searched in up to {_count(search.trials, 'trial')} and {search.seconds:g} seconds, by "
        f"{search.metric} over {search.folds} folds"
    )


def _more_gates(contract: Contract) -> list[str]:
    """The gates on what a model was made of, on groups of customers, and on how it behaves."""
    gates, slices = contract.gates, contract.gates.slices
    floors = [f"{metric} at least {bound}" for metric, bound in slices.minimum.items()]
    floors += [f"{metric} at most {bound}" for metric, bound in slices.maximum.items()]
    large = f"at least {_count(slices.min_rows, 'row')} and {_count(slices.min_churners, 'churner')}"
    expected = contract.directions
    less, more = ([name for name in expected if expected[name] == sign] for sign in (-1, 1))
    earlier = gates.walk_forward.windows
    rows = _count(gates.min_train_rows, "row")
    lines = [
        f"  fitted on at least {rows}, none of them of the test window; at most {gates.max_twins:.0%} copied rows",
        f"  no feature with a ROC AUC above {gates.max_single_feature_auc} by itself",
        f"  also not worse than the champion when trained as of the {_count(earlier, 'window')} before"
        if earlier
        else "",
        f"  in each slice of {', '.join(contract.slices)} with {large}: {', '.join(floors)}"
        if contract.slices and floors
        else "",
        f"  scores distributed within {gates.max_score_shift} of the champion's, unless outcomes bear more out",
        f"  risk falls with {', '.join(less)}" if less else "",
        f"  risk rises with {', '.join(more)}" if more else "",
        f"  one customer in at most {gates.max_latency_ms:g} ms; a stored model of at most {gates.max_size_mb:g} MB",
        f"  {_count(gates.shadow_answers, 'live request')} answered in the shadow of the champion, much as it did"
        if gates.shadow_answers
        else "",
    ]
    return [line for line in lines if line]


def _newest(windows: int) -> str:
    return "the newest labelled window" if windows == 1 else f"the {windows} newest labelled windows"


def _before(windows: int) -> str:
    return "the one before" if windows == 1 else f"the {windows} before"


def _monitoring(contract: Contract) -> list[str]:
    drift, policy = contract.drift, contract.retraining
    drifted = f"{policy.drifted_windows} of the last {policy.of_last} windows drifted"
    if policy.of_last == 1:
        drifted = "the newest window drifted"
    who = {
        "share": f"{drift.share:.0%} of the watched features have",
        "any_feature": "any feature, watched or not, has",
        "scores": "the champion's scores have",
    }[drift.judged_by]
    judged = f"when {who} a {drift.method} above {drift.threshold}"
    budget = f"{_count(policy.budget.retrains, 'time')} in {_count(policy.budget.windows, 'window')}"
    apart = _count(policy.cooldown_windows, "window")
    fell = f"the live ROC AUC falls by more than {policy.performance_drop}"
    asks = {"every_window": "every window", "drift": f"when {drifted}", "performance": f"when {fell}"}
    reasons = ", or ".join(words for reason, words in asks.items() if reason in policy.when)
    return [
        f"Drift: a window drifts {judged}.",
        f"Retraining: {reasons}; at least {apart} apart, at most {budget}." if reasons else "Retraining: never.",
    ]
