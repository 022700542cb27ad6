"""A seeded generator of customers and their purchases, with drift that can be switched on at a date.

The purchases follow the BG/NBD model of P. S. Fader, B. G. S. Hardie and K. L. Lee, "Counting Your Customers
the Easy Way: An Alternative to the Pareto/NBD Model", Marketing Science 24(2), 2005. The first purchase is
made at sign-up. While alive, a customer buys again as a Poisson process with a weekly rate ~ Gamma(shape r,
rate alpha), and after each of these repeat purchases leaves for good with probability p ~ Beta(a, b). To this
we add

- segments, each with its own r, alpha, a and b within the range of published fits;
- age, as a covariate of a: a * exp(-AGE_EFFECT * (age - 45) / 14), so that the young leave sooner (the way in
  which Fader and Hardie's 2007 note puts time-invariant covariates into the model);
- seasonality: the rate is multiplied by the month's entry of SEASONALITY, whose mean is one;
- amounts: lognormal, around a lognormal mean of the customer's own that rises with the segment.

Sign-ups arrive at a constant rate from SIGNUP_LEAD_DAYS before the simulation's start until its end:
`customers` people in each SIGNUP_PERIOD_DAYS. So `customers` are there two years after the start, and
sign-ups go on after that.

Nothing that is drawn depends on `end` or on a drift that is still to come, so a simulation that ends later,
or that drifts from a date on, repeats the earlier one exactly up to there. Three things see to it. A
customer's number and sign-up time do not depend on `end`. Every calendar month is drawn whole, from a seed of
its own, and cut to `end` afterwards. Customers are drawn in the order of their sign-up, so what is drawn for
a later one cannot disturb an earlier one.

The three kinds of drift, with strength 1.0 a pronounced one; drifts add up:

- "covariate": P(features) changes, P(churn | features) does not. From the date on, those who sign up are 10 *
  strength years younger and more often plus or premium (the odds against the next lower segment grow by
  exp(strength)), and everybody spends exp(0.5 * strength) times as much. The process that makes customers of
  an age and a segment buy and leave is untouched. An amount says nothing about churn beyond what the segment
  says, so scaling it keeps the relation between features and churn too. The churn rate moves only as far as
  the mix moves it.
- "concept": P(churn | features) changes, P(features) does not (at first: features are made of past behaviour,
  and follow within weeks). A customer's loyalty is the sum of log rate, age and segment, each standardised,
  over the root of 3, and within -2 and 2. From the date on, the loyal buy less often and take on a high
  probability of leaving, while for the risky both move the other way: what used to predict loyalty now
  predicts churn. With share = 1 - exp(-2 * strength), the rate is multiplied by exp(-share * loyalty), and
  the probability of leaving is moved by that share towards CONCEPT_HIGHEST_DROPOUT / (1 + exp(-3 * loyalty)).
- "label": P(churn) changes for everybody alike. From the date on, every customer faces one more risk of
  leaving, LABEL_RISK_PER_WEEK * strength, the same for all whatever their features and purchases, so the base
  rate rises while the ranking of customers by risk stays. Who left lately still counts as active for a while
  and can be told by recency only: a model without it loses accuracy. Customers become fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
DriftKind = Literal["covariate", "concept", "label"]

_INSTANT = pa.timestamp("us", tz="UTC")
CUSTOMERS_SCHEMA = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("signup_time", _INSTANT, nullable=False),
        pa.field("age", pa.int64(), nullable=False),
        pa.field("customer_segment", pa.string(), nullable=False),
        pa.field("email", pa.string(), nullable=False),
        pa.field("full_name", pa.string(), nullable=False),
    ]
)
PURCHASES_SCHEMA = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("order_id", pa.int64(), nullable=False),
        pa.field("purchase_time", _INSTANT, nullable=False),
        pa.field("amount", pa.float64(), nullable=False),
    ]
)
WIDE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("event_timestamp", _INSTANT, nullable=False),
        pa.field("age", pa.int64(), nullable=False),
        pa.field("total_purchases", pa.int64(), nullable=False),
        pa.field("avg_purchase_amount", pa.float64(), nullable=False),
        pa.field("tenure_months", pa.float64(), nullable=False),
        pa.field("customer_segment", pa.string(), nullable=False),
        pa.field("target", pa.int64(), nullable=False),
    ]
)

SIGNUP_LEAD_DAYS = 180
SIGNUP_PERIOD_DAYS = SIGNUP_LEAD_DAYS + 731
DAYS_PER_MONTH = 365.25 / 12

# One entry per segment: standard, plus, premium.
SEGMENTS = ("standard", "plus", "premium")
SEGMENT_SHARES = np.array([0.6, 0.3, 0.1])
R = np.array([1.2, 1.3, 1.4])  # the weekly purchase rate is Gamma(shape R, rate ALPHA)
ALPHA = np.array([2.0, 1.8, 1.6])
A = np.array([0.45, 0.35, 0.25])  # the probability of leaving is Beta(A, B), at the age of 45
B = np.array([2.0, 2.0, 2.0])
LOG_MEAN_AMOUNT = np.array([3.2, 3.6, 4.0])

AMOUNT_SPREAD_BETWEEN = 0.4  # standard deviations of the log amount, between customers and within one
AMOUNT_SPREAD_WITHIN = 0.5
AGE_MEAN, AGE_SPREAD, AGE_MIN, AGE_MAX = 45.0, 14.0, 18, 90
AGE_EFFECT = 0.6

# The rate's multiplier in each month from January to December; the mean is one.
SEASONALITY = np.array([0.95, 0.90, 0.95, 1.0, 1.0, 0.90, 0.80, 0.80, 1.0, 1.05, 1.25, 1.40])
# The share of a day's purchases made up to each hour: few at night, most in the afternoon and the evening.
_HOURS = np.array([0.0, 6.0, 9.0, 12.0, 14.0, 18.0, 21.0, 23.0, 24.0])
_SHARE_UP_TO_HOUR = np.array([0.0, 0.02, 0.10, 0.28, 0.42, 0.64, 0.90, 0.98, 1.0])

COVARIATE_YEARS_YOUNGER = 10.0
COVARIATE_LOG_AMOUNT = 0.5
CONCEPT_HIGHEST_DROPOUT = 0.35
LABEL_RISK_PER_WEEK = 0.05

# fmt: off
_FIRST_NAMES = pa.array(
    [
        "Ada", "Alan", "Amara", "Anders", "Beatriz", "Carlos", "Chiara", "David", "Dilan", "Elena", "Emeka",
        "Fatima", "Finn", "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jana", "Jonas", "Kenji", "Leila", "Lucas",
        "Maya", "Mei", "Nadia", "Noah", "Olga", "Omar", "Priya", "Rosa", "Samir", "Sofia", "Tomas", "Uma",
        "Viktor", "Wanda", "Yusuf", "Zoe",
    ]
)
_LAST_NAMES = pa.array(
    [
        "Abbott", "Alvarez", "Bauer", "Becker", "Costa", "Dubois", "Eriksen", "Fischer", "Garcia", "Haddad",
        "Hansen", "Ito", "Jensen", "Kaya", "Keller", "Kowalski", "Larsen", "Lopez", "Martin", "Meyer",
        "Moreau", "Nguyen", "Novak", "Okafor", "Olsen", "Park", "Patel", "Petrov", "Rossi", "Santos", "Sato",
        "Silva", "Singh", "Smith", "Tanaka", "Turner", "Usman", "Vargas", "Weber", "Wong", "Young", "Zhang",
    ]
)
# fmt: on

_MICROSECONDS_PER_HOUR = 3_600_000_000
_MICROSECONDS_PER_DAY = 24 * _MICROSECONDS_PER_HOUR
_ORDERS_PER_CHUNK = 10**10  # order numbers of chunk k start at k times this
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Drift:
    """A change of the process from midnight UTC of `at` on; the module's docstring says what each kind does.

    `strength` is above 0; 1.0 is a pronounced drift. Raises ValueError for anything else.
    """

    kind: DriftKind
    at: date
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.kind not in get_args(DriftKind):
            raise ValueError(f"no drift is of the kind {self.kind!r}: use one of {', '.join(get_args(DriftKind))}")
        _refuse_times(at=self.at)
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise ValueError(f"the strength of a drift is {self.strength}: it must be above 0; for none, leave it out")


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    `customers` people sign up in each SIGNUP_PERIOD_DAYS, from SIGNUP_LEAD_DAYS before `start`; about that
    many are there two years after `start`. The history covers sign-ups and purchases from SIGNUP_LEAD_DAYS
    before `start`, so that there are customers with a past at `start`, up to but without `end` (both midnight
    UTC). `chunk_customers` is the most customers held in memory at a time; like the seed, it is part of what
    decides the result.

    Raises ValueError when the fields do not make sense.
    """

    customers: int
    start: date
    end: date
    seed: int
    drift: tuple[Drift, ...] = ()
    chunk_customers: int = 200_000

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.customers < 1:
            raise ValueError(f"customers is {self.customers}: simulate at least one customer")
        if self.chunk_customers < 1:
            raise ValueError(f"chunk_customers is {self.chunk_customers}: a chunk needs at least one customer")
        if self.seed < 0:
            raise ValueError(f"the seed is {self.seed}: it must be 0 or above")
        _refuse_times(start=self.start, end=self.end)
        if self.start >= self.end:
            raise ValueError(f"the simulation ends on {self.end}, not after its start, {self.start}: set a later end")
        for drift in self.drift:
            if drift.at < self.start:
                raise ValueError(
                    f"the {drift.kind} drift is at {drift.at}, before the simulation's start, {self.start}: "
                    "drift later, or start earlier"
                )


