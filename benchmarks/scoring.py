"""Batch scoring at size: `python -m benchmarks.scoring`.

Customers per CPU second, from one Parquet file to another, in three ways on the same file: `churn score`'s function;
scikit-learn's `predict_proba` on the same batches of it, through the code that trained the model; and reading and
writing alone. Each measurement is a process of its own. Its clock starts when libraries and model are loaded and the
kernels are compiled, and counts the CPU time of all its threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import skops.io

from benchmarks.measure import cpu_seconds, gigabytes, watch
from benchmarks.training import FAMILIES, PROJECT, labelled
from churn_platform.contract import LABEL, PREDICTION, PROBABILITY, SNAPSHOT_TIME, Contract
from churn_platform.contract_file import load
from churn_platform.ml import batch, models
from churn_platform.ml.calibration import CalibratedModel, Sigmoid
from churn_platform.ml.compiled import CompiledModel, compile_model

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS, SCIKIT_LEARN, COPYING = "compiled", "scikit-learn", "reading and writing alone"
AIMS = {"random_forest": 225_000, "gradient_boosting": 300_000, "logistic_regression": 1_500_000}
_TRAINED_ON = 50_000
_CHUNK = 1_000_000


@dataclass(frozen=True)
class Scored:
    """One run. Seconds of all threads, GB; `failed` says why there are none."""

    way: str
    family: str
    rows: int
    cpu: float = 0.0
    wall: float = 0.0
    before: float = 0.0  # peak memory before the clock started
    peak: float = 0.0
    failed: str = ""

    @property
    def rate(self) -> float:
        """Customers per CPU second."""
        return self.rows / self.cpu if self.cpu else 0.0


def main() -> None:
    """Measure, print a table, and write build/bench-scoring.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--with-1e7", action="store_true", help="1e7 customers too, without scikit-learn")
    parser.add_argument("--short", action="store_true", help="1e5 customers, once")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--families", default=",".join(FAMILIES), help="only these, in this order")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, family, rows, folder = arguments.child
        return _say(json.dumps(asdict(_score(way, family, int(rows), Path(folder)))))
    repeats = 1 if arguments.short else arguments.repeats
    families = arguments.families.split(",")
    sizes = [100_000] if arguments.short else [1_000_000, *([10_000_000] if arguments.with_1e7 else [])]
    found: list[Scored] = []
    with tempfile.TemporaryDirectory(prefix="bench-scoring-") as name:
        folder = Path(name)
        contract = _contract()
        _fit(contract, families, folder)
        for rows in sizes:
            _customers(contract, rows, folder)
            ways = [(COPYING, "-"), *((OURS, family) for family in families)]
            ways += [(SCIKIT_LEARN, family) for family in families] if rows == sizes[0] else []
            for _ in range(repeats if rows == sizes[0] else 1):  # in turns, so that none has a quiet hour to itself
                found += [_measure(way, family, rows, folder) for way, family in ways]
    target = PROJECT / "build" / "bench-scoring.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps([asdict(one) | {"rows_per_cpu_second": one.rate} for one in found], indent=2) + "\n")
    _say(_table(found))
    return _say(f"\nwritten to {target}")


def _contract() -> Contract:
    return load(PROJECT / "docs" / "examples" / "simulated.yaml")


def _fit(contract: Contract, families: list[str], folder: Path) -> None:
    """Fit a model of each family with its defaults; keep it, calibrated, for either way."""
    rows = labelled(contract, _TRAINED_ON)
    inputs, labels = models.frame(contract, rows), rows[LABEL].to_numpy()
    for family in families:
        of_family = contract.model_copy(update={"model": contract.model.model_copy(update={"family": family})})
        model = CalibratedModel(models.fit(of_family, inputs, labels), Sigmoid(1.1, -0.1))
        skops.io.dump(model, folder / f"{family}.skops")
        compile_model(of_family, model, 0.3, inputs).save(folder / f"{family}.npz")
        _say(f"  {family} fitted on {_TRAINED_ON:,} rows")


