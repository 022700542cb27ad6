"""A shop whose customers have secrets, and the whole platform at work on them in real processes."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import SecretStr

from churn_platform.contract import Contract
from churn_platform.contract_file import parse
from churn_platform.engine import connection
from churn_platform.ml.masking import pseudonym
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.settings import PROJECT, Settings
from churn_platform_tests.graph import empty
from churn_platform_tests.leaks import Leak, Scanner
from churn_platform_tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "a key for the tests of privacy, and for nothing else"

CONTRACT = """\
contract: 1
name: quiet_shop
owner: team:shop
source: {kind: files}
customer: {name: client, type: string}
time: {start: 2024-01-01, end: 2024-09-01, cadence: monthly, timezone: UTC}
tables:
  transactions:
    path: landing/purchases*.csv
    customer: client_no
    time: bought_at
    amount: paid
    order: receipt
    min_rows: 50
    max_quarantined: 0.02
    columns:
      client_no: {type: string, pii: hash, pattern: "client-\\\\w+"}
      receipt: {type: integer}
      bought_at: {type: timestamp}
      paid: {type: float, min: 0}
      card: {type: string, pii: hash, nullable: true}
      shop: {type: string, nullable: true}
  customers:
    path: landing/people*.csv
    customer: client_no
    min_rows: 0
    max_quarantined: 0.1
    columns:
      client_no: {type: string, pii: hash}
      name: {type: string, pii: drop}
      email: {type: string, pii: hash, pattern: ".+@.+", nullable: true}
      phone: {type: string, pii: drop}
      income: {type: float, pii: bucket, bucket: 10000, min: 0, nullable: true}
      age: {type: integer, pii: bucket, bucket: 10, nullable: true}
features:
  definitions:
    visits_30d: {kind: count, window_days: 30}
    visits_90d: {kind: count, window_days: 90}
    spent_90d: {kind: sum, window_days: 90}
    quiet_days: {kind: recency_days}
    income: {kind: column, table: customers, column: income}
    age: {kind: column, table: customers, column: age}