@dataclass(frozen=True)
class Chunk:
    """Some customers, in the order of sign-up, and all their purchases, in the order of time.

    `customers` has CUSTOMERS_SCHEMA and `purchases` has PURCHASES_SCHEMA. An amount is in units of an unnamed
    currency, with two decimals.
    """

    customers: pa.Table
    purchases: pa.Table


@dataclass(frozen=True)
class _Customers:
    """The customers of a chunk, whenever they sign up, in the order of sign-up; one entry of every array for
    each.

    Times are in days since the origin, SIGNUP_LEAD_DAYS before the simulation's start.
    """

    number: Integers
    signup: Floats
    age: Integers
    segment: Integers  # an index into SEGMENTS
    rate: Floats  # purchases per week while alive
    dropout: Floats  # the probability of leaving after a repeat purchase
    log_amount: Floats  # the mean of the log of an amount
    leaves_by: Floats  # when the risk of a label drift makes the customer leave; infinity without one
    first_name: Integers
    last_name: Integers


@dataclass(frozen=True)
class _Purchases:
    """Purchases, one entry of every array for each; `owner` is an index into a chunk's customers."""

    owner: Integers
    time: Floats  # days since the origin
    amount: Floats


@dataclass(frozen=True)
class _History:
    """A chunk cut to the simulation's end, in numpy, with its purchases in the order of time."""

    index: int  # the chunk's
    customers: _Customers  # the last of them may sign up after the end
    signup_time: Integers  # microseconds since 1970, of those who sign up before the end
    owner: Integers
    purchase_time: Integers
    amount: Floats


