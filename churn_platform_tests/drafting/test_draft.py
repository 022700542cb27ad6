"""A draft names the right columns, says what it is unsure of, and fits the data that it was made from."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from churn_platform.contract_file import load
from churn_platform.drafting import Choices, draft_file
from churn_platform.engine import connection
from churn_platform.ml import ingestion
from churn_platform.settings import PROJECT, Settings
from churn_platform.source_check import look
from churn_platform.sources.base import SourceError
from churn_platform.sources.files import FilesSource
from churn_platform.windows import windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from churn_platform.contract import Contract

pytestmark = pytest.mark.usefixtures("home")


def purchases(days: int = 400, customers: int = 300) -> pd.DataFrame:
    """Who bought when, and for how much: some stop."""
    random = np.random.default_rng(1)
    rows = []
    for customer in range(customers):
        day, stops = random.uniform(0, days / 2), random.exponential(days)
        while day < min(days, stops):
            rows.append((customer, day, round(random.gamma(2, 20), 2)))
            day += random.exponential(12)
    frame = pd.DataFrame(rows, columns=["who", "day", "paid"]).sort_values("day", ignore_index=True)
    frame["at"] = pd.Timestamp("2023-01-01") + pd.to_timedelta(frame["day"], unit="D").dt.floor("min")
    return frame


def labelled(customers: int = 2000) -> pd.DataFrame:
    """A wide table of which age and plan tell who leaves."""
    random = np.random.default_rng(2)
    age, plan = random.integers(18, 80, customers), random.choice(["basic", "pro"], customers)
    leaves = random.random(customers) < 1 / (1 + np.exp(3 - age / 20 + (plan == "pro")))
    return pd.DataFrame({"age": age, "plan": plan, "leaves": leaves})


def drafted(folder: Path, choices: Choices | None = None) -> Contract:
    """The contract that is drafted for the files of a folder, which has to fit them."""
    out = folder / "contract.yaml"
    draft_file(sorted(str(path) for path in folder.iterdir() if path.suffix != ".yaml"), out, "shop", choices)
    contract = load(out)
    said = look(contract, Settings(home=folder.parent / "home", contract=out))
    assert "The source fits the contract." in said, said
    return contract


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_lines_of_orders_with_quantity_and_price(folder: Path) -> None:
    """As shops export them: no sum, returns, ids as decimals, a fifth of the lines without a customer."""
    rows = purchases().pipe(lambda frame: frame.loc[frame.index.repeat(2)]).reset_index()
    random = np.random.default_rng(3)
    pd.DataFrame(
        {
            "InvoiceNo": np.where(random.random(len(rows)) < 0.02, "C", "") + rows["index"].astype(str),
            "Description": "A mug, red",
            "Quantity": random.integers(-1, 9, len(rows)),
            "InvoiceDate": rows["at"].dt.strftime("%-m/%-d/%Y %-H:%M"),
            "UnitPrice": rows["paid"],
            "CustomerID": (rows["who"] + 17000.0).where(random.random(len(rows)) > 0.2),
            "Country": random.choice(["France", "Spain"], len(rows)),
        }
    ).to_csv(folder / "retail.csv", index=False)
    contract = drafted(folder)
    table = contract.tables.transactions
    assert table is not None
    assert (table.customer, table.time, table.amount, table.order) == (
        "CustomerID",
        "InvoiceDate",
        "amount",
        "InvoiceNo",
    )
    assert table.columns["amount"].from_ == '"Quantity" * "UnitPrice"'
    assert table.columns["InvoiceDate"].format == "%m/%d/%Y %H:%M"
    assert table.columns["CustomerID"].type == "string"
    assert table.max_quarantined == pytest.approx(0.35, abs=0.03)
    assert contract.time.start.isoformat() == "2023-01-01"
    assert contract.feature_definitions["different_Country_60d"].column == "Country"
    assert "20% of the rows name no customer" in (folder / "contract.yaml").read_text()


def test_a_file_without_names_whose_customers_are_told_by_their_coming_back(folder: Path) -> None:
    rows = purchases()
    lines = [
        f" {who:05d} {at:%Y%m%d} {1 + who % 4} {paid:7.2f}"
        for who, at, paid in rows[["who", "at", "paid"]].itertuples(index=False)
    ]
    (folder / "master.txt").write_text("\n".join(lines))
    table = drafted(folder).tables.transactions
    assert table is not None
    assert (table.customer, table.time, table.amount, table.header) == ("column0", "column1", "column3", False)


def test_months_of_orders_in_german_and_what_is_known_of_customers(folder: Path) -> None:
    rows = purchases()
    orders = pd.DataFrame(
        {
            "Bestellnummer": range(len(rows)),
            "Kunden-Nr": "K" + rows["who"].astype(str),
            "Datum": rows["at"].dt.strftime("%d.%m.%Y"),
            "Betrag": rows["paid"].map("{:.2f}".format).str.replace(".", ","),
        }
    )
    for month, part in orders.groupby(rows["at"].dt.strftime("%Y-%m")):
        part.to_csv(folder / f"bestellungen_{month}.csv", sep=";", index=False)
    pd.DataFrame(
        {
            "Kunden-Nr": [f"K{n}" for n in range(300)],
            "Ort": ["Köln", "Ulm"] * 150,
            "email": [f"k{n}@example.com" for n in range(300)],
            "Nachname": [f"Meier {n}" for n in range(300)],
        }
    ).to_csv(folder / "kunden.csv", sep=";", index=False, encoding="latin-1")
    contract = drafted(folder)
    table, people = contract.tables.transactions, contract.tables.customers
    assert table is not None
    assert people is not None
    assert (table.path, table.customer, table.amount, table.decimal) == (
        "bestellungen_*.csv",
        "kunden_nr",
        "Betrag",
        ",",
    )
    assert (people.path, people.encoding, list(people.columns)) == ("kunden.csv", "latin-1", ["kunden_nr", "Ort"])
    assert contract.feature_definitions["Ort"].table == "customers"
    text = (folder / "contract.yaml").read_text()
    assert "# not read: email (personal data)" in text
    assert "# not read: Nachname (personal data)" in text


def test_events_without_money_count_as_one_each(folder: Path) -> None:
    rows = purchases(days=120)
    frame = pd.DataFrame(
        {"user_id": rows["who"], "event_time": rows["at"].dt.tz_localize("UTC"), "event_type": "login"}
    )
    frame.to_parquet(folder / "events.parquet")
    contract = drafted(folder)
    assert contract.customer.type == "integer"
    assert contract.time.cadence == "weekly"  # four months are too short for months
    assert not [name for name in contract.feature_definitions if "amount" in name]


def test_ids_that_pandas_made_decimals_of_are_read_as_they_were(folder: Path) -> None:
    rows = purchases()
    ids = (rows["who"] + 0.0).where(rows.index != 9)
    frame = pd.DataFrame({"CustomerID": ids, "day": rows["at"], "paid": rows["paid"]})
    frame.to_parquet(folder / "t.parquet")
    table = drafted(folder).tables.transactions
    assert table is not None
    assert table.columns["CustomerID"].from_ is None


def test_an_order_that_was_cancelled_is_no_customer_who_left(folder: Path) -> None:
    rows = purchases()
    frame = pd.DataFrame({"customer_id": rows["who"], "order_date": rows["at"], "total": rows["paid"]})
    frame.assign(cancelled=rows["who"] % 2 == 0).to_csv(folder / "t.csv", index=False)
    contract = drafted(folder)
    assert contract.snapshots is None


def test_an_address_as_the_customers_id_is_stored_as_a_hash_only(folder: Path) -> None:
    rows = purchases()
    frame = pd.DataFrame(
        {"e_mail": rows["who"].map("u{}@shop.com".format), "day": rows["at"].dt.date, "paid": rows["paid"]}
    )
    frame.to_csv(folder / "t.csv", index=False)
    contract = drafted(folder)
    assert contract.tables.transactions is not None
    assert contract.tables.transactions.columns["e_mail"].pii == "hash"


def telco() -> pd.DataFrame:
    frame = labelled()
    charges = [" " if n % 200 == 0 else f"{n}.5" for n in range(len(frame))]
    return pd.DataFrame(
        {
            "customerID": [f"{n:04d}-XK" for n in range(len(frame))],
            "Age": frame["age"],
            "Plan": frame["plan"],
            "TotalCharges": charges,
            "Churn": np.where(frame["leaves"], "Yes", "No"),
        }
    )


def bank() -> pd.DataFrame:
    frame = labelled()
    return pd.DataFrame(
        {
            "RowNumber": range(len(frame)),
            "CustomerId": np.random.default_rng(4).permutation(len(frame)) + 15_600_000,
            "Surname": "Hill",
            "Age": frame["age"],
            "Geography": frame["plan"],
            "Exited": frame["leaves"].astype(int),
        }
    )


def cards() -> pd.DataFrame:
    frame = labelled()
    return pd.DataFrame(
        {
            "CLIENTNUM": range(len(frame)),
            "Attrition_Flag": np.where(frame["leaves"], "Attrited Customer", "Existing Customer"),
            "Customer_Age": frame["age"],
            "Income": np.where(frame["age"] % 9 == 0, "NA", frame["age"].astype(str)),
        }
    )


@pytest.mark.parametrize(
    ("make", "customer", "label", "features"),
    [
        (telco, "customerID", ("Churn", "Yes", "No"), {"Age", "Plan", "TotalCharges"}),
        (bank, "CustomerId", ("Exited", 1, 0), {"Age", "Geography"}),
        (cards, "CLIENTNUM", ("Attrition_Flag", "Attrited Customer", "Existing Customer"), {"Customer_Age", "Income"}),
    ],
)
def test_a_wide_table(
    folder: Path, make: Callable[[], pd.DataFrame], customer: str, label: tuple[object, ...], features: set[str]
) -> None:
    make().to_csv(folder / "wide.csv", index=False)
    contract = drafted(folder)
    table = contract.snapshots
    assert table is not None
    assert table.customer == customer
    assert (table.label.column, table.label.positive, table.label.negative) == label
    assert set(contract.feature_names) == features
    assert table.observed_at is not None
    assert "when was this true?" in (folder / "contract.yaml").read_text()


def test_a_wide_table_of_several_months_has_a_time(folder: Path) -> None:
    frames = [
        labelled(300).assign(account_id=range(300), month=f"2023-{month:02}-01", signup="2020-05-01")
        for month in range(1, 10)
    ]
    pd.concat(frames).rename(columns={"leaves": "churned"}).to_csv(folder / "panel.csv", index=False)
    contract = drafted(folder)
    assert contract.snapshots is not None
    assert (contract.snapshots.time, contract.snapshots.label.column) == ("month", "churned_")
    assert contract.time.cadence == "monthly"
    assert "signup" not in contract.feature_names


def test_what_the_team_says_is_not_guessed(folder: Path) -> None:
    frame = labelled().assign(k=range(2000), value=1.5, gone=lambda rows: rows["leaves"].map({True: "x", False: "o"}))
    frame = frame.drop(columns="leaves")
    frame.to_csv(folder / "t.csv", index=False)
    contract = drafted(folder, Choices(customer="k", label="GONE"))
    assert contract.snapshots is not None
    assert (contract.snapshots.customer, contract.snapshots.label.column) == ("k", "gone")


@pytest.mark.parametrize(
    ("columns", "choices", "said"),
    [
        (
            ["a", "b"],
            Choices(),
            r"no column looks as if it named the customer. Say which: --customer COLUMN. It has: a, b",
        ),
        (["customer", "b"], Choices(), r"none like a label .*Say which: --time COLUMN or --label COLUMN"),
        (
            ["customer", "b"],
            Choices(customer="client"),
            r"--customer client: .* has no such column. It has: customer, b",
        ),
        (["customer", "b"], Choices(label="b"), r"--label b: a label has two values; this column has 4"),
        (["customer", "b"], Choices(time="b"), r"--time b: its values are no dates"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(folder: Path, columns: list[str], choices: Choices, said: str) -> None:
    pd.DataFrame({name: range(4) for name in columns}).to_csv(folder / "t.csv", index=False)
    with pytest.raises(SourceError, match=said):
        draft_file([str(folder / "t.csv")], folder / "contract.yaml", None, choices)
    assert not (folder / "contract.yaml").exists()


def test_a_contract_that_is_there_is_not_overwritten(folder: Path) -> None:
    telco().to_csv(folder / "t.csv", index=False)
    (folder / "contract.yaml").write_text("mine")
    with pytest.raises(SourceError, match="there already"):
        draft_file([str(folder / "t.csv")], folder / "contract.yaml")
    assert (folder / "contract.yaml").read_text() == "mine"
    with pytest.raises(SourceError, match="no folder"):
        draft_file([str(folder / "t.csv")], folder / "nowhere" / "contract.yaml")


def test_a_table_that_belongs_to_nothing_is_said_to(folder: Path) -> None:
    telco().to_csv(folder / "t.csv", index=False)
    purchases().to_csv(folder / "visits.csv", index=False)
    both = [str(folder / "t.csv"), str(folder / "visits.csv")]
    with pytest.raises(SourceError, match=r"visits.csv: it has no column customerID"):
        draft_file(both, folder / "contract.yaml")
    purchases().assign(customerID=lambda rows: rows["who"]).to_csv(folder / "visits.csv", index=False)
    with pytest.raises(SourceError, match=r"visits.csv: customers stand here several times \(customerID\)"):
        draft_file(both, folder / "contract.yaml")


def test_the_horizon_is_one_in_which_not_most_customers_leave(folder: Path) -> None:
    """Who buys every other month has not left after four weeks."""
    rows = purchases(days=900)
    seldom = rows[rows.groupby("who").cumcount() % 6 == 0]
    seldom.rename(columns={"who": "customer_id"})[["customer_id", "at", "paid"]].to_csv(folder / "t.csv", index=False)
    contract = drafted(folder)
    assert contract.label is not None
    assert contract.label.horizon_days > 28
    assert contract.label.active_within_days >= 2 * contract.label.horizon_days


@pytest.mark.parametrize("missing", ["NA", "NULL"])
@pytest.mark.parametrize("form", ["{}.0", "C{}"])
def test_a_word_for_a_missing_customer_is_no_customer(folder: Path, missing: str, form: str) -> None:
    rows = purchases()
    ids = rows["who"].map(form.format).where(rows.index % 5 > 0, missing)
    frame = pd.DataFrame({"customer_id": ids, "at": rows["at"], "paid": rows["paid"]})
    frame.to_csv(folder / "t.csv", index=False)
    contract = drafted(folder)
    with connection() as con:
        source = FilesSource(contract, folder)
        last = list(windows(contract, rows["at"].max().to_pydatetime().replace(tzinfo=UTC)))[-1]
        typed = ingestion.typed_rows(con, contract, "transactions", source.rows(con, "transactions", last), last).df()
    assert 0.1 < typed["customer_id"].isna().mean() < 0.3
    assert not typed["customer_id"].dropna().isin([missing, "17.0"]).any()
    assert "20% of the rows name no customer" in (folder / "contract.yaml").read_text()


@pytest.mark.parametrize("name", ["phone", "msisdn", "customer_name"])
def test_a_customer_who_is_named_by_something_personal_is_hashed(folder: Path, name: str) -> None:
    rows = purchases()
    ids = rows["who"] + 4_917_600_000_000
    pd.DataFrame({name: ids, "at": rows["at"], "paid": rows["paid"]}).to_csv(folder / "t.csv", index=False)
    table = drafted(folder).tables.transactions
    assert table is not None
    assert table.columns[name].pii == "hash"


def test_a_file_without_a_header_gives_away_nobody(folder: Path) -> None:
    rows = purchases()
    pd.DataFrame(
        {
            "id": rows["who"].map("C{:04d}".format),
            "name": rows["who"].map("Anna Meier {}".format),
            "mail": rows["who"].map("c{}@x.com".format),
            "at": rows["at"].dt.date,
            "paid": rows["paid"],
        }
    ).to_csv(folder / "t.csv", index=False, header=False)
    contract = drafted(folder)
    assert contract.tables.transactions is not None
    assert not contract.tables.transactions.header
    text = (folder / "contract.yaml").read_text()
    assert "Anna" not in text
    assert "@x" not in text


def test_what_speaks_of_churn_is_no_feature(folder: Path) -> None:
    frame = telco().assign(
        churn_score=lambda rows: rows["Churn"].map({"Yes": 90, "No": 10}) + range(len(rows)),
        ChurnReason=lambda rows: rows["Churn"].map({"Yes": "Price", "No": None}),
    )
    frame.to_csv(folder / "t.csv", index=False)
    assert set(drafted(folder).feature_names) == {"Age", "Plan", "TotalCharges"}
    assert "# not read: churn_score (its name speaks of churn" in (folder / "contract.yaml").read_text()


@pytest.mark.parametrize(
    ("left", "stayed"),
    [
        (1, -1),
        (2, 1),
        ("has churned", "did not churn"),
        ("Churned", "Stayed"),
        ("True", "False"),
        ("lost", "active"),
        ("Leave", "Stay"),
    ],
)
def test_which_value_means_that_somebody_left(folder: Path, left: object, stayed: object) -> None:
    frame = labelled()
    rows = pd.DataFrame({"customer_id": range(len(frame)), "age": frame["age"]})
    rows.assign(churn=frame["leaves"].map({True: left, False: stayed})).to_csv(folder / "t.csv", index=False)
    table = drafted(folder).snapshots
    assert table is not None
    assert str(table.label.positive) == str(left)


@pytest.mark.parametrize("money", ["{:,.2f}", "${:,.2f}", "{:,.0f}"])
def test_marks_of_thousands_and_currencies_are_taken_out_of_money(folder: Path, money: str) -> None:
    rows = purchases().assign(paid=lambda rows: (rows["paid"] * 100).round())
    frame = pd.DataFrame({"customer_id": rows["who"], "at": rows["at"], "amount": rows["paid"].map(money.format)})
    frame.to_csv(folder / "t.csv", index=False)
    contract = drafted(folder)
    with connection() as con:
        window = next(windows(contract, rows["at"].max().to_pydatetime().replace(tzinfo=UTC)))
        view = FilesSource(contract, folder).rows(con, "transactions", window)
        typed = ingestion.typed_rows(con, contract, "transactions", view, window).df()
    wanted = rows.loc[rows["at"] < pd.Timestamp(window.end.replace(tzinfo=None)), "paid"]
    assert typed["amount"].sum() == pytest.approx(wanted.sum())


def test_two_dates_and_a_customer_told_by_values_are_said_to_be_doubtful(folder: Path) -> None:
    rows = purchases()
    pd.DataFrame(
        {
            "Nehmer": rows["who"].map("N{}".format),
            "Artikel": (rows["who"] * 7 + rows.index) % 901,
            "Datum": rows["at"].dt.strftime("%d.%m.%Y"),
            "Versand": rows["at"].dt.strftime("%d.%m.%Y"),
            "Betrag": rows["paid"],
        }
    ).to_csv(folder / "t.csv", index=False)
    table = drafted(folder).tables.transactions
    assert table is not None
    assert table.customer == "Nehmer"
    text = (folder / "contract.yaml").read_text()
    assert "customer: Nehmer # by its values, which come back; or Artikel" in text
    assert "time: Datum # or Versand?" in text


@pytest.mark.parametrize(
    ("name", "left", "stayed"), [("is_active", 0, 1), ("Retained", "N", "Y"), ("still_active", False, True)]
)
def test_of_a_name_that_speaks_of_staying_yes_is_who_stayed(
    folder: Path, name: str, left: object, stayed: object
) -> None:
    frame = labelled()
    rows = pd.DataFrame({"customer_id": range(len(frame)), "age": frame["age"]})
    rows[name] = frame["leaves"].map({True: left, False: stayed})
    rows.to_csv(folder / "t.csv", index=False)
    table = drafted(folder, Choices(label=name)).snapshots
    assert table is not None
    assert str(table.label.positive) == str(left)


def test_a_panel_of_months_has_them_as_its_time(folder: Path) -> None:
    rows = labelled(300).rename(columns={"leaves": "churned"}).assign(MemberNo=range(300))
    pd.concat([rows.assign(month=f"2023-{month:02}") for month in range(1, 10)]).to_csv(folder / "t.csv", index=False)
    table = drafted(folder).snapshots
    assert table is not None
    assert (table.time, table.columns["month"].format) == ("month", "%Y-%m")


@pytest.mark.parametrize(
    ("unit", "expression"),
    [(1, 'to_timestamp(TRY_CAST("ts" AS DOUBLE))'), (1000, 'to_timestamp(TRY_CAST("ts" AS DOUBLE) / 1000)')],
    ids=["seconds", "milliseconds"],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_seconds_since_1970_are_a_time(folder: Path, unit: int, expression: str, ending: str) -> None:
    rows = purchases()
    ts = (rows["at"] - pd.Timestamp(0)) // pd.Timedelta(seconds=1) * unit
    frame = pd.DataFrame({"uid": rows["who"], "ts": ts, "paid": rows["paid"]})
    if ending == "csv":
        frame.to_csv(folder / "t.csv", index=False)
    else:
        frame.to_parquet(folder / "t.parquet")
    contract = drafted(folder)
    assert contract.tables.transactions is not None
    assert contract.tables.transactions.columns["ts"].from_ == expression
    assert contract.time.start.isoformat() == "2023-01-01"


def test_years_of_two_digits_and_times_with_gaps(folder: Path) -> None:
    rows = purchases()
    day = rows["at"].dt.strftime("%d.%m.%y").where(rows.index % 1500 != 7)
    pd.DataFrame({"user": rows["who"], "date": day, "paid": rows["paid"]}).to_csv(folder / "t.csv", index=False)
    contract = drafted(folder)
    assert contract.tables.transactions is not None
    assert contract.tables.transactions.columns["date"].format == "%d.%m.%y"
    assert "of the rows have none" in (folder / "contract.yaml").read_text()
    assert contract.time.start.isoformat() == "2023-01-01"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_ids_that_are_wider_than_a_number_are_texts(folder: Path, ending: str) -> None:
    rows = purchases()
    ids = rows["who"].astype("uint64") + np.uint64(2**63)
    frame = pd.DataFrame({"customer_id": ids, "at": rows["at"], "paid": rows["paid"]})
    if ending == "csv":
        frame.to_csv(folder / "t.csv", index=False)
    else:
        frame.to_parquet(folder / "t.parquet")
    assert drafted(folder).customer.type == "string"


def test_an_order_that_is_taken_for_a_customer_is_noticed(folder: Path) -> None:
    rows = purchases()
    frame = pd.DataFrame({"customer_id": range(len(rows)), "at": rows["at"], "paid": rows["paid"], "note": "x"})
    frame.to_csv(folder / "t.csv", index=False)
    drafted(folder)
    text = (folder / "contract.yaml").read_text()
    assert "hardly anybody comes back. Is customer_id the customer, and not the order?" in text
    assert "# not read: note (no part for it is known)" in text


def test_what_is_no_money_is_not_taken_for_it(folder: Path) -> None:
    rows = purchases()
    frame = pd.DataFrame({"guest_id": rows["who"], "children": 1.0, "total_items": 3, "shipping_cost": 4.9})
    frame.assign(adr=rows["paid"], day=rows["at"]).to_csv(folder / "t.csv", index=False)
    table = drafted(folder).tables.transactions
    assert table is not None
    assert table.amount == "adr"


def test_a_table_without_ids_is_not_given_any(folder: Path) -> None:
    frame = labelled().rename(columns={"leaves": "churn"}).assign(account=lambda rows: rows["age"])
    frame.to_csv(folder / "t.csv", index=False)
    with pytest.raises(SourceError, match=r"customers stand here several times \(account\), but no column says"):
        draft_file([str(folder / "t.csv")], folder / "contract.yaml")


def test_a_label_of_three_values_is_shown(folder: Path) -> None:
    frame = labelled(60).drop(columns="leaves").assign(id=range(60), Status=["Stayed", "Churned", "Joined"] * 20)
    frame.to_csv(folder / "t.csv", index=False)
    with pytest.raises(SourceError, match="this column has 3: Churned, Joined, Stayed"):
        draft_file([str(folder / "t.csv")], folder / "contract.yaml", None, Choices(label="Status"))


def test_odd_names_stay_names(folder: Path) -> None:
    frame = telco().rename(columns={"Age": "on", "Plan": 'a "b" # c'}).assign(null=1.5, **{"e\nmail: [": "x"})
    frame["null"] += frame["on"]
    frame.to_csv(folder / "t # 1.csv", index=False)
    contract = drafted(folder)
    assert {"on", "null"} < set(contract.feature_names)


def test_customers_whose_flag_is_no_label_stand_beside_their_orders(folder: Path) -> None:
    rows = purchases()
    frame = pd.DataFrame({"customer_id": rows["who"] + 0.0, "at": rows["at"], "paid": rows["paid"]})
    frame.to_csv(folder / "orders.csv", index=False)
    people = pd.DataFrame(
        {"customer_id": range(300), "unsubscribed": [True, False, False] * 100, "recency_days": range(300)}
    )
    people.to_csv(folder / "people.csv", index=False)
    contract = drafted(folder)
    assert set(contract.tables.items()) == {"transactions", "customers"}
    assert contract.feature_definitions["recency_days"].table == "transactions"
    assert contract.feature_definitions["recency_days_"].table == "customers"


def test_contacts_whose_time_has_gaps_stand_beside_the_purchases(folder: Path) -> None:
    rows = purchases()
    rows.rename(columns={"who": "customer_id"})[["customer_id", "at", "paid"]].to_csv(
        folder / "orders.csv", index=False
    )
    sent = rows["at"].where(rows.index % 1500 != 7)
    frame = pd.DataFrame({"customer_id": rows["who"], "sent_at": sent, "channel": "mail"})
    frame.to_csv(folder / "campaigns.csv", index=False)
    contract = drafted(folder)
    assert contract.tables.contacts is not None
    assert contract.tables.contacts.time == "sent_at"
    assert contract.feature_definitions["contacts_60d"].table == "contacts"


def test_one_column_has_one_part(folder: Path) -> None:
    purchases().rename(columns={"who": "user_id"}).to_csv(folder / "t.csv", index=False)
    for choices, said in (
        (Choices(customer="user_id", amount="USER_ID"), "two parts"),
        (Choices(amount="at"), "--amount at: its values are no numbers"),
    ):
        with pytest.raises(SourceError, match=said):
            draft_file([str(folder / "t.csv")], folder / "contract.yaml", None, choices)


@pytest.mark.slow
def test_a_draft_is_played_to_a_champion_as_it_stands(folder: Path) -> None:
    telco().to_csv(folder / "telco.csv", index=False)

    where = {"CHURN_HOME": str(folder / "home"), "CHURN_CONTRACT": str(folder / "contract.yaml")}

    def churn(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "churn_platform.cli", *arguments],
            cwd=PROJECT,
            env={"PATH": "/usr/bin:/bin", **where},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    churn("contract", "draft", str(folder / "telco.csv"), "--out", str(folder / "contract.yaml"))
    churn("play")
    assert "champion   version 1" in churn("status")
