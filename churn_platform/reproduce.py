"""Computing a model anew from what was recorded of it, and comparing.

Nothing of the platform is changed: tables are read at their recorded versions, everything is computed in a private
database, and the result is compared there, bit by bit: the labels, the customers' features from the validated rows on,
the training set, the metrics and what the model answers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_platform import provenance
from churn_platform.assets.common import contents
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract, given
from churn_platform.engine import connection, identifier, literal
from churn_platform.ml import features, inputs, labels, models, retention
from churn_platform.ml.splits import split
from churn_platform.ml.training import in_order, train
from churn_platform.ml.tuning import search
from churn_platform.provenance import TRAINING_SET, TREATMENTS
from churn_platform.registered import CHAMPION
from churn_platform.resources.storage import LEDGER, MissingTableError, TableStore
from churn_platform.resources.tracking import BY_TIME, BY_TRIALS, PARAMETERS, SEARCH, RegistryError, Tracking
from churn_platform.windows import window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import duckdb
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from churn_platform.settings import Settings

# What metrics and probabilities may differ by where another library, or another machine's arithmetic, fitted the
# model. On the same machine and libraries they are the same to the last digit.
TOLERANCE = 1e-9
_ERASURES = "erasure_log"


class ReproductionError(RuntimeError):
    """A model cannot be computed anew; the message says what is missing, and why."""


@dataclass(frozen=True)
class Finding:
    """What one comparison found."""

    what: str
    same: bool
    words: str

    def __str__(self) -> str:
        return f"  {self.what:<14} {self.words if self.same else f'DIFFERENT: {self.words}'}"


def reproduce(
    contract: Contract, settings: Settings, version: str | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Compute a model anew and compare every stage of it.

    Args:
        contract: names the model. What it was made by is the contract that was kept with it.
        settings: say where things are.
        version: the model's version; default the champion.
        say: told each comparison as soon as it is made.

    Returns:
        What was compared; the model is reproduced if all of it is `same`.

    Raises:
        RegistryError: there is no such model.
        ReproductionError: something that it was made of is gone, or was never recorded.
    """
    tables, registry = TableStore(settings.tables_of(contract)), Tracking(contract, settings)
    model = registry.version_of(CHAMPION) if version is None else registry.version(version)
    if model is None:
        raise RegistryError(f"{registry.model_name} has no champion: say which version to reproduce.")
    made_of = provenance.recorded(model)
    aliases = f" ({', '.join(model.aliases)})" if model.aliases else ""
    say(f"{registry.model_name} version {model.version}{aliases}, trained as of {model.tags.get('window', 'unknown')}")
    _require(contract, tables, model, made_of, settings)
    then = _contract(registry, model)
    tracking = Tracking(then, settings)
    for name, recorded, now in (
        ("code", model.tags.get(provenance.CODE, "unknown"), provenance.code()),
        ("libraries", *_changed(json.loads(model.tags.get(provenance.LIBRARIES, "{}")), provenance.libraries())),
        ("contract", then.fingerprint, contract.fingerprint),
    ):
        say(f"  {name:<14} {recorded}" + ("" if recorded == now else f", now {now}"))
    say(f"  {'versions':<14} " + ", ".join(f"{name}@{number}" for name, number in made_of.items()))

    found: list[Finding] = []

    def note(finding: Finding) -> None:
        found.append(finding)
        say(str(finding))

    with connection() as con:
        for name in (TRAINING_SET, "churn_labels", "customer_features"):
            tables.read(con, name, version=made_of[name], view=f"recorded_{name}")
        note(_labels(con, then, tables, made_of))
        note(_features(con, then, tables, made_of))
        if TREATMENTS in made_of:
            tables.read(con, TREATMENTS, version=made_of[TREATMENTS])
            con.execute(f"CREATE TEMP TABLE left_alone AS {retention.untreated(then, 'new_labels')}")
        note(_training_set(con, then, "left_alone" if TREATMENTS in made_of else "new_labels"))
        rows = in_order(then, con.sql(f"SELECT * FROM recorded_{TRAINING_SET}").df())
    parameters = json.loads(model.tags[PARAMETERS])
    if model.tags.get(SEARCH) == BY_TRIALS:
        say(f"  searching again for the parameters of {then.model.family}")
        note(_search(then, rows, parameters))
    elif model.tags.get(SEARCH) == BY_TIME:
        say("  its search was ended by its time budget, so it is not repeated: its parameters are taken as recorded")
    say(f"  training {then.model.family} on what was recorded")
    trained = train(then, rows, parameters=parameters)
    kept = tracking.client.get_run(str(model.run_id)).data.metrics
    note(_numbers("metrics", {name: (kept.get(name), value) for name, value in trained.metrics.items()}))
    answers = models.frame(then, rows)
    before = models.probabilities(tracking.load(model).pipeline, answers)
    after = models.probabilities(trained.pipeline, answers)
    note(_numbers("predictions", dict(enumerate(zip(before, after, strict=True)))))
    return found


