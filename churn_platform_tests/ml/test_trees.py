"""The kernels: what a rank says, and that they work wherever numba can or cannot keep what it has compiled."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_platform.ml import trees
from churn_platform.ml.calibration import Isotonic, Sigmoid

CUTS = st.lists(st.floats(allow_nan=False), min_size=1, max_size=20, unique=True)


@settings(deadline=None)  # the first call compiles
@given(CUTS, st.floats(allow_nan=False))
def test_a_value_lies_at_or_below_a_cut_exactly_where_its_rank_does(cuts, value):
    cuts = sorted(cuts)
    rank = trees._rank(value, np.array(cuts), 0, len(cuts))
    assert [value <= cut for cut in cuts] == [rank <= place for place in range(len(cuts))]


CURVES = [Sigmoid(1.3, -0.4), Isotonic([0.0, 0.1, 0.4, 1.0], [0.02, 0.05, 0.7, 0.9])]


@pytest.mark.parametrize("curve", CURVES, ids=["sigmoid", "isotonic"])
@settings(deadline=None)  # the first call compiles
@given(score=st.floats(0, 1) | st.sampled_from([0.1, 0.4]))
def test_a_curve_is_that_of_the_calibration(curve, score):
    if isinstance(curve, Sigmoid):
        found = trees._calibrated(score, trees.SIGMOID, np.array([curve.slope, curve.intercept, 1e-4]), np.zeros(0))
    else:
        found = trees._calibrated(score, trees.ISOTONIC, np.array(curve.scores), np.array(curve.probabilities))
    assert found == pytest.approx(float(curve(np.array([score]))[0]), abs=1e-12)


def by_definition(value, players):
    """Shapley values by the sum over all coalitions."""
    found = np.zeros(players)
    for player in range(players):
        others = [other for other in range(players) if other != player]
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for chosen in itertools.combinations(others, size):
                found[player] += weight * (value({*chosen, player}) - value(set(chosen)))
    return found


# threshold, line and left child; column 0, which is line 1, comes twice on a path
NODES = [(1.0, 1, 1), (0.0, 2, 3), (np.inf, 0, 2), (np.inf, 0, 3), (-1.0, 1, 5), (np.inf, 0, 5), (np.inf, 0, 6)]
VALUES = np.array([0, 0, 0.9, 0.2, 0, 0.5, 0.1])
COVERS = np.array([100.0, 70, 30, 25, 45, 5, 40])


@pytest.mark.parametrize("x", list(itertools.product([-2.0, 0.5, 2.0], [-1.0, 1.0])))
def test_contributions_are_shapley_values_by_their_definition(x):
    shift = 4
    nodes = np.array([(threshold, line << shift | left) for threshold, line, left in NODES], trees.NODE)

    def value(known, place=0):
        threshold, line, left = NODES[place]
        if line == 0:
            return VALUES[place]
        if line - 1 in known:
            return value(known, left if x[line - 1] <= threshold else left + 1)
        return sum(COVERS[child] / COVERS[place] * value(known, child) for child in (left, left + 1))

    plan = np.zeros(2, trees.NUMBER)
    plan["line"], plan["fill"] = [1, 2], np.nan
    points, weights = np.polynomial.legendre.leggauss(1)
    found = trees.tree_contributions(
        np.array([x]),
        np.empty((1, 0), np.int32),
        plan,
        np.zeros(0),
        np.array([3]),
        nodes,
        VALUES,
        np.array([0, 7]),
        np.array([3]),
        shift,
        1.0,
        COVERS,
        np.array([0, 0, 1]),
        np.array([0, 1]),
        (points + 1) / 2,
        weights / 2,
        2,
    )
    assert np.abs(found[0] - by_definition(value, 2)).max() < 1e-12


KEEPING = """
from churn_platform.ml import trees
import numpy as np
assert trees._rank(2.0, np.array([1.0, 2.0]), 0, 2) == 1
print(trees._rank.stats.cache_path)
"""


def run(tmp_path, code, **environment):
    """In a copy of the package whose folders nobody can write to; root can, so nothing but files stand in the way."""
    package = tmp_path / "code" / "churn_platform"
    (package / "ml").mkdir(parents=True)
    for name in ("__init__.py", "ml/__init__.py", "ml/trees.py"):
        (package / name).write_text((Path(trees.__file__).parents[1] / name).read_text())
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder would have to be")
    (package / "ml" / "__pycache__").write_text("")
    given = {"PATH": os.environ["PATH"], "HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "PYTHONPATH": "."}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "code",
        env=given | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_are_kept_in_the_folder_that_the_environment_names(tmp_path):
    folder = tmp_path / "kept"
    found = run(tmp_path, KEEPING, NUMBA_CACHE_DIR=str(folder))
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(str(folder))
    assert list(folder.rglob("*.nbc"))


def test_kernels_work_where_nothing_can_be_kept(tmp_path):
    found = run(tmp_path, KEEPING)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "None"
