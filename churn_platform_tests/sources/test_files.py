"""The source `files` reads what teams really have, and says what to do about what it cannot read."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from churn_platform.contract import Contract, as_utc
from churn_platform.ml import ingestion
from churn_platform.resources.storage import TableStore
from churn_platform.sources import base
from churn_platform.sources.base import SourceError
from churn_platform.sources.files import FilesSource
from churn_platform.sources.index import Index
from churn_platform_tests.worlds import PURCHASES, WIDE, all_windows, changed, engine, instant

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("home")
HEADER = "client_no,receipt,bought_at,paid,shop\n"
LINE = "c1,r1,2024-01-05 10:00,2.50,north\n"


def read(contract: Contract, folder: Path) -> pd.DataFrame:
    """The rows of all windows."""
    source = FilesSource(contract, folder)
    with engine(contract) as con:
        return pd.concat(
            [
                ingestion.typed_rows(
                    con, contract, contract.main_table, source.rows(con, contract.main_table, window), window
                ).df()
                for window in all_windows(contract)
            ],
            ignore_index=True,
        )


def watermark(contract: Contract, folder: Path) -> datetime | None:
    with engine(contract) as con:
        return FilesSource(contract, folder).watermark(con)


def refusal(contract: Contract, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read(contract, folder)
    return str(caught.value)


def of(*changes: tuple[str, str]) -> Contract:
    return changed(PURCHASES, *changes)


PATH = "path: purchases.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("given", [True, False])
def test_a_csv_is_read_whatever_its_delimiter(tmp_path: Path, delimiter: str, given: bool) -> None:
    lines = HEADER + LINE + LINE.replace("c1", "c2") + "c3,r3,2024-02-07,3,south\n"
    (tmp_path / "purchases.csv").write_text(lines.replace(",", delimiter))
    contract = of((PATH, f'{PATH}\n    delimiter: "{delimiter}"'.replace("\t", "\\t"))) if given else of()
    rows = read(contract, tmp_path)
    assert rows["client_no"].tolist() == ["c1", "c2", "c3"]
    assert rows["paid"].tolist() == [2.5, 2.5, 3.0]
    assert rows["_issues"].isna().all()


def test_columns_may_stand_apart_by_any_number_of_spaces(tmp_path: Path) -> None:
    lines = HEADER.replace(",", "  ") + "  c1 r1   2024-01-05\t2.50  north  \n\nc2    r2 2024-01-06 3 a b\n"
    (tmp_path / "purchases.csv").write_text(lines)
    rows = read(of((PATH, f"{PATH}\n    delimiter: whitespace"), ("paid: {", "paid: {nullable: true, ")), tmp_path)
    assert rows["paid"].tolist()[0] == 2.5
    assert rows["shop"].tolist()[0] == "north"
    assert rows["client_no"].isna().tolist() == [False, True], "a line with a field too many is not guessed at"


@pytest.mark.parametrize("delimiter", [",", "whitespace"])
def test_without_a_header_columns_are_counted(tmp_path: Path, delimiter: str) -> None:
    line = "c1,r1,2024-01-05,2.50,north\n"
    (tmp_path / "purchases.csv").write_text((line if delimiter == "," else line.replace(",", "  ")) * 3)
    names = ["client_no", "receipt", "bought_at", "paid", "shop"]
    moved = [(f"{name}: {{", f"{name}: {{from: column{place}, ") for place, name in enumerate(names)]
    contract = of((PATH, f'{PATH}\n    header: false\n    delimiter: "{delimiter}"'), *moved)
    rows = read(contract, tmp_path)
    assert rows["client_no"].tolist() == ["c1"] * 3
    assert rows["paid"].tolist() == [2.5] * 3


def test_the_first_quoted_field_may_stand_anywhere(tmp_path: Path) -> None:
    many = "".join(f"c{place},r{place},2024-01-05,1,north\n" for place in range(30_000))
    (tmp_path / "purchases.csv").write_text(HEADER + many + 'c1,r1,2024-01-06,1,"south, west\n""east"""\n')
    rows = read(of(), tmp_path)
    assert len(rows) == 30_001
    assert rows["shop"].tolist()[-1] == 'south, west\n"east"'


