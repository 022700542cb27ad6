"""Decisions: whom to contact and, once outcomes are known, what contacting did."""

from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from churn_platform import treatments
from churn_platform.assets.common import WRITES, column_schema, history, partitions, plot, require_window
from churn_platform.contract import (
    ARM,
    CONTACTED,
    LABEL,
    MATURED_AT,
    MODEL_VERSION,
    PROBABILITY,
    PROFIT,
    SNAPSHOT_TIME,
    WORTH,
    Contract,
    given,
)
from churn_platform.engine import connection, identifier
from churn_platform.ml import models, plots, retention, uplift
from churn_platform.ml.explanations import Explainer, UnexplainedError
from churn_platform.ml.features import AT_RISK
from churn_platform.resources import exports
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import REFERENCE, RegistryError, Tracking
from churn_platform.settings import Settings
from churn_platform.windows import window

SHOWN = 24  # windows that are looked at: the cost of a window must not grow with history

_EFFECT_SCHEMA = pa.schema(
    [
        ("of", pa.string()),  # `hold_out`: by lot; `contacts`: observed
        *((name, pa.int64()) for name in ("treated", "control", "left_out")),
        *((name, pa.float64()) for name in ("treated_rate", "control_rate", "saved", "low", "high")),
        *((name, pa.float64()) for name in ("profit", "profit_low", "profit_high")),
    ]
)


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The retention list and what it did, where the contract says what a customer is worth."""
    return [_retention_list(contract), _retention_effect(contract)] if contract.value is not None else []


def _retention_list(contract: Contract) -> dg.AssetsDefinition:
    columns = retention.columns(contract)

    @dg.asset(
        deps=["customer_features", "churn_scores"],
        partitions_def=partitions(contract),
        group_name="decisions",
        kinds={"shap", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(columns)},
        description="Whom to contact: customers of whom more is expected than contacting them costs, best first, with "
        "the reasons in words; without those who are suppressed or rest. A hold-out, drawn by lot, is left alone. It "
        "is a plan until `churn retention sent` says that it was carried out; from then on it stays as it is.",
    )
    def retention_list(
        context: dg.AssetExecutionContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
        settings: dg.ResourceParam[Settings],
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        for table in ("customer_features", "churn_scores"):
            require_window(key, tables.windows(table), table)
        sent = treatments.sent_on(tables).get(key)
        if sent is not None and key in tables.windows(treatments.LIST):
            context.log.info("the list of %s was sent on %s and stays as it is", key, sent)
            return dg.MaterializeResult(metadata={"sent_on": str(sent), "why": "what was sent stays as it was sent"})
        scored = _scored(contract, tables, key)
        reasons = _Reasons(contract, tracking, scored)
        try:
            with connection(contract.time.timezone) as con:
                never = treatments.suppressed(con, contract, settings)
            resting = treatments.resting(contract, tables, window(contract, key))
            found = retention.build(contract, key, scored, suppressed=never, resting=resting, explain=reasons.of)
        except (treatments.TreatmentError, RegistryError) as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        rows = _table(contract, found.rows)
        version = tables.write(treatments.LIST, rows, key)
        contacted = _table(contract, found.contacted)
        csv, parquet = exports.write(tables, treatments.LIST, key, contacted.drop_columns([ARM]))
        title = f"profit expected at the end of {key}"
        curve = plots.profit({"expected": found.profit_curve}, given(contract.value).capacity, title)
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": len(rows),
                "dagster/column_lineage": _lineage(contract),
                "to_contact": len(contacted),
                "held_out": len(rows) - len(contacted),
                "considered": found.considered,
                "suppressed": found.suppressed,
                "resting": found.resting,
                "expected_profit": float(found.contacted[PROFIT].sum()),
                "explained": reasons.why_not or "yes",
                "profit": plot(curve),
                "csv": dg.MetadataValue.path(csv),
                "parquet": dg.MetadataValue.path(parquet),
                "table_version": version,
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return retention_list


def _scored(contract: Contract, tables: TableStore, key: str) -> pd.DataFrame:
    customer = identifier(contract.customer.name)
    with connection() as con:
        tables.read(con, "customer_features", [key])
        tables.read(con, "churn_scores", [key])
        scored = con.sql(
            f"SELECT f.*, s.* EXCLUDE ({customer}, {SNAPSHOT_TIME}, _window) FROM customer_features f "
            f"JOIN churn_scores s ON f.{customer} = s.{customer} AND f.{SNAPSHOT_TIME} = s.{SNAPSHOT_TIME} "
            f"WHERE {AT_RISK} ORDER BY ALL"
        ).df()
    scored[SNAPSHOT_TIME] = scored[SNAPSHOT_TIME].dt.tz_convert("UTC")
    return scored


class _Reasons:
    """Says why customers are at risk, by the model that scored them; where it cannot, `why_not` says why."""

    def __init__(self, contract: Contract, tracking: Tracking, scored: pd.DataFrame) -> None:
        self.why_not = ""
        self._contract, self._tracking = contract, tracking
        self._version = str(scored[MODEL_VERSION].iloc[0]) if len(scored) else ""

    def of(self, rows: pd.DataFrame) -> list[str]:
        """The reasons of some of the rows, strongest first, joined by semicolons. Raises RegistryError."""
        model = self._tracking.load(self._tracking.version(self._version))
        reference = pd.read_parquet(self._tracking.artifact(model.run_id, REFERENCE))
        try:
            explainer = Explainer(self._contract, model.pipeline, reference)
        except UnexplainedError as error:
            self.why_not = str(error)
            return [""] * len(rows)
        found = explainer.reasons(models.frame(self._contract, rows))
        return ["; ".join(reason.words for reason in reasons) for reasons in found]


def _table(contract: Contract, rows: pd.DataFrame) -> pa.Table:
    kinds = {
        "integer": pa.int64(),
        "float": pa.float64(),
        "string": pa.string(),
        "timestamp": pa.timestamp("us", "UTC"),
    }
    schema = pa.schema([(name, kinds[kind]) for name, (kind, _) in retention.columns(contract).items()])
    return pa.Table.from_pandas(rows, schema, preserve_index=False)


def _lineage(contract: Contract) -> dg.TableColumnLineage:
    value = given(contract.value).customer_value
    found = {
        contract.customer.name: [dg.TableColumnDep("churn_scores", contract.customer.name)],
        PROBABILITY: [dg.TableColumnDep("churn_scores", PROBABILITY)],
        PROFIT: [dg.TableColumnDep("churn_scores", PROBABILITY)],
    }
    if isinstance(value, str):
        found[WORTH] = [dg.TableColumnDep("customer_features", value)]
        found[PROFIT] += found[WORTH]
    return dg.TableColumnLineage(found)


# ------------------------------------------------------------------------------------------------- what it did


def _retention_effect(contract: Contract) -> dg.AssetsDefinition:
    @dg.asset(
        deps=["churn_labels", dg.AssetDep("retention_list", partition_mapping=history(contract))],
        partitions_def=partitions(contract),
        group_name="decisions",
        kinds={"scikitlearn", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        description="What contacting customers did, on the labels that are mature: churn of those whom lists meant to "
        "contact beside that of the hold-out, with its interval and the profit per contact. And, where the contract "
        "describes contacts, what can be observed of those: no experiment, so no proof.",
    )
    def retention_effect(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        require_window(key, tables.windows("churn_labels"), "churn_labels")
        rows: list[dict[str, Any]] = []
        metadata: dict[str, Any] = {}
        try:
            row, metadata["by_lot"] = _by_lot(contract, tables, key)
            rows.append(row)
        except uplift.NotComparableError:
            metadata["by_lot"] = "no list that was sent has mature labels of both arms yet"
        if contract.tables.contacts is not None:
            try:
                row, metadata["observed_contacts"] = _observed(contract, tables, key)
                rows.append(row)
            except uplift.NotComparableError:
                metadata["observed_contacts"] = "no labelled customer was contacted, or all were"
        version = tables.write("retention_effect", pa.Table.from_pylist(rows, _EFFECT_SCHEMA), key)
        if rows:
            names = ["hold-out" if row["of"] == "hold_out" else "contacts, observed" for row in rows]
            figure = plots.intervals(names, [(row["saved"], row["low"], row["high"]) for row in rows], "churn avoided")
            metadata["effect"] = plot(figure)
        return dg.MaterializeResult(
            metadata={**metadata, "dagster/partition_row_count": len(rows), "table_version": version},
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return retention_effect


def _by_lot(contract: Contract, tables: TableStore, key: str) -> tuple[dict[str, Any], dg.MetadataValue]:
    """The effect of the lists that were sent. Raises NotComparableError."""
    customer = identifier(contract.customer.name)
    with connection() as con:
        if not treatments.read(con, tables):
            raise uplift.NotComparableError
        tables.read(con, "churn_labels", _until(tables, "churn_labels", key))
        rows = con.sql(
            f"SELECT t.*, l.{LABEL} FROM treatments t JOIN churn_labels l ON t.{customer} = l.{customer} "
            f"AND t.{SNAPSHOT_TIME} = l.{SNAPSHOT_TIME} WHERE t.{ARM} <> '{retention.UNLISTED}' ORDER BY ALL"
        ).df()
    labels = rows[LABEL].to_numpy(dtype="float64")
    treated = (rows[ARM] == retention.CONTACT).to_numpy()
    lists = rows["_window"].to_numpy()
    confidence = contract.gates.confidence
    found = uplift.effect(labels, treated, lists, confidence)
    cost = given(contract.value).offer_cost * rows[CONTACTED].to_numpy(dtype="float64")
    earned = uplift.difference(
        rows[WORTH].to_numpy(dtype="float64") * (1 - labels) - cost,
        treated,
        rows[contract.customer.name],
        lists,
        confidence=confidence,
    )
    row = {
        "of": "hold_out",
        "treated": found.treated,
        "control": found.control,
        "left_out": found.left_out,
        "treated_rate": found.treated_rate,
        "control_rate": found.control_rate,
        "saved": found.saved.value,
        "low": found.saved.low,
        "high": found.saved.high,
        "profit": earned.value,
        "profit_low": earned.low,
        "profit_high": earned.high,
    }
    return row, dg.MetadataValue.md(found.words(confidence, given(contract.value).acceptance, earned))


def _observed(contract: Contract, tables: TableStore, key: str) -> tuple[dict[str, Any], dg.MetadataValue]:
    """What can be observed of the contacts that the contract describes. Raises NotComparableError."""
    from churn_platform.ml.features import event_time

    customer, contacts = identifier(contract.customer.name), given(contract.tables.contacts)
    labelled = _until(tables, "churn_labels", key)
    with connection(contract.time.timezone) as con:
        tables.read(con, "churn_labels", labelled)
        tables.read(con, "customer_features", _until(tables, "customer_features", key))
        tables.read(con, "validated_contacts", _until(tables, "validated_contacts", key))
        rows = con.sql(
            f"SELECT f.*, l.{LABEL}, EXISTS (SELECT 1 FROM validated_contacts c "
            f"WHERE c.{identifier(contacts.customer)} = l.{customer} AND {event_time(contract, 'contacts')} >= "
            f"l.{SNAPSHOT_TIME} AND {event_time(contract, 'contacts')} < l.{MATURED_AT}) AS _contacted "
            f"FROM churn_labels l JOIN customer_features f ON f.{customer} = l.{customer} "
            f"AND f.{SNAPSHOT_TIME} = l.{SNAPSHOT_TIME} ORDER BY ALL"
        ).df()
    contacted = rows["_contacted"].to_numpy(dtype="bool")
    inputs = models.frame(contract, rows)
    found = uplift.observed(
        rows[LABEL].to_numpy(dtype="float64"),
        contacted,
        lambda: uplift.propensity(contract, inputs, contacted),
        rows[contract.customer.name],
        contract.gates.confidence,
    )
    row = {
        "of": "contacts",
        "treated": found.contacted,
        "control": found.others,
        "left_out": found.left_out,
        "treated_rate": found.contacted_rate,
        "control_rate": found.others_rate,
        "saved": found.alike.value,
        "low": found.alike.low,
        "high": found.alike.high,
    }
    return row, dg.MetadataValue.md(found.words(contract.gates.confidence))


def _until(tables: TableStore, name: str, key: str) -> list[str]:
    return [known for known in tables.windows(name) if known <= key][-SHOWN:]
