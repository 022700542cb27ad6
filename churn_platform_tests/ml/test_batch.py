"""Batch scoring: the endpoint's answers, in bulk, out of memory's way, and whole or not there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_platform.contract import MODEL_VERSION, PREDICTION, PROBABILITY
from churn_platform.ml import batch
from churn_platform.ml.batch import BatchError, score, score_file
from churn_platform.ml.compiled import compile_model
from churn_platform_tests.ml.test_compiled import varied
from churn_platform_tests.ml.test_explanations import FAMILIES, fit

ROWS = 1000


@pytest.fixture(scope="module", params=FAMILIES)
def world(request):
    """Contract, compiled model and customers as an Arrow table."""
    contract, model, inputs = fit(request.param)
    customers = varied(contract, inputs, ROWS).assign(buyer=[f"c{number}" for number in range(ROWS)])
    return contract, compile_model(contract, model, 0.3, inputs), customers


@pytest.fixture
def shop():
    contract, model, inputs = fit("logistic_regression")
    customers = inputs.head(50).assign(buyer=[f"c{number}" for number in range(50)])
    return contract, compile_model(contract, model, 0.3, inputs), pa.Table.from_pandas(customers, preserve_index=False)


def scored(world, table, size=ROWS):
    contract, model, _ = world
    return pa.Table.from_batches(score(table.to_batches(size), contract, model, "7")).to_pandas()


def test_batch_and_online_give_every_customer_the_same_answer_to_the_last_bit(world):
    contract, model, customers = world
    found = scored(world, pa.Table.from_pandas(customers, preserve_index=False), 300)
    numbers = customers[contract.numeric_features].to_numpy()
    texts = [customers[name].tolist() for name in contract.categorical_features]
    online = [model.probabilities(numbers[i : i + 1], [text[i : i + 1] for text in texts])[0] for i in range(ROWS)]
    assert (found["churn_probability"] == online).all()
    assert found["buyer"].tolist() == customers["buyer"].tolist()


def test_each_customer_comes_back_with_a_prediction_and_the_version(world):
    _, _, customers = world
    found = scored(world, pa.Table.from_pandas(customers.assign(more=1), preserve_index=False))
    assert found.columns.tolist() == ["buyer", PROBABILITY, PREDICTION, MODEL_VERSION]
    high = found["churn_probability"] >= 0.3
    assert (found[PREDICTION] == np.where(high, "High Risk", "Low Risk")).all()
    assert 0 < high.sum() < ROWS
    assert set(found["model_version"]) == {"7"}


def test_numbers_and_texts_of_any_arrow_type_are_read(shop):
    _, _, table = shop
    numbers = {"purchases_30d": pa.int32(), "age": pa.float32(), "tenure_months": pa.decimal128(18, 6)}
    expected = scored(shop, table.set_column(table.schema.get_field_index("age"), "age", table["age"].cast("float32")))
    for name, kind in numbers.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].cast(kind, safe=False))
    segment = table.schema.get_field_index("segment")
    for text in (table["segment"].cast(pa.large_string()), table["segment"].combine_chunks().dictionary_encode()):
        found = scored(shop, table.set_column(segment, "segment", text))
        assert found["churn_probability"].to_numpy() == pytest.approx(expected["churn_probability"], abs=1e-6)


def test_a_batch_of_nobody_has_no_answers(shop):
    contract, model, table = shop
    nobody = pa.RecordBatch.from_pylist([], schema=table.schema)
    assert [len(batch) for batch in score([nobody], contract, model, "7")] == [0]


def test_missing_columns_are_all_named(shop):
    with pytest.raises(BatchError, match=r"lack the columns buyer, age\. .*there are: purchases_30d"):
        scored(shop, shop[2].drop_columns(["age", "buyer"]))


def test_text_where_a_number_has_to_be_is_refused_by_the_columns_name(shop):
    _, _, table = shop
    place = table.schema.get_field_index("age")
    with pytest.raises(BatchError, match="the column age holds no numbers"):
        scored(shop, table.set_column(place, "age", pa.array(["old"] * 50)))


# ------------------------------------------------------------------------------------------------------ files


def test_a_file_is_scored_into_a_file_and_progress_is_told(shop, tmp_path, monkeypatch):
    contract, model, table = shop
    monkeypatch.setattr(batch, "BATCH", 20)
    source, target, told = tmp_path / "in.parquet", tmp_path / "out.parquet", []
    pq.write_table(table, source)
    assert score_file(source, target, contract, model, version="7", say=told.append) == 50
    assert told == [20, 20, 10]
    assert pq.read_table(target).to_pandas().equals(scored(shop, table))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_a_file_of_nobody_becomes_a_file_of_nobody_with_the_same_columns(shop, tmp_path):
    contract, model, table = shop
    pq.write_table(table.slice(0, 0), tmp_path / "in.parquet")
    assert score_file(tmp_path / "in.parquet", tmp_path / "out.parquet", contract, model, version="7") == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names[0] == "buyer"


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(shop, tmp_path, monkeypatch):
    contract, model, table = shop
    monkeypatch.setattr(batch, "BATCH", 20)
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source)
    target.write_text("the old one")

    def stop(_):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        score_file(source, target, contract, model, version="7", say=stop)
    assert target.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_what_is_no_parquet_file_is_refused(shop, tmp_path):
    contract, model, _ = shop
    (tmp_path / "in.parquet").write_text("buyer,age\n")
    for name in ("in.parquet", "nowhere.parquet"):
        with pytest.raises(BatchError, match="cannot be read as a Parquet file"):
            score_file(tmp_path / name, tmp_path / "out.parquet", contract, model, version="7")
