"""What the names of columns tell.

A name is taken apart into words: CustomerID, customer_id and "Customer ID" are the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from churn_platform.contract import RESERVED_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WHO = _words_of(
    "customer cust user member household subscriber account buyer person player shopper guest visitor consumer "
    "holder policyholder donor acct login uid msno cid patient kunde kunden client cliente usuario abonne"
)
ID = _words_of("id no num number nr nbr nummer numero key code uuid guid ref")
ORDER = _words_of("order invoice basket receipt transaction trans ticket bill session purchase booking")
# those that are ranked begin with the word that says most
MONEY = _words_of("amount revenue sales total paid payment spend spent turnover value gross net price cost charge fee")
WHEN = _words_of("timestamp datetime time ts date day at created ordered")
KINDS = _words_of("category department product item sku brand channel store shop country type article artikel produkt")
PIECES = _words_of("quantity qty units pieces items")
NO_MONEY = PIECES + _words_of(
    "children adults babies nights days count tax vat shipping freight discount rate pct percent share age score rating"
)
PRICE_OF_ONE = _words_of("price unitprice rate")
OTHER_TIMES = _words_of(
    "birth dob birthday born signup registered registration joined join delivery delivered shipped shipping shipment "
    "expiry expire expires expiration updated modified due start since first estimated approved"
)
SURELY_CHURN = _words_of("churn churned churner exited attrition")
ANY_LABEL = _words_of("target label")  # whose values have to be yes and no
CHURN = (
    SURELY_CHURN
    + ANY_LABEL
    + _words_of(
        "exit left leaver leave cancelled canceled cancel lapsed quit closed defected unsubscribed terminated outcome"
    )
)
YES = _words_of(
    "1 true yes y t churned churn churner left exited attrited cancelled canceled closed lapsed quit gone lost leave "
    "leaves"
)
STAYED = _words_of("active retained stayed stays loyal existing kept")  # in a name: yes is who stayed
NO = _words_of("0 false no n f not non never un stay stayed stays existing retained kept joined active loyal")
# in English, and the most frequent ones in German, French and Spanish
PERSONAL = _words_of(
    "msisdn zip zipcode postcode postal plz nachname vorname strasse telefon adresse prenom apellido correo "
    "surname lastname firstname fullname forename email phone telephone mobile fax street address ssn passport "
    "iban birth dob birthday birthdate ip latitude longitude lat lon lng password"
)
CONTACT = _words_of("contact contacts campaign campaigns offers calls mailings")


def words(name: str) -> list[str]:
    """The words of a name, in lower case: CustomerID is customer, id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+|\d+", spaced)]


def has(name: str, *sets: Collection[str]) -> bool:
    """Whether a name holds a word of each set, or is one of the first and one of the second without a gap."""
    there = {*words(name), *words(name.lower())}
    run = "".join(words(name))
    joined = len(sets) > 1 and any(run == first + second for first in sets[0] for second in sets[1])
    return joined or all(there.intersection(each) for each in sets)


def rank(name: str, ranked: tuple[str, ...]) -> int:
    """The place of the word of a name that says most, of some that are ranked; their number where it has none."""
    return min((ranked.index(word) for word in words(name) if word in ranked), default=len(ranked))


def column_name(name: str) -> str:
    """A column's name as a contract takes it: itself, where it can be."""
    plain = (
        name
        if re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)
        else "_".join(re.findall("[a-z0-9]+", "_".join(words(name))))
    )
    plain = plain if plain[:1].isalpha() else f"column_{plain}"
    return f"{plain}_" if plain.lower() in RESERVED_COLUMNS else plain