def _customers(contract: Contract, rows: int, folder: Path) -> None:
    """Write customers whom the model has not seen, all different."""
    columns = [contract.customer.name, SNAPSHOT_TIME, *contract.feature_names]
    writer: Any = None
    for number, begin in enumerate(range(0, rows, _CHUNK)):
        made = labelled(contract, min(_CHUNK, rows - begin), seed=100 + number)[columns]
        table = pa.Table.from_pandas(made, preserve_index=False)
        writer = writer or pq.ParquetWriter(folder / f"{rows}.parquet", table.schema)
        writer.write_table(table, row_group_size=_CHUNK // 8)
    writer.close()


def _score(way: str, family: str, rows: int, folder: Path) -> Scored:
    contract, source, target = _contract(), folder / f"{rows}.parquet", folder / "out.parquet"
    if way == OURS:
        model = CompiledModel.load(folder / f"{family}.npz")
        model.warm()
    elif way == SCIKIT_LEARN:
        slow = skops.io.load(folder / f"{family}.skops", trusted=models.TRUSTED_TYPES)
        slow.predict_proba(models.frame(contract, labelled(contract, 10)))
    columns = [contract.customer.name, SNAPSHOT_TIME, *contract.feature_names]
    schema = pa.schema(
        {
            contract.customer.name: pa.string(),
            SNAPSHOT_TIME: pq.read_schema(source).field(SNAPSHOT_TIME).type,
            PROBABILITY: pa.float64(),
            PREDICTION: pa.dictionary(pa.int8(), pa.string()),
        }
    )

    def others() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(source) as file:
            for part in batch.read(file, columns):
                said = np.zeros(len(part))
                if way == SCIKIT_LEARN:
                    said = slow.predict_proba(models.frame(contract, part.to_pandas()))[:, 1]
                high = pa.DictionaryArray.from_arrays((said >= 0.3).astype(np.int8), ["Low Risk", "High Risk"])
                yield pa.RecordBatch.from_arrays([part.column(0), part.column(1), pa.array(said), high], schema=schema)

    before, wall, cpu = gigabytes("self", "VmHWM"), time.perf_counter(), cpu_seconds()
    if way == OURS:
        batch.score_file(source, target, contract, model, version="1")
    else:
        batch.write(others(), schema, target)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return Scored(way, family, rows, cpu, wall, before, gigabytes("self", "VmHWM"))


def _measure(way: str, family: str, rows: int, folder: Path) -> Scored:
    command = [sys.executable, "-m", "benchmarks.scoring", "--child", way, family, str(rows), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own module
        failed = watch(process, 3600, 20)
        answer = process.stdout.read() if process.stdout is not None else b""
    if process.returncode and not failed:
        failed = f"failed with {process.returncode}"
    found = Scored(way, family, rows, failed=failed) if failed else Scored(**json.loads(answer))
    _say(f"  {rows:>10,} {way:<26} {family:<20} {failed or f'{found.rate:>12,.0f} rows per CPU second'}")
    return found


def _table(found: list[Scored]) -> str:
    """The medians: ours beside scikit-learn and the aim."""

    def rates(way: str, family: str, rows: int) -> list[float]:
        return [one.rate for one in found if (one.way, one.family, one.rows) == (way, family, rows) and not one.failed]

    def said(measured: list[float]) -> str:
        if not measured:
            return "-"
        spread = f" ({min(measured):,.0f} to {max(measured):,.0f})" if len(measured) > 1 else ""
        return f"{statistics.median(measured):,.0f}{spread}"

    lines = [
        "\n| customers | model | compiled, rows per CPU s | scikit-learn | ratio | asked for | memory it added, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows, family in dict.fromkeys((one.rows, one.family) for one in found if one.way == OURS):
        ours, theirs = rates(OURS, family, rows), rates(SCIKIT_LEARN, family, rows)
        ratio = f"{statistics.median(ours) / statistics.median(theirs):.1f}x" if ours and theirs else "-"
        added = max(1000 * (o.peak - o.before) for o in found if (o.way, o.family, o.rows) == (OURS, family, rows))
        listed = (f"{rows:,}", family, said(ours), said(theirs), ratio, f"{AIMS[family]:,}", f"{added:.0f}")
        lines.append(f"| {' | '.join(listed)} |")
    alone = [f"| {n:,} | {COPYING} | {said(rates(COPYING, '-', n))} | | | | |" for n in {one.rows: 0 for one in found}]
    return "\n".join([*lines, *alone])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