# ------------------------------------------------------------------------------------------- what was recorded


def _require(
    contract: Contract, tables: TableStore, model: ModelVersion, made_of: dict[str, int], settings: Settings
) -> None:
    needed = (set(provenance.inputs(contract, tables)) | {TRAINING_SET}) - {TREATMENTS}
    unrecorded = sorted(needed - set(made_of))
    if unrecorded:
        raise ReproductionError(
            f"version {model.version} of {model.name} was trained before the versions of {', '.join(unrecorded)} were "
            "recorded. Train a new model to have one that can be reproduced."
        )
    if PARAMETERS not in model.tags:
        raise ReproductionError(
            f"version {model.version} of {model.name} was trained before its hyperparameters were recorded. Train a "
            "new model to have one that can be reproduced."
        )
    gone = []
    for name, number in made_of.items():
        try:
            tables.require_version(name, number)
        except MissingTableError as error:
            gone.append(str(error))
    if gone:
        raise ReproductionError("\n".join([*gone, _why_gone(tables, model, settings)]))


def _why_gone(tables: TableStore, model: ModelVersion, settings: Settings) -> str:
    """What removes old versions, and which of it is likely to have removed these."""
    if tables.version(_ERASURES) is not None:
        with connection() as con:
            tables.read(con, _ERASURES)
            count, last = con.execute(
                f'SELECT count(*), max("at") FROM {_ERASURES} WHERE "at" >= ?::TIMESTAMPTZ', [model.tags["trained_at"]]
            ).fetchall()[0]
        if count:
            return (
                f"{count} customers were erased since it was trained, the last at {last:%Y-%m-%d %H:%M}. An erasure "
                "removes the versions that held the person: this model can be reproduced no more. A retrain makes one "
                "that can."
            )
    return (
        f"Old versions are pruned {settings.keep_versions_days} days after they were replaced "
        f"(CHURN_KEEP_VERSIONS_DAYS), except those that the champion, the challenger and the newest "
        f"{settings.keep_models} models (CHURN_KEEP_MODELS) were made of. This model can be reproduced no more."
    )


def _contract(registry: Tracking, model: ModelVersion) -> Contract:
    """The contract that was kept with a model."""
    from pydantic import ValidationError

    text = Path(registry.artifact(str(model.run_id), "contract.json")).read_text()
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        raise ReproductionError(
            f"the contract that was kept with version {model.version} is of another form than this code reads. Check "
            f"out the code that trained it ({model.tags.get(provenance.CODE, 'not recorded')}) and try again there. "
            f"{error.error_count()} problems, the first: {error.errors()[0]['msg']}"
        ) from None


def _changed(then: dict[str, str], now: dict[str, str]) -> tuple[str, str]:
    """Both sets of libraries in words; where they differ, those alone that do."""
    if then == now:
        return ("the same",) * 2
    differ = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    old, new = (", ".join(f"{name} {side.get(name, 'none')}" for name in differ) for side in (then, now))
    return old, new


# ----------------------------------------------------------------------------------------------- computing anew


def _validated(
    con: duckdb.DuckDBPyConnection, tables: TableStore, made_of: dict[str, int], needed: dict[str, list[str]]
) -> None:
    for name, keys in needed.items():
        tables.read(con, f"validated_{name}", keys, version=made_of[f"validated_{name}"])