def simulate(simulation: Simulation) -> Iterator[Chunk]:
    """Generate the simulation chunk by chunk, in bounded memory; equal simulations give equal chunks."""
    for history in _histories(simulation):
        customers = _customers_table(history)
        purchases = pa.table(
            [
                customers["customer_id"].combine_chunks().take(pa.array(history.owner)),
                pa.array(history.index * _ORDERS_PER_CHUNK + np.arange(len(history.owner))),
                _instants(history.purchase_time),
                pa.array(history.amount),
            ],
            schema=PURCHASES_SCHEMA,
        )
        yield Chunk(customers, purchases)


def purchases_between(chunk: Chunk, start: datetime, end: datetime) -> pa.Table:
    """Return the purchases of a chunk from `start` up to but without `end`, as a view that copies nothing.

    Raises ValueError for a time without a time zone, and for an end before the start.
    """
    if start.tzinfo is None or end.tzinfo is None:
        raise ValueError("a time without a time zone is ambiguous: pass one with tzinfo, such as datetime.UTC")
    if end < start:
        raise ValueError(f"the end, {end}, is before the start, {start}: swap them")
    times = _microseconds(chunk.purchases["purchase_time"])
    first, last = np.searchsorted(times, [_since_epoch(start), _since_epoch(end)])
    return chunk.purchases.slice(int(first), int(last - first))


