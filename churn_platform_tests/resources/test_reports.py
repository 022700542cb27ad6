"""Reports are kept whole where all processes reach them, with a link where a server shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from churn_platform.resources.reports import Kept, Reports
from churn_platform.settings import Settings
from churn_platform_tests.worlds import PURCHASES, changed

CONTRACT = changed(PURCHASES)


def test_a_report_replaces_the_one_of_its_name_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    reports = Reports(CONTRACT, Settings(home=tmp_path))
    reports.keep("drift.html", "what was said before, at greater length")
    kept = reports.keep("drift.html", "caf\u00e9")
    folder = tmp_path / "reports" / CONTRACT.name
    assert kept.path == str(folder / "drift.html")
    assert [path.name for path in folder.iterdir()] == ["drift.html"]
    assert Path(kept.path).read_bytes() == "caf\u00e9".encode()
    reports.drop("drift.html")
    reports.drop("drift.html")  # it need not be there
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ({}, "http://127.0.0.1:8081/{name}/drift.html"),
        ({"reports_port": 9000}, "http://127.0.0.1:9000/{name}/drift.html"),
        ({"reports_url": "https://reports.example.com/churn/"}, "https://reports.example.com/churn/{name}/drift.html"),
        ({"reports": "{folder}/elsewhere"}, None),
        ({"reports": "{folder}/elsewhere", "reports_url": "https://there"}, "https://there/{name}/drift.html"),
    ],
)
def test_it_is_linked_where_a_server_is_known(said: dict[str, Any], url: str | None, tmp_path: Path) -> None:
    said = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in said.items()}
    kept = Reports(CONTRACT, Settings(home=tmp_path / "home", **said)).keep("drift.html", "")
    assert kept.url == (None if url is None else url.format(name=CONTRACT.name))


def test_in_s3_it_is_an_object(bucket: Any, tmp_path: Path) -> None:
    reports = Reports(CONTRACT, Settings(home=tmp_path, reports="s3://tables/reports"))
    key = f"reports/{CONTRACT.name}/drift.html"
    assert reports.keep("drift.html", "a page") == Kept(f"s3://tables/{key}", None)
    kept = bucket.get_object(Bucket="tables", Key=key)
    assert (kept["Body"].read(), kept["ContentType"]) == (b"a page", "text/html")  # else a browser would store it
    reports.drop("drift.html")
    assert "Contents" not in bucket.list_objects_v2(Bucket="tables", Prefix="reports/")
