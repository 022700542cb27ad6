"""A column's type, and how its values are written, are told from the values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from churn_platform.drafting import names
from churn_platform.drafting.survey import File, survey
from churn_platform.engine import connection
from churn_platform.sources.base import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import duckdb

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with connection() as con:
        yield con


def of(con: duckdb.DuckDBPyConnection, path: Path, text: str, encoding: str = "utf-8") -> File:
    path.write_bytes(text.encode(encoding))
    (found,) = survey(con, [str(path)])
    return found


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["1", "-2", "30"], {"type": "integer"}),
        (["00012", "00013", "00014"], {"type": "string"}),  # an id that would lose its zeros
        (["1.5", "2", "1e3"], {"type": "float", "decimal_comma": False}),
        (["17850.0", "17851.0", "3.0"], {"type": "float", "point_zero": True}),
        (['"1,50"', '"2,25"', "3"], {"type": "float", "decimal_comma": True}),
        (["true", "FALSE", "true"], {"type": "boolean"}),
        (["gold", "silver", "gold"], {"type": "string", "values": ("gold", "silver")}),
        (["12", "NA", "14", "?"], {"type": "integer", "missing": ("?", "NA"), "present": 0.5}),
        (["12", "' '", "x"], {"type": "string", "missing": ()}),
        (["a@b.com", "c@d.org", "e@f.net"], {"type": "string", "emails": True}),
        (["2024-01-31", "2024-02-01", "2024-02-02"], {"type": "date", "format": ""}),
        (["2024-01-31 10:00", "2024-02-01T11:00:00Z", "2024-02-02 01:02:03+02"], {"type": "timestamp", "format": ""}),
        (["31/01/2024 10:00", "01/02/2024 11:00", "2/2/2024 9:05"], {"format": "%d/%m/%Y %H:%M", "other_format": ""}),
        (["1/31/2024 0:05", "12/1/2024 11:00", "2/2/2024 9:05"], {"format": "%m/%d/%Y %H:%M", "other_format": ""}),
        (["01/02/2024", "03/04/2024", "05/06/2024"], {"format": "%d/%m/%Y", "other_format": "%m/%d/%Y"}),
        (["31.01.2024", "01.02.2024", "28.02.2024"], {"type": "date", "format": "%d.%m.%Y"}),
        (["19970101", "19970118", "19980630"], {"type": "date", "format": "%Y%m%d"}),
        (["100200300", "100200301", "100200302"], {"type": "integer", "format": ""}),
        (["05-Jan-2024", "28-Feb-2024", "31-Dec-2023"], {"type": "date", "format": "%d-%b-%Y"}),
        (["", "", ""], {"type": "string", "present": 0.0}),
    ],
)
def test_the_type_of_a_column_of_texts(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, values: list[str], told: dict[str, Any]
) -> None:
    rows = "".join(f"{n},{value}\n" for n, value in enumerate(values))
    field = of(con, tmp_path / "t.csv", f"n,it\n{rows}").field("IT")
    assert field is not None
    assert {name: getattr(field, name) for name in told} == told


def test_a_few_misfits_do_not_make_text_of_numbers(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    rows = "".join(f"{n},\n" for n in range(99)) + "C99,\n"
    field = of(con, tmp_path / "t.csv", f"it,\n{rows}").field("it")
    assert field is not None
    assert (field.type, field.whole) == ("integer", False)


def test_how_a_file_is_written(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    german = of(con, tmp_path / "german.csv", "Straße;Ort\nMünchner;Köln\n", "latin-1")
    assert german.written.encoding == "latin-1"
    assert [field.name for field in german.fields] == ["Straße", "Ort"]
    spaced = of(con, tmp_path / "spaced.txt", " 00001 19970101  1   11.77\n 00002 19970112  1   12.00\n")
    assert (spaced.written.delimiter, spaced.written.header, spaced.rows) == ("whitespace", False, 2)
    wide = of(con, tmp_path / "wide.csv", "a\tb\n1\t2\n", "utf-16")
    assert (wide.written.encoding, [field.name for field in wide.fields]) == ("utf-16", ["a", "b"])


def test_files_of_one_folder_and_the_same_columns_are_one_table(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    for month in (11, 12):
        (tmp_path / f"orders_2023-{month}.csv").write_text("a,b\n1,2\n")
    (tmp_path / "people.csv").write_text("a,c\n1,2\n")
    orders, people = survey(con, [str(tmp_path / "*.csv")])
    assert (orders.path, orders.rows) == (str(tmp_path / "orders_*.csv"), 2)
    assert (people.path, people.rows) == (str(tmp_path / "people.csv"), 1)
    (tmp_path / "orders_of_others.csv").write_text("x\n1\n")
    with pytest.raises(SourceError, match=r"would also match .*orders_of_others.csv.*another folder"):
        survey(con, [str(tmp_path / f"orders_2023-{month}.csv") for month in (11, 12)])


@pytest.mark.parametrize("files", [("aa", "aaa", "aaaa"), ("x1", "x2"), ("2023", "2024")])
def test_the_pattern_matches_all_of_its_files(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, files: tuple[str, ...]
) -> None:
    for name in files:
        (tmp_path / f"{name}.csv").write_text("a,b\n1,2\n")
    (found,) = survey(con, [str(tmp_path / f"{name}.csv") for name in files] + [str(tmp_path / "*.csv")])
    assert found.rows == len(files)
    assert len(list(tmp_path.glob(found.path.rpartition("/")[2]))) == len(files)


def test_a_path_that_is_no_plain_file_is_refused(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(SourceError, match="is no file"):
        survey(con, [str(tmp_path / "t.csv")])
    (tmp_path / "t[1].csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="Rename the file"):
        survey(con, [str(tmp_path / "t[1].csv")])


def test_parquet_says_its_types_itself(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "id": [17850.0, 17851.0, None],
            "at": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"], utc=True),
            "day": ["2024-01-01", "2024-01-02", "2024-01-03"],
            "left": [True, False, True],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    (found,) = survey(con, [str(tmp_path / "t.parquet")])
    assert [field.type for field in found.fields] == ["float", "timestamp", "date", "boolean"]
    assert found.fields[0].point_zero
    assert found.fields[3].values == ("false", "true")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.xlsx", "PK", "neither Parquet nor CSV"),
        ("t.csv", "a,b\n", "holds no rows"),
        ("t.csv", "", r"t\.csv"),
        ("t.parquet", "PAR1", "damaged or was only half written"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_to_be_so(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=said):
        survey(con, [str(tmp_path / name)])
    with pytest.raises(SourceError, match="there is no file"):
        survey(con, [str(tmp_path / "other.csv")])


@pytest.mark.parametrize(
    "name", ["CustomerID", "customer_id", "Customer ID", "customerid", "CUST_NO", "customer-number"]
)
def test_a_name_is_taken_apart_into_words(name: str) -> None:
    assert names.has(name, names.WHO, names.ID)
    assert not names.has(name, names.ORDER, names.ID)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("CustomerID", "CustomerID"),
        ("Customer ID", "customer_id"),
        ("2nd price", "column_2_nd_price"),
        ("Größe", "gr_e"),
        ("churned", "churned_"),  # the platform's own
        ("年", "column_"),
    ],
)
def test_a_name_is_made_one_that_a_contract_takes(name: str, column: str) -> None:
    assert names.column_name(name) == column