def wide_table(
    simulation: Simulation,
    observation_dates: Sequence[date],
    horizon_days: int = 28,
    active_within_days: int = 60,
) -> pa.Table:
    """Return features and label in one table (WIDE_SCHEMA), a row per observation date and eligible customer.

    Eligible is who bought in the `active_within_days` before midnight UTC of the observation date, which is
    `event_timestamp`. The features use only purchases before it: their number, their mean amount, and the
    months (of 30.4 days) since sign-up. `target` is 1 when there is no purchase in the `horizon_days` from it
    on, else 0. Rows are ordered by chunk, then by date as given, then by sign-up.

    Raises ValueError when the simulation does not cover a date with its horizon, or a date is given twice.
    """
    if horizon_days < 1 or active_within_days < 1:
        raise ValueError(
            f"horizon_days is {horizon_days} and active_within_days is {active_within_days}: both must be at least 1"
        )
    if len(set(observation_dates)) < len(observation_dates):
        raise ValueError("an observation date is given twice: give each date once")
    for day in observation_dates:
        _refuse_times(observation_date=day)
        label_known = day + timedelta(days=horizon_days)
        if day < simulation.start or label_known > simulation.end:
            raise ValueError(
                f"the label on {day} needs purchases from then until {label_known}, but the simulation "
                f"covers {simulation.start} to {simulation.end}: choose a date inside, or simulate longer"
            )
    parts = [
        _observe(history, day, horizon_days, active_within_days)
        for history in _histories(simulation)
        for day in observation_dates
    ]
    return pa.concat_tables(parts) if parts else WIDE_SCHEMA.empty_table()


def _observe(history: _History, day: date, horizon_days: int, active_within_days: int) -> pa.Table:
    now = _since_epoch(_midnight(day))
    since = now - active_within_days * _MICROSECONDS_PER_DAY
    until = now + horizon_days * _MICROSECONDS_PER_DAY
    active_from, present, horizon_end = np.searchsorted(history.purchase_time, [since, now, until])
    number_of_customers = len(history.signup_time)
    past = history.owner[:present]
    recent = np.bincount(history.owner[active_from:present], minlength=number_of_customers)
    later = np.bincount(history.owner[present:horizon_end], minlength=number_of_customers)
    total = np.bincount(past, minlength=number_of_customers)
    spent = np.bincount(past, weights=history.amount[:present], minlength=number_of_customers)
    rows = np.flatnonzero(recent)
    customers = history.customers
    return pa.table(
        [
            _customer_ids(customers.number[rows]),
            _instants(np.full(len(rows), now)),
            pa.array(customers.age[rows]),
            pa.array(total[rows]),
            pa.array(spent[rows] / total[rows]),
            pa.array((now - history.signup_time[rows]) / (_MICROSECONDS_PER_DAY * DAYS_PER_MONTH)),
            pa.array(SEGMENTS).take(pa.array(customers.segment[rows])),
            pa.array((later[rows] == 0).astype(np.int64)),
        ],
        schema=WIDE_SCHEMA,
    )


# ----------------------------------------------------------------------------------------- the random process