def test_files_that_are_written_in_different_ways_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text((HEADER + LINE).replace(",", ";"))
    (tmp_path / "b.csv").write_text(HEADER + LINE.replace("north", '"a, b"'))
    assert sorted(read(of((PATH, 'path: "*.csv"')), tmp_path)["shop"]) == ["a, b", "north"]


def test_how_a_file_is_written_is_found_out_anew_when_it_changes(tmp_path: Path) -> None:
    source = FilesSource(of(), tmp_path)
    for mark in (",", ";"):
        (tmp_path / "purchases.csv").write_text((HEADER + LINE).replace(",", mark))
        os.utime(tmp_path / "purchases.csv", ns=(ord(mark), ord(mark)))
        with engine(source.contract) as con:
            view = source.rows(con, "transactions", all_windows(source.contract)[0])
            assert con.sql(f"SELECT paid FROM {view}").fetchall() == [("2.50",)]


def test_quoted_fields_may_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER + LINE + 'c2,"r;2",2024-01-06,1,"The ""Corner"", shop\nsouth"\n')
    assert read(of(), tmp_path)["shop"].tolist() == ["north", 'The "Corner", shop\nsouth']


def test_latin_1_is_read_where_the_contract_says_so(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_bytes((HEADER + LINE.replace("north", "Köln")).encode("latin-1"))
    assert read(of((PATH, f"{PATH}\n    encoding: latin-1")), tmp_path)["shop"].tolist() == ["Köln"]


def test_latin_1_is_refused_with_advice_where_it_does_not_and_no_value_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_bytes(
        (HEADER + LINE.replace("north", "Köln").replace("c1", "secret")).encode("latin-1")
    )
    said = refusal(of(), tmp_path)
    assert "purchases.csv" in said
    assert "tables.transactions.encoding" in said
    assert "secret" not in said


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_bytes((HEADER + LINE).encode("utf-8-sig"))
    assert read(of(), tmp_path)["client_no"].tolist() == ["c1"]


def test_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_bytes((HEADER + LINE).encode("utf-16"))
    assert read(of((PATH, f"{PATH}\n    encoding: utf-16")), tmp_path)["client_no"].tolist() == ["c1"]


def test_a_decimal_comma_and_days_first_are_read_as_the_contract_says(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(
        (HEADER + "c1,r1,05/01/2024 10:00,2!50,north\n").replace(",", ";").replace("!", ",")
    )
    contract = of(
        (PATH, f"{PATH}\n    decimal: ','"), ("{type: timestamp}", "{type: timestamp, format: '%d/%m/%Y %H:%M'}")
    )
    rows = read(contract, tmp_path)
    assert rows["paid"].tolist() == [2.5]
    assert rows["bought_at"].tolist() == [pd.Timestamp("2024-01-05 10:00", tz="UTC")]


def test_several_files_are_read_by_a_glob_and_every_row_knows_its_file(tmp_path: Path) -> None:
    for n, month in enumerate(["2024-01", "2024-02"]):
        (tmp_path / f"p{n}.csv").write_text(HEADER + f"c{n},r,{month}-05,1,x\n" + f"d{n},r,never,1,x\n")
    rows = read(of((PATH, "path: p*.csv")), tmp_path)
    assert sorted(zip(rows["client_no"], rows["_source"], strict=True)) == [
        ("c0", "p0.csv"), ("c1", "p1.csv"), ("d0", "p0.csv"), ("d1", "p1.csv"),
    ]  # fmt: skip


def test_files_whose_columns_stand_in_another_order_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "p0.csv").write_text(HEADER + LINE)
    (tmp_path / "p1.csv").write_text("shop,paid,bought_at,receipt,client_no\nsouth,3,2024-01-06,r2,c2\n")
    assert read(of((PATH, "path: p*.csv")), tmp_path)["client_no"].tolist() == ["c1", "c2"]


def test_gzipped_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv.gz").write_bytes(gzip.compress((HEADER + LINE).encode()))
    assert read(of((PATH, "path: purchases.csv.gz")), tmp_path)["paid"].tolist() == [2.5]


def test_parquet_is_read_with_its_own_types(tmp_path: Path) -> None:
    pd.DataFrame(
        {
            "client_no": [17850.0, None],
            "receipt": [1, 2],
            "bought_at": pd.to_datetime(["2024-01-05 10:00", "2024-03-05 00:00"]),
            "paid": [2.5, 3.0],
            "shop": ["x", None],
        }
    ).to_parquet(tmp_path / "p.parquet")
    rows = read(of((PATH, "path: p.parquet")), tmp_path)
    assert rows["client_no"].tolist() == ["17850", None]
    assert rows["receipt"].tolist() == ["1", "2"]
    assert rows["bought_at"][0] == pd.Timestamp("2024-01-05 10:00", tz="UTC")


def test_a_column_called_filename_is_a_column_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER.replace("shop", "filename") + LINE)
    assert read(of(("shop: {type: string, nullable: true}", "shop: {type: string, from: filename}")), tmp_path)[
        "shop"
    ].tolist() == ["north"]