def _labels(con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore, made_of: dict[str, int]) -> Finding:
    con.execute("CREATE TEMP TABLE new_labels AS SELECT * FROM recorded_churn_labels LIMIT 0")
    windows = [
        key for (key,) in con.execute("SELECT DISTINCT _window FROM recorded_churn_labels ORDER BY 1").fetchall()
    ]
    for key in windows:
        chosen = window(contract, key)
        _validated(con, tables, made_of, {contract.main_table: inputs.needed_for_labels(contract, chosen)})
        labels.build(con, contract, chosen).create_view("_built", replace=True)
        con.execute(f"INSERT INTO new_labels BY NAME SELECT *, {literal(key)} AS _window FROM _built")
    key_columns = [contract.customer.name, SNAPSHOT_TIME, "_window"]
    words = f"the labels of {len(windows)} windows"
    return _compared(con, "labels", words, recorded="recorded_churn_labels", anew="new_labels", keys=key_columns)


def _features(
    con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore, made_of: dict[str, int]
) -> Finding:
    """Recompute, from the validated rows on, the snapshots that the training set looks at."""
    times = f"SELECT DISTINCT {SNAPSHOT_TIME} FROM recorded_{TRAINING_SET}"
    windows = con.execute(
        f"SELECT DISTINCT _window FROM recorded_customer_features WHERE {SNAPSHOT_TIME} IN ({times}) ORDER BY 1"
    ).fetchall()
    columns = [contract.customer.name, SNAPSHOT_TIME, *contract.feature_names, features.AT_RISK]
    listed = ", ".join(map(identifier, columns))
    con.execute(
        f"CREATE TEMP VIEW old_features AS SELECT {listed}, _window FROM recorded_customer_features "
        f"WHERE _window IN ({', '.join(literal(key) for (key,) in windows)})"
    )
    con.execute("CREATE TEMP TABLE new_features AS SELECT * FROM old_features LIMIT 0")
    for (key,) in windows:
        chosen = window(contract, key)
        _validated(con, tables, made_of, inputs.needed_for_features(contract, chosen, from_previous=False))
        features.build(con, contract, chosen).create_view("_built", replace=True)
        con.execute(f"INSERT INTO new_features BY NAME SELECT {listed}, {literal(key)} AS _window FROM _built")
    words = f"{len(contract.feature_names)} features at {len(windows)} times"
    key_columns = [contract.customer.name, SNAPSHOT_TIME, "_window"]
    found = _compared(con, "features", words, recorded="old_features", anew="new_features", keys=key_columns)
    behind = [] if found.same else _behind(contract, tables, made_of, [key for (key,) in windows])
    if behind:
        more = f"; corrections had landed by then that {', '.join(behind)} had not been computed anew from"
        return Finding(found.what, found.same, found.words + more)
    return found


def _behind(contract: Contract, tables: TableStore, made_of: dict[str, int], keys: Iterable[str]) -> list[str]:
    """The windows whose features were out of date, by the ledger of that time."""
    ledger = tables.ledger(made_of[LEDGER]) if LEDGER in made_of else {}
    held = ledger.get("customer_features", {})
    wanted = inputs.features_made_of(
        contract, contents(contract, ledger), [window(contract, key) for key in sorted(held)]
    )
    return [key for key in keys if key in held and inputs.unstamped(held[key].made_of) != wanted[key]]


def _training_set(con: duckdb.DuckDBPyConnection, contract: Contract, labelled: str) -> Finding:
    """Join what was computed anew, each label with the newest features up to its observation."""
    customer = identifier(contract.customer.name)
    listed = ", ".join(f"f.{identifier(name)}" for name in contract.feature_names)
    con.execute(
        f"CREATE TEMP TABLE new_training_set AS SELECT l.{customer}, l.{SNAPSHOT_TIME}, l.{LABEL}, l.{MATURED_AT}, "
        f"{listed} FROM {labelled} AS l ASOF LEFT JOIN (SELECT * FROM new_features QUALIFY row_number() OVER "
        f"(PARTITION BY {customer}, {SNAPSHOT_TIME} ORDER BY _window DESC) = 1) AS f "
        f"ON l.{customer} = f.{customer} AND l.{SNAPSHOT_TIME} >= f.{SNAPSHOT_TIME}"
    )
    keys = [contract.customer.name, SNAPSHOT_TIME]
    recorded = f"recorded_{TRAINING_SET}"
    return _compared(con, "training set", "the join", recorded=recorded, anew="new_training_set", keys=keys)