def _histories(simulation: Simulation) -> Iterator[_History]:
    root = np.random.SeedSequence(simulation.seed)
    end = _end(simulation)
    index = 0
    signups_from = 0
    while signups_from < end:
        for first in range(0, simulation.customers, simulation.chunk_customers):
            size = min(simulation.chunk_customers, simulation.customers - first)
            (seed,) = root.spawn(1)
            first_number = signups_from // SIGNUP_PERIOD_DAYS * simulation.customers + first + 1
            yield _history(simulation, index, seed, np.arange(first_number, first_number + size), signups_from)
            index += 1
        signups_from += SIGNUP_PERIOD_DAYS


def _history(
    simulation: Simulation, index: int, seed: np.random.SeedSequence, number: Integers, signups_from: int
) -> _History:
    end = _end(simulation)
    customers_seed, process_seed, first_purchases_seed = seed.spawn(3)
    customers = _draw_customers(simulation, customers_seed, number, signups_from)
    first_amounts = _draw_amounts(
        simulation, np.random.default_rng(first_purchases_seed), customers.log_amount, customers.signup
    )
    months = [
        _Purchases(np.arange(len(number)), customers.signup, first_amounts),
        *_repeat_purchases(simulation, process_seed, customers),
    ]
    time = np.concatenate([month.time for month in months])
    kept = np.flatnonzero(time < end)
    kept = kept[np.argsort(time[kept], kind="stable")]
    return _History(
        index=index,
        customers=customers,
        signup_time=_clock(simulation, customers.signup[customers.signup < end]),
        owner=np.concatenate([month.owner for month in months])[kept],
        purchase_time=_clock(simulation, time[kept]),
        amount=np.concatenate([month.amount for month in months])[kept],
    )


def _draw_customers(
    simulation: Simulation, seed: np.random.SeedSequence, number: Integers, signups_from: int
) -> _Customers:
    size = len(number)
    # Each property has its own generator and is drawn in the order of sign-up: see the module's docstring.
    (signup_rng, age_rng, segment_rng, rate_rng, dropout_rng, amount_rng, leave_rng, name_rng) = map(
        np.random.default_rng, seed.spawn(8)
    )
    signup = np.sort(signups_from + SIGNUP_PERIOD_DAYS * signup_rng.random(size))
    shift = _strength(simulation, "covariate", signup)

    age = AGE_MEAN - COVARIATE_YEARS_YOUNGER * shift + AGE_SPREAD * age_rng.standard_normal(size)
    age = np.clip(np.rint(age), AGE_MIN, AGE_MAX)
    weights = SEGMENT_SHARES * np.exp(np.multiply.outer(shift, np.arange(len(SEGMENTS))))
    shares_up_to = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
    segment = (segment_rng.random(size)[:, None] >= shares_up_to[:, :-1]).sum(axis=1)

    a = A[segment] * np.exp(-AGE_EFFECT * (age - AGE_MEAN) / AGE_SPREAD)
    leaves_by = np.full(size, np.inf)
    # Drawn in the order of their dates, so that a later drift takes no random numbers from an earlier one.
    for drift in sorted(simulation.drift, key=lambda drift: drift.at):
        if drift.kind == "label":
            exposed_from = np.maximum(signup, (drift.at - _origin(simulation)).days)
            mean_days = 7 / (LABEL_RISK_PER_WEEK * drift.strength)
            leaves_by = np.minimum(leaves_by, exposed_from + leave_rng.exponential(mean_days, size))
    return _Customers(
        number=number,
        signup=signup,
        age=age.astype(np.int64),
        segment=segment,
        rate=rate_rng.standard_gamma(R[segment]) / ALPHA[segment],
        dropout=dropout_rng.beta(a, B[segment]),
        log_amount=LOG_MEAN_AMOUNT[segment] + AMOUNT_SPREAD_BETWEEN * amount_rng.standard_normal(size),
        leaves_by=leaves_by,
        first_name=name_rng.integers(len(_FIRST_NAMES), size=size),
        last_name=name_rng.integers(len(_LAST_NAMES), size=size),
    )