def test_other_names_and_expressions_are_mapped_by_the_contract(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(
        "InvoiceNo,Quantity,InvoiceDate,UnitPrice,Customer ID,Country\n536365,6,2024-01-05 08:26:00,2.55,17850.0,UK\n"
    )
    contract = of(
        ("client_no: {type: string}", "client_no: {type: string, from: Customer ID}"),
        ("receipt: {type: string}", "receipt: {type: string, from: invoiceno}"),
        ("bought_at: {type: timestamp}", "bought_at: {type: timestamp, from: InvoiceDate}"),
        ("paid: {type: float, min: 0}", "paid: {type: float, from: Quantity * UnitPrice}"),
        ("shop: {type: string, nullable: true}", "shop: {type: string, from: upper(Country)}"),
    )
    (row,) = read(contract, tmp_path).to_dict("records")
    assert row["paid"] == pytest.approx(15.3)
    assert (row["receipt"], row["shop"], row["_issues"]) == ("536365", "UK", None)


# ------------------------------------------------------------------------------------------------ what cannot be read


def test_a_missing_file_is_named_with_the_key_that_names_it(tmp_path: Path) -> None:
    said = refusal(of(), tmp_path)
    assert str(tmp_path / "purchases.csv") in said
    assert "tables.transactions.path" in said


def test_a_file_of_an_unknown_kind_is_not_taken_for_a_csv(tmp_path: Path) -> None:
    (tmp_path / "p.xlsx").write_bytes(b"PK")
    assert ".parquet" in refusal(of((PATH, "path: p.xlsx")), tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").touch()
    assert "empty file (0 bytes)" in refusal(of(), tmp_path)


@pytest.mark.parametrize("text", [HEADER, HEADER.strip()])
def test_a_file_with_nothing_but_a_header_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "purchases.csv").write_text(text)
    assert "holds no rows" in refusal(of(), tmp_path)


def test_a_truncated_parquet_file_is_refused_with_advice(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pd.DataFrame({"client_no": ["c"] * 1000}).to_parquet(whole)
    (tmp_path / "p.parquet").write_bytes(whole.read_bytes()[:-100])
    said = refusal(of((PATH, "path: p.parquet")), tmp_path)
    assert "half written" in said
    assert "p.parquet" in said


def test_parquet_and_csv_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(HEADER + LINE)
    pd.DataFrame({"client_no": ["c"]}).to_parquet(tmp_path / "p.parquet")
    assert "one kind" in refusal(of((PATH, "path: 'p.*'")), tmp_path)


def test_a_missing_column_lists_what_is_there_and_suggests(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER.replace("client_no", "ClientNumber") + LINE)
    said = refusal(of(), tmp_path)
    assert "It has the columns: ClientNumber, receipt" in said
    assert "Did you mean 'ClientNumber'" in said


def test_a_broken_line_deep_in_a_file_is_a_source_error_that_does_not_quote_it(tmp_path: Path) -> None:
    lines = [f"c{n},r{n},2024-01-05,1,x\n" for n in range(60_000)]
    (tmp_path / "purchases.csv").write_text(HEADER + "".join(lines) + "private@example.com,r,2024-01-05,1,x,y,z,w\n")
    for act in (read, watermark):
        with pytest.raises(SourceError) as caught:
            act(of(), tmp_path)
        assert "private@example.com" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ the watermark


def test_the_newest_row_says_how_far_the_data_goes(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(
        HEADER + LINE + "c,r,2024-03-31 20:00,1,x\nc,r,2999-01-01,1,x\nc,r,rubbish,1,x\n"
    )
    assert watermark(of(), tmp_path) == instant("2024-04-01T20:00")


def test_a_last_day_of_25_hours_closes_its_month(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER + LINE.replace("2024-01-05 10:00", "2021-10-31"))
    contract = of(("start: 2024-01-01", "start: 2021-01-01"), ("UTC", "Europe/Berlin"))
    assert watermark(contract, tmp_path) == as_utc(datetime(2021, 11, 1), contract.zone)  # noqa: DTZ001


def test_the_watermark_is_never_in_the_future(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    (tmp_path / "purchases.csv").write_text(
        HEADER + LINE.replace("2024-01-05 10:00", (now - timedelta(hours=1)).isoformat())
    )
    found = watermark(of((", end: 2024-07-01", "")), tmp_path)
    assert found is not None
    assert now <= found <= datetime.now(UTC)
    future = of(("kind: files", "kind: files, complete_until: 2999-01-01"), (", end: 2024-07-01", ""))
    assert (watermark(future, tmp_path) or now) <= datetime.now(UTC)


def test_times_that_nobody_can_read_are_no_empty_source(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER + LINE.replace("2024-01-05 10:00", "31/01/2024"))
    with pytest.raises(SourceError, match=r"bought_at: none of its 1 times can be read, such as '31/01/2024'"):
        watermark(of(), tmp_path)


def test_complete_until_is_taken_at_its_word(tmp_path: Path) -> None:
    contract = of(("kind: files", "kind: files, complete_until: 2024-02-01"), ("UTC", "Europe/Berlin"))
    assert watermark(contract, tmp_path) == instant("2024-01-31T23:00")


@pytest.mark.parametrize(
    ("observed", "wait", "expected"),
    [
        ("2024-02-01", 0, "2024-02-01"),
        ("2024-01-15", 0, "2024-02-01"),
        ("2024-02-01", 30, "2024-04-01"),
        ("2024-02-01", 29, "2024-03-01"),
    ],
)
def test_a_table_without_dates_is_complete_up_to_the_window_in_which_its_labels_mature(
    tmp_path: Path, observed: str, wait: int, expected: str
) -> None:
    contract = changed(
        WIDE, ("time: as_of", f"observed_at: {observed}"), ("matures_after_days: 30", f"matures_after_days: {wait}")
    )
    assert watermark(contract, tmp_path) == instant(expected)


# ------------------------------------------------------------------------------------------------------------------ S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket of moto's S3 server, on a port of its own."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed: s3:// paths are not tested")
    pytest.importorskip("s3fs", reason="s3fs is not installed: s3:// paths are not tested")
    import boto3

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    patch = pytest.MonkeyPatch()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        patch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shop")
    yield client
    client.close()
    patch.undo()
    running.stop()
    assert "AWS_ENDPOINT_URL" not in os.environ or os.environ["AWS_ENDPOINT_URL"] != variables["AWS_ENDPOINT_URL"]


def test_files_in_s3_are_read_and_new_ones_are_seen(bucket: Any, tmp_path: Path) -> None:
    contract = of((PATH, "path: s3://shop/exports/*.csv"))
    bucket.put_object(Bucket="shop", Key="exports/a.csv", Body=(HEADER + LINE).encode())
    assert read(contract, tmp_path)["_source"].tolist() == ["a.csv"]
    bucket.put_object(Bucket="shop", Key="exports/b.csv", Body=(HEADER + "c9,r,2024-02-05,1,x\n").encode())
    assert sorted(read(contract, tmp_path)["client_no"]) == ["c1", "c9"]
    assert watermark(contract, tmp_path) == instant("2024-02-06")


def test_an_object_in_s3_that_is_replaced_is_scanned_again_and_only_that_one(bucket: Any, tmp_path: Path) -> None:
    contract = of((PATH, "path: s3://shop/late/*.csv"))
    scans: list[list[str]] = []

    class Watched(FilesSource):
        def _scan(self, con: Any, name: str, files: dict[str, str], *others: Any) -> Any:
            scans.append(sorted(file.rpartition("/")[2] for file in files))
            return super()._scan(con, name, files, *others)

    def digests() -> dict[str, str]:
        with engine(contract) as con:
            return Watched(contract, tmp_path, Index(TableStore(str(tmp_path / "t")))).digests(con, "transactions")

    bucket.put_object(Bucket="shop", Key="late/a.csv", Body=(HEADER + LINE).encode())
    bucket.put_object(Bucket="shop", Key="late/b.csv", Body=(HEADER + "c9,r,2024-02-05,1,x\n").encode())
    before = digests()
    assert digests() == before
    bucket.put_object(Bucket="shop", Key="late/b.csv", Body=(HEADER + "c9,r,2024-02-05,2,x\n").encode())
    after = digests()
    assert [key for key in before if base.changed(before[key], after[key])] == ["2024-02-01"]
    assert scans == [["a.csv", "b.csv"], ["b.csv"]]


def test_parquet_in_s3_is_read(bucket: Any, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "client_no": ["c"],
            "receipt": ["r"],
            "bought_at": pd.to_datetime(["2024-01-05"]),
            "paid": [1.0],
            "shop": ["x"],
        }
    )
    bucket.put_object(Bucket="shop", Key="p/one.parquet", Body=frame.to_parquet())
    assert read(of((PATH, "path: s3://shop/p/one.parquet")), tmp_path)["client_no"].tolist() == ["c"]


def test_what_is_wrong_in_s3_is_a_source_error(bucket: Any, tmp_path: Path) -> None:
    assert "s3://shop/none/*.csv" in refusal(of((PATH, "path: s3://shop/none/*.csv")), tmp_path)
    assert "s3://nowhere/" in refusal(of((PATH, "path: s3://nowhere/a.csv")), tmp_path)
    bucket.put_object(Bucket="shop", Key="empty/a.csv", Body=b"")
    assert "0 bytes" in refusal(of((PATH, "path: s3://shop/empty/a.csv")), tmp_path)


# ------------------------------------------------------------------------------------ files that were damaged or copied


def test_a_line_that_does_not_fit_is_named_and_no_other_way_to_read_the_file_is_tried(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER + LINE * 3 + "c9,r9,2024-01\n" + LINE)
    said = refusal(of(), tmp_path)
    assert "purchases.csv cannot be read (line 5): Expected Number of Columns: 5 Found: 3" in said
    assert "c9" not in said


def test_apostrophes_in_texts_are_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "purchases.csv").write_text(HEADER + LINE.replace("north", "'") + LINE.replace("north", "'"))
    assert read(of(), tmp_path)["shop"].tolist() == ["'", "'"]


def test_a_column_that_one_file_lacks_is_not_read_as_gaps(tmp_path: Path) -> None:
    (tmp_path / "p0.csv").write_text(HEADER + LINE)
    (tmp_path / "p1.csv").write_text("client_no,receipt,bought_at,paid\nc2,r2,2024-01-06,3\n")
    assert "p1.csv lacks the column 'shop'" in refusal(of((PATH, "path: p*.csv")), tmp_path)
    said = of((PATH, "path: p*.csv"), ("shop: {type: string,", "shop: {type: string, from: 'coalesce(shop, NULL)',"))
    assert read(said, tmp_path)["shop"].tolist() == ["north", None]


def test_a_damaged_gzip_is_refused_although_it_can_be_unpacked(tmp_path: Path) -> None:
    data = bytearray(gzip.compress((HEADER + LINE).encode()))
    data[-8] ^= 1  # of the checksum
    (tmp_path / "purchases.csv.gz").write_bytes(data)
    assert "does not fit its own checksum" in refusal(of((PATH, "path: purchases.csv.gz")), tmp_path)
