"""What the command shows can be used as it stands."""

from __future__ import annotations

import json
import shlex

import pytest

from churn_platform import cli
from churn_platform.settings import settings
from churn_platform_tests.worlds import PURCHASES, changed


@pytest.mark.parametrize("customer", ["O'Neil", "käufer 😀 1", 'a"b', 17])
def test_the_call_that_is_shown_survives_a_shell(customer: object) -> None:
    words = shlex.split(cli._call(changed(PURCHASES), "http://127.0.0.1:8080", customer))
    assert json.loads(words[-1]) == {"user_id": customer}


@pytest.mark.usefixtures("home")
def test_where_customers_are_hashed_no_hash_is_shown_as_an_id() -> None:
    contract = changed(PURCHASES, ("client_no: {type: string}", "client_no: {type: string, pii: hash}"))
    assert cli._some_customer(contract, settings()) == "a client_no as your source writes it"