def _draw_amounts(simulation: Simulation, rng: np.random.Generator, log_amount: Floats, time: Floats) -> Floats:
    log_amount = log_amount + AMOUNT_SPREAD_WITHIN * rng.standard_normal(len(time))
    log_amount += COVARIATE_LOG_AMOUNT * _strength(simulation, "covariate", time)
    return np.maximum(np.round(np.exp(log_amount), 2), 0.01)


def _repeat_purchases(
    simulation: Simulation, seed: np.random.SeedSequence, customers: _Customers
) -> Iterator[_Purchases]:
    """Draw the purchases after the first, month by month, all months whole: the last ones go past the end."""
    origin = _origin(simulation)
    alive = np.ones(len(customers.signup), dtype=np.bool_)
    changes = sorted((drift.at - origin).days for drift in simulation.drift if drift.kind == "concept")
    month = origin
    while month < simulation.end:
        next_month = (month.replace(day=1) + timedelta(days=32)).replace(day=1)
        (month_seed,) = seed.spawn(1)
        month_start, month_end = (month - origin).days, (next_month - origin).days
        bounds = [month_start, *sorted({day for day in changes if month_start < day < month_end}), month_end]
        # A concept drift changes the rates from its day on. What precedes must stay as it is without it, so
        # the month is drawn whole under the old rates and used up to that day; the rest is drawn afresh.
        for (begin, until), part_seed in zip(pairwise(bounds), month_seed.spawn(len(bounds) - 1), strict=True):
            rate, dropout = _behaviour(simulation, customers, begin)
            yield _draw_span(
                simulation,
                part_seed,
                customers,
                alive,
                rate=rate * SEASONALITY[month.month - 1],
                dropout=dropout,
                begin=begin,
                until=until,
                drawn_until=month_end,
            )
        month = next_month


def _draw_span(
    simulation: Simulation,
    seed: np.random.SeedSequence,
    customers: _Customers,
    alive: NDArray[np.bool_],
    *,
    rate: Floats,
    dropout: Floats,
    begin: int,
    until: int,
    drawn_until: int,
) -> _Purchases:
    """Draw the purchases from the day `begin` to `drawn_until`, and use those before `until`.

    `rate` (per week) and `dropout` have an entry per customer. Takes those who leave out of `alive`.
    """
    count_rng, time_rng, leave_rng, amount_rng = map(np.random.default_rng, seed.spawn(4))
    signed_up = int(np.searchsorted(customers.signup, drawn_until))
    buyers = np.flatnonzero(alive[:signed_up] & (customers.leaves_by[:signed_up] > begin))

    # Given their number, the times of a Poisson process are uniform. Adding a buyer's position to the uniform
    # number sorts them by buyer and by time within a buyer at once.
    counts = count_rng.poisson(rate[buyers] * ((drawn_until - begin) / 7))
    position = np.repeat(np.arange(len(buyers)), counts)
    fraction = np.sort(position + time_rng.random(len(position))) - position
    time = begin + (drawn_until - begin) * fraction
    owner = buyers[position]
    leaves = leave_rng.random(len(owner)) < dropout[owner]
    amount = _draw_amounts(simulation, amount_rng, customers.log_amount[owner], time)

    used = np.flatnonzero((time < until) & (time > customers.signup[owner]) & (time < customers.leaves_by[owner]))
    owner, leaves = owner[used], leaves[used]
    # A purchase counts if its customer has not left at an earlier one: if as many departures precede it in
    # the whole array as precede its customer's first purchase.
    departures_before: Integers = np.cumsum(leaves) - leaves
    is_first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    before_customer = np.maximum.accumulate(np.where(is_first, departures_before, 0))
    made: NDArray[np.bool_] = departures_before == before_customer
    alive[owner[leaves]] = False
    used = used[made]
    return _Purchases(owner[made], time[used], amount[used])


