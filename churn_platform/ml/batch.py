"""Batch scoring: any number of customers, by the compiled model that the endpoint answers with.

Customers come in batches of a few ten thousand and leave as they came, so memory does not grow with their number. A
customer's probability is to the last bit the one that the endpoint gives for the same features.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from churn_platform.contract import MODEL_VERSION, PREDICTION, PROBABILITY, SNAPSHOT_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from churn_platform.contract import Contract
    from churn_platform.ml.compiled import CompiledModel

BATCH = 65_536  # customers


class BatchError(ValueError):
    """Customers cannot be scored; the message says why, and what to do."""


def score(
    batches: Iterable[pa.RecordBatch], contract: Contract, model: CompiledModel, version: str
) -> Iterator[pa.RecordBatch]:
    """Score customers, batch by batch.

    Args:
        batches: columns are the contract's features, its customer key and perhaps `snapshot_time`; others are ignored.
        contract: names the columns.
        model: the champion, compiled.
        version: its version.

    Yields:
        The key, `snapshot_time` where it came, the probability, the prediction and the version, in the same order.

    Raises:
        BatchError: a column is missing, or holds what is no number although its feature is one.
    """
    for batch in batches:
        require_columns(contract, batch.schema)
        probability = model.coded_probabilities(_numbers(batch, model), _codes(batch, model))
        high = (probability >= model.threshold).astype(np.int8)
        known = [name for name in (contract.customer.name, SNAPSHOT_TIME) if name in batch.schema.names]
        found = {
            **{name: batch.column(name) for name in known},
            PROBABILITY: pa.array(probability),
            PREDICTION: pa.DictionaryArray.from_arrays(high, ["Low Risk", "High Risk"]),
            MODEL_VERSION: pa.DictionaryArray.from_arrays(np.zeros(len(batch), np.int8), [version]),
        }
        yield pa.RecordBatch.from_pydict(found)


def require_columns(contract: Contract, schema: pa.Schema) -> None:
    """Refuse customers that lack columns. Raises BatchError."""
    lacking = [name for name in (contract.customer.name, *contract.feature_names) if name not in schema.names]
    if lacking:
        raise BatchError(
            f"the customers lack the columns {', '.join(lacking)}. Needed are the customer's key and all features, "
            f"named as in the contract; there are: {', '.join(schema.names)}."
        )


def _numbers(batch: pa.RecordBatch, model: CompiledModel) -> NDArray[np.float64]:
    found = np.empty((len(batch), len(model.numeric)))
    for place, feature in enumerate(model.numeric):
        name = model.features[feature]
        column = batch.column(name)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        try:
            found[:, place] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BatchError(f"the column {name} holds no numbers ({column.type}): {error}.") from error
    return found


def _codes(batch: pa.RecordBatch, model: CompiledModel) -> NDArray[np.int32]:
    found = np.empty((len(batch), len(model.categorical)), np.int32)
    for place, feature in enumerate(model.categorical):
        column = batch.column(model.features[feature])
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        texts = column.cast(pa.string()).dictionary_encode()
        known, other = model.categories[place], model.others[place]
        codes = np.array([known.get(text, other) for text in (*texts.dictionary.to_pylist(), None)], np.int32)
        found[:, place] = codes[texts.indices.fill_null(len(codes) - 1).to_numpy()]
    return found


def read(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read a Parquet file batch by batch. Asked for all row groups at once, Arrow keeps what it has read of each."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(BATCH, row_groups=[group], columns=columns)


def write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, target: Path) -> int:
    """Write batches to a Parquet file, which is whole or not there; returns the number of rows."""
    beside, rows = target.with_name(f".{target.name}.{os.getpid()}"), 0
    # keys and probabilities hardly repeat: a dictionary of them would be made for nothing
    repeated = [name for name in (SNAPSHOT_TIME, PREDICTION, MODEL_VERSION) if name in schema.names]
    try:
        with pq.ParquetWriter(beside, schema, use_dictionary=repeated) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += len(batch)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return rows


def score_file(
    source: Path,
    target: Path,
    contract: Contract,
    model: CompiledModel,
    *,
    version: str,
    say: Callable[[int], None] = lambda _: None,
) -> int:
    """Score the customers of a Parquet file into another; returns how many there were.

    Args:
        source: as `score` takes its batches.
        target: replaced when all is written.
        contract: names the columns.
        model: the champion, compiled.
        version: its version.
        say: told after each batch how many customers it had.

    Raises:
        BatchError: the source is no Parquet file, or `score` refuses it.
    """
    try:
        file = pq.ParquetFile(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise BatchError(f"{source} cannot be read as a Parquet file: {error}.") from error
    with file:
        schema = file.schema_arrow
        require_columns(contract, schema)
        wanted = [contract.customer.name, SNAPSHOT_TIME, *contract.feature_names]
        columns = [name for name in wanted if name in schema.names]
        none = pa.RecordBatch.from_pylist([], schema=pa.schema([schema.field(name) for name in columns]))
        (empty,) = score([none], contract, model, version)

        def scored() -> Iterator[pa.RecordBatch]:
            for batch in score(read(file, columns), contract, model, version):
                say(len(batch))
                yield batch

        return write(scored(), empty.schema, target)