# ------------------------------------------------------------------------------------------------- comparing


def _search(contract: Contract, rows: pd.DataFrame, recorded: dict[str, Any]) -> Finding:
    """Repeat a search that its trials ended; on a slower machine it may take longer than the contract allows."""
    unhurried = given(contract.model.search).model_copy(update={"seconds": math.inf})
    model = contract.model.model_copy(update={"search": unhurried})
    found = search(contract.model_copy(update={"model": model}), split(contract, rows).train.reset_index(drop=True))
    differ = [
        f"{name} was {recorded.get(name)}, now {value}"
        for name, value in found.parameters.items()
        if recorded.get(name) != value
    ]
    if differ:
        return Finding("search", False, "; ".join(differ))
    return Finding("search", True, f"the same parameters, after {len(found.trials)} trials")


def _compared(
    con: duckdb.DuckDBPyConnection, what: str, words: str, *, recorded: str, anew: str, keys: list[str]
) -> Finding:
    """Compare two views, row by row and bit by bit: 0.0 is not -0.0 here."""
    kinds = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {identifier(recorded)}").fetchall()}
    values = [name for name in kinds if name not in keys]

    def bits(side: str, name: str) -> str:
        value = f"CAST({side}.{identifier(name)} AS {kinds[name]})"
        return f"CAST({value} AS BIT)" if kinds[name] == "DOUBLE" else value

    same_key = " AND ".join(f"a.{identifier(key)} = b.{identifier(key)}" for key in keys)
    old, new = (f"(SELECT *, true AS _there FROM {identifier(view)})" for view in (recorded, anew))
    pairs = f"{old} AS a FULL JOIN {new} AS b ON {same_key}"
    both = "a._there AND b._there"
    unequal = [f"({both} AND {bits('a', name)} IS DISTINCT FROM {bits('b', name)})" for name in values]
    counts = [
        "count(a._there)",
        "count(*) FILTER (b._there IS NULL)",
        "count(*) FILTER (a._there IS NULL)",
        *(f"count(*) FILTER {condition}" for condition in unequal),
    ]
    rows, lost, more, *differing = con.execute(f"SELECT {', '.join(counts)} FROM {pairs}").fetchall()[0]
    wrong = {name: count for name, count in zip(values, differing, strict=True) if count}
    if not lost and not more and not wrong:
        return Finding(what, True, f"{words}: {rows:,} rows, equal bit by bit")
    where = con.execute(
        f"SELECT DISTINCT coalesce(a.{SNAPSHOT_TIME}, b.{SNAPSHOT_TIME}) FROM {pairs} "
        f"WHERE a._there IS NULL OR b._there IS NULL OR {' OR '.join(unequal or ['false'])} ORDER BY 1"
    ).fetchall()
    parts = [f"{count:,} values of {name}" for name, count in wrong.items()]
    parts += [f"{lost:,} rows are recorded and were not computed anew"] if lost else []
    parts += [f"{more:,} rows were computed anew and are not recorded"] if more else []
    times = ", ".join(f"{time:%Y-%m-%d}" for (time,) in where[:5]) + (", ..." if len(where) > 5 else "")
    return Finding(what, False, f"{words}: of {rows:,} rows, {'; '.join(parts)}; observed at {times}")


def _numbers(what: str, pairs: dict[Any, tuple[float | None, float]]) -> Finding:
    """Compare numbers, name to what was recorded and what came out now."""
    gaps = {name: abs(now - then) if then is not None else float("inf") for name, (then, now) in pairs.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    if gaps[worst] == 0:
        return Finding(what, True, f"{len(gaps):,} numbers, equal to the last digit")
    then, now = pairs[worst]
    words = f"{sum(gap > 0 for gap in gaps.values()):,} of {len(gaps):,} numbers differ, at most by {gaps[worst]:.3g}"
    if gaps[worst] <= TOLERANCE:
        return Finding(what, True, f"{words} (tolerance {TOLERANCE:g})")
    return Finding(what, False, f"{words} ({worst}: {then}, now {now})")