def _behaviour(simulation: Simulation, customers: _Customers, day: int) -> tuple[Floats, Floats]:
    """Return each customer's weekly rate and probability of leaving on a day: concept drift changes them."""
    strength = float(_strength(simulation, "concept", np.array([day], dtype=np.float64))[0])
    if strength == 0:
        return customers.rate, customers.dropout
    # Standardised over customers who bought lately, so that the churn rate moves little by itself.
    standardised_rate = np.clip((np.log(np.maximum(customers.rate, 1e-6)) + 0.9) / 1.0, -2, 2)
    standardised_age = (customers.age - 49) / 13.5
    standardised_segment = (customers.segment - 0.56) / 0.7
    loyalty = np.clip((standardised_rate + standardised_age + standardised_segment) / math.sqrt(3), -2, 2)
    share = 1 - math.exp(-2 * strength)
    new_dropout = CONCEPT_HIGHEST_DROPOUT / (1 + np.exp(-3 * loyalty))
    return (
        customers.rate * np.exp(-share * loyalty),
        (1 - share) * customers.dropout + share * new_dropout,
    )


def _strength(simulation: Simulation, kind: DriftKind, time: Floats) -> Floats:
    """Return the strengths of a kind of drift in effect at each time (in days since the origin), added up."""
    total = np.zeros(len(time))
    for drift in simulation.drift:
        if drift.kind == kind:
            total += drift.strength * (time >= (drift.at - _origin(simulation)).days)
    return total


# ------------------------------------------------------------------------------------------- times and tables


def _refuse_times(**dates: date) -> None:
    for name, value in dates.items():
        is_plain_date = isinstance(value, date) and not isinstance(value, datetime)
        if not is_plain_date:
            raise ValueError(f"{name} is {value!r}: pass a datetime.date; a day starts at midnight UTC")


def _origin(simulation: Simulation) -> date:
    return simulation.start - timedelta(days=SIGNUP_LEAD_DAYS)


def _end(simulation: Simulation) -> int:
    return (simulation.end - _origin(simulation)).days


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, tzinfo=UTC)


def _since_epoch(instant: datetime) -> int:
    return (instant - _midnight(_EPOCH)) // timedelta(microseconds=1)


def _clock(simulation: Simulation, time: Floats) -> Integers:
    """Turn days since the origin into microseconds since 1970, and within a day, shares of it into hours.

    This keeps the order of times and the day that each is on.
    """
    day = np.floor(time)
    hours = np.interp(time - day, _SHARE_UP_TO_HOUR, _HOURS)
    days_since_1970 = day.astype(np.int64) + (_origin(simulation) - _EPOCH).days
    microseconds: Integers = (hours * _MICROSECONDS_PER_HOUR).astype(np.int64)
    return days_since_1970 * _MICROSECONDS_PER_DAY + microseconds


def _instants(microseconds: Integers) -> pa.Array:
    return pa.array(microseconds).cast(_INSTANT)


def _microseconds(instants: pa.ChunkedArray) -> Integers:
    microseconds: Integers = instants.cast(pa.int64()).to_numpy()
    return microseconds


def _customer_ids(number: Integers) -> pa.Array:
    return pc.binary_join_element_wise("C", pc.utf8_lpad(pa.array(number).cast(pa.string()), 7, "0"), "")


def _customers_table(history: _History) -> pa.Table:
    customers = history.customers
    signed_up = slice(len(history.signup_time))
    first_name = _FIRST_NAMES.take(pa.array(customers.first_name[signed_up]))
    last_name = _LAST_NAMES.take(pa.array(customers.last_name[signed_up]))
    # example.com is reserved: no mail can reach anybody.
    mailbox = pc.binary_join_element_wise(
        pc.utf8_lower(first_name),
        pc.utf8_lower(last_name),
        pa.array(customers.number[signed_up]).cast(pa.string()),
        ".",
    )
    return pa.table(
        [
            _customer_ids(customers.number[signed_up]),
            _instants(history.signup_time),
            pa.array(customers.age[signed_up]),
            pa.array(SEGMENTS).take(pa.array(customers.segment[signed_up])),
            pc.binary_join_element_wise(mailbox, "example.com", "@"),
            pc.binary_join_element_wise(first_name, last_name, " "),
        ],
        schema=CUSTOMERS_SCHEMA,
    )