label: {active_within_days: 60, horizon_days: 28, warmup_days: 31}
model: {family: logistic_regression, min_windows: 3}
gates: {minimum: {roc_auc: 0.6}, min_test_rows: 20, min_test_churners: 5}
drift: {method: psi, threshold: 0.2, share: 0.5}
"""

ZOE = {  # a good customer of whom everything is there
    "client_no": "client-Q7xK29vTd8",
    "name": "Zoe Quintessa Vandermolen",
    "email": "Zoe.Vandermolen.77@example.com",
    "phone": "+4917655501929384",
    "income": "83217.43",
    "card": "4929-1111-7777-3310",
}
MISFIT = {  # one of whom nothing fits: rows of theirs go to quarantine, and a file of theirs is refused whole
    "client_no": "client-W3pL84zRm5",
    "name": "Ulrich Ottokar Pfefferkorn",
    "email": "pfefferkorn-without-an-at-sign-5519",
    "phone": "+4917655508881726",
    "income": "forty-two-thousand-9931",
    "card": "4929-2222-8888-4421",
}
BROKEN_KEY = "stranger 5X8dK77 whose id fits no pattern"
NOBODY = "client-N0b0dyKn0wn77"  # asked for at the endpoint and at the command line, and never seen
SECRETS = [*ZOE.values(), *MISFIT.values(), BROKEN_KEY, NOBODY]


def purchases(first: str, months: int, seed: int = 1) -> pd.DataFrame:
    """Purchases of 240 clients who come every week or two, until they stay away for good or for some weeks."""
    random = np.random.default_rng(seed)
    rows: list[tuple[str, pd.Timestamp]] = []
    start = pd.Timestamp("2024-01-01")
    for number in range(240):
        pace, at = random.uniform(3, 25), start + pd.Timedelta(hours=int(random.integers(0, 24 * 60)))
        stays = random.random() < 0.4
        leaves = pd.Timestamp("2024-12-31") if stays else at + pd.Timedelta(days=int(random.integers(20, 200)))
        name = ZOE["client_no"] if number == 0 else f"client-{number}"
        while at < min(leaves, pd.Timestamp("2024-09-01")) or (number == 0 and at < pd.Timestamp("2024-09-01")):
            rows.append((name, at))
            at += pd.Timedelta(hours=float(random.exponential(pace * 24) + 1)).floor("s")
    frame = pd.DataFrame(rows, columns=["client_no", "bought_at"])
    frame["receipt"] = range(len(frame))
    frame["paid"] = random.integers(100, 9000, len(frame)) / 100
    frame["card"] = np.where(frame["client_no"] == ZOE["client_no"], ZOE["card"], None)
    frame["shop"] = random.choice(np.array(["north", "south"]), len(frame))
    begin = pd.Timestamp(first)
    end = begin + pd.DateOffset(months=months)
    frame = frame[(frame["bought_at"] >= begin) & (frame["bought_at"] < end)]
    closing = frame.tail(1).assign(bought_at=end - pd.Timedelta(hours=1), receipt=10**6 + end.month)
    return pd.concat([frame, closing])[["client_no", "receipt", "bought_at", "paid", "card", "shop"]]


def people() -> pd.DataFrame:
    """The clients, with names; Zoe's and the misfit's values are secrets."""
    random = np.random.default_rng(5)
    columns = ["client_no", "name", "email", "phone", "income"]
    rows = [[person[column] for column in columns] for person in (ZOE, MISFIT)]
    rows += [
        [f"client-{n}", f"N{n}", f"n{n}@example.com", f"0{n}", f"{random.integers(10, 90)}000"] for n in range(1, 240)
    ]
    frame = pd.DataFrame(rows, columns=columns)
    frame["age"] = random.integers(18, 80, len(frame))
    return frame


def misfits(at: str) -> pd.DataFrame:
    """Rows of the misfit, each with something wrong in another place."""
    rows = [
        (MISFIT["client_no"], 900_001, at, "-12.50"),
        (MISFIT["client_no"], 900_002, "some day", "12.50"),
        (MISFIT["client_no"], 900_003, "1899-01-01", "12.50"),
        (MISFIT["client_no"], "many", at, "12.50"),
        (BROKEN_KEY, 900_005, at, "12.50"),
    ]
    frame = pd.DataFrame(rows, columns=["client_no", "receipt", "bought_at", "paid"])
    return frame.assign(card=MISFIT["card"], shop="north")


@dataclass
class World:
    """A home, the files that land, and what all processes printed."""

    folder: Path
    contract: Contract
    settings: Settings
    ports: dict[str, int]
    leaks: list[Leak] = field(default_factory=list)  # as the proof of masking found them, before any erasure
    seen: int = 0  # bytes that it looked at
    rows: dict[str, int] = field(default_factory=dict)  # table to the number of rows of a person, before any erasure
    windows: list[str] = field(default_factory=list)  # of the validated purchases, likewise
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)

    @property
    def landing(self) -> Path:
        return self.folder / "landing"

    @property
    def printed(self) -> Path:
        return self.folder / "printed"

    @cached_property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHURN_", "DAGSTER_"))}
        return kept | {
            "CHURN_HOME": str(self.settings.home),
            "CHURN_CONTRACT": str(self.settings.contract),
            "CHURN_PII_KEY": KEY,
            "CHURN_SERVING_PORT": str(self.ports["serving"]),
            "CHURN_DAGSTER_PORT": str(self.ports["dagster"]),
            "BENTOML_HOME": str(self.settings.home / "bentoml"),
            "TMPDIR": str(self.folder / "tmp"),
        }

    @property
    def tables(self) -> TableStore:
        return TableStore(self.settings.tables_of(self.contract))

    @property
    def tracking(self) -> Tracking:
        return Tracking(self.contract, self.settings)

    def land(self, name: str, rows: pd.DataFrame) -> None:
        """Put a file where the contract points."""
        rows.to_csv(self.landing / name, index=False)

    def churn(self, *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command; what it prints is kept with all else."""
        return self.run("-m", "churn_platform.cli", *arguments, name=arguments[0], typed=typed)

    def run(self, *arguments: str, name: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python; what it prints is kept with all else."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            env=self.environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            input=typed,
        )
        number = len(list(self.printed.iterdir()))
        (self.printed / f"{number:02}-{name}.txt").write_text(done.stdout + done.stderr)
        return done

    def scan(self, secrets: list[str]) -> tuple[list[Leak], int]:
        """The leaks in all that was written or printed, but for the landed files themselves; and how many bytes."""
        scanner = Scanner(secrets)
        return scanner.tree(self.folder, skip=[self.landing]), scanner.seen

    def serve(self) -> Iterator[None]:
        """The endpoint, in its own processes, while the generator is open."""
        with (self.printed / f"{len(list(self.printed.iterdir())):02}-serving.txt").open("wb") as log:
            command = ["-m", "bentoml", "serve", "serving.service:ChurnService", "--host", "127.0.0.1"]
            process = subprocess.Popen(
                [sys.executable, *command, "--port", str(self.ports["serving"])],
                env=self.environment,
                cwd=PROJECT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + 120
            while self._get("/readyz") != 200:
                assert process.poll() is None, log.name
                assert time.monotonic() < deadline, log.name
                time.sleep(0.3)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)

    def _get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['serving']}{path}", timeout=2) as response:
                return int(response.status)
        except (urllib.error.URLError, OSError):
            return 0

    def predict(self, body: object) -> tuple[int, Any]:
        """POST /predict."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.ports['serving']}/predict"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@cache
def world() -> World:
    """The shop after five months: played, served, and asked all that can go wrong. Made once."""
    folder = Path(tempfile.mkdtemp(prefix="churn-privacy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("landing", "printed", "tmp"):
        (folder / name).mkdir()
    home = empty(folder, CONTRACT).settings  # its database is there already, which takes seconds to make
    settings = Settings(home=home.home, contract=home.contract, pii_key=SecretStr(KEY))
    found = World(folder, parse(CONTRACT), settings, {"serving": free_port(), "dagster": free_port()})
    found.land("people.csv", people())
    found.land("purchases.csv", pd.concat([purchases("2024-01-01", 5), misfits("2024-02-10 10:00:00")]))
    played = found.churn("play")
    assert played.returncode == 0, played.stdout + played.stderr
    assert found.tracking.version_of("champion") is not None, played.stdout
    _ask(found)
    _fail(found)
    found.leaks, found.seen = found.scan(SECRETS)
    found.rows = _rows_of_the_planted(found)
    found.windows = found.tables.windows("validated_transactions")
    return found


def _rows_of_the_planted(shop: World) -> dict[str, int]:
    """Where the planted rows went, as the pseudonyms tell."""
    zoe, misfit = (pseudonym(KEY.encode(), person["client_no"]) for person in (ZOE, MISFIT))
    held = {
        ("raw_transactions", "misfit"): ("client_no", misfit),
        ("quarantine_transactions", "misfit"): ("client_no", misfit),
        ("raw_transactions", "zoe"): ("client_no", zoe),
        ("validated_customers", "zoe"): ("client_no", zoe),
        ("customer_features", "zoe"): ("client", zoe),
        ("training_set", "zoe"): ("client", zoe),
        ("churn_scores", "zoe"): ("client", zoe),
    }
    found: dict[str, int] = {}
    with connection() as con:
        for (table, who), (key, pseudonymous) in held.items():
            shop.tables.read(con, table)
            counted = con.execute(f"SELECT count(*) FROM {table} WHERE {key} = ?", [pseudonymous]).fetchall()
            found[f"{who} in {table}"] = counted[0][0]
    return found


def _ask(shop: World) -> None:
    """Ask the endpoint what it can answer and what it cannot."""
    for _ in shop.serve():
        shop.answers = {
            "known": shop.predict({"user_id": ZOE["client_no"]}),
            "unknown": shop.predict({"user_id": NOBODY}),
            "extra": shop.predict({"user_id": ZOE["client_no"], "email": ZOE["email"]}),
            "broken": shop.predict(f'{{"user_id": "{ZOE["client_no"]}", '.encode()),
            "typed": shop.predict({"user_id": [ZOE["client_no"]]}),
        }


# in one process: importing the platform takes longer than a play that is refused
_PLAY_EACH = """
import sys, traceback
from pathlib import Path
from churn_platform import cli
landing = Path(sys.argv[1])
june = landing / "purchases-2024-06.csv"
for export in sorted(landing.glob("*.later")):
    export.rename(june)
    print("---", flush=True)
    try:
        cli.play(anew=False)
    except BaseException:
        traceback.print_exc()
june.unlink()
"""


def _fail(shop: World) -> None:
    """Let exports of June arrive that are refused, each for another reason, and play after each."""
    june = purchases("2024-06-01", 1)
    whole = june.to_csv(index=False)
    line = f"{MISFIT['client_no']},1,2024-06-03 10:00:00,1.00,{MISFIT['card']},north\n"
    exports = {
        "another encoding": (whole + line.replace("north", "Z\xfcrich")).encode("latin-1"),
        "a line too long": (whole + line.replace("north", "north,east,west")).encode(),
        "a quote that does not end": (whole + line.replace("north", '"north')).encode(),
        "no header": (line + whole.partition("\n")[2]).encode(),
        "mostly misfits": pd.concat([june, *[misfits("2024-06-03 10:00:00")] * 60]).to_csv(index=False).encode(),
    }
    for number, data in enumerate(exports.values()):
        (shop.landing / f"export-{number}.later").write_bytes(data)
    shop.run("-c", _PLAY_EACH, str(shop.landing), name="refused")
    shop.churn("contract", "check")
    shop.churn("status")
