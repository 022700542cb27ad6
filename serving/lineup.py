"""Who answers: the champion, a canary that takes a share of the customers, and a challenger in the shadow.

The line-up is one immutable object, replaced by one assignment. Whoever scores takes it once, so an answer's version,
threshold and probability belong together. A version takes its place only after it was loaded, warmed and verified; one
that fails leaves whoever was there before.
"""

from __future__ import annotations

import logging
import time
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from churn_platform.registered import CANARY, CANARY_SHARE, CHALLENGER, CHAMPION, FEATURES_VERSION
from serving.registry import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from churn_platform.contract import Contract
    from churn_platform.ml.compiled import CompiledModel
    from serving.registry import Cache, Kept, Registry, Version

# A child of BentoML's logger, because that is the one that its workers configure.
log = logging.getLogger("bentoml.churn")

LONGEST_PAUSE = 60.0  # seconds between two attempts to load a version that does not load


@dataclass(frozen=True)
class Served:
    """A version that answers."""

    version: str
    run_id: str
    tags: dict[str, str]
    metrics: dict[str, float]
    model: CompiledModel

    @property
    def threshold(self) -> float:
        """From which probability on a customer is at high risk."""
        return self.model.threshold


@dataclass(frozen=True)
class LineUp:
    """Who answers now."""

    champion: Served | None = None
    canary: Served | None = None
    share: float = 0.0  # of the customers, that the canary answers
    shadow: Served | None = None

    def takes_canary(self, customer: str | int) -> bool:
        """Whether the canary answers for a customer: always the same ones, and others for each canary."""
        if self.canary is None:
            return False
        return zlib.crc32(f"{self.canary.version}:{customer}".encode()) < self.share * 2**32


class Keeper:
    """Keeps the line-up as the registry says. `look` blocks: call it in a thread, one at a time.

    Args:
        contract: whose features a version must read, and whether there is a shadow.
        registry: says who is champion.
        cache: keeps what was loaded.
        on_champion: called with each champion that comes into use, and the one before it.
    """

    def __init__(
        self,
        contract: Contract,
        registry: Registry,
        cache: Cache,
        on_champion: Callable[[Served, Served | None], None] = lambda *_: None,
    ) -> None:
        self.contract = contract
        self.lineup = LineUp()
        self.registry_problem = ""  # why the registry cannot be asked
        self.from_cache = False  # the champion was found on this machine, and the registry has not been heard since
        self._has_none = False  # the registry answered, and names no champion
        self._registry = registry
        self._cache = cache
        self._on_champion = on_champion
        self._failed: dict[str, _Failure] = {}  # by alias
        self._said: dict[str, str] = {}

    def look(self) -> None:
        """Look once at the registry. Never raises: what is wrong is logged, once."""
        self._say("registry", self._guarded(self._look_at_champion))
        self.registry_problem = self._said["registry"]
        if self.lineup.champion is None:
            if not self._has_none:  # a registry that says there is none is believed
                self._say("cache", self._guarded(self._from_cache))
            return
        self._say("canary", self._guarded(self._look_at_canary))
        if self.contract.serving.shadow:
            self._say("shadow", self._guarded(self._look_at_shadow))

    def _guarded(self, work: Callable[[], str]) -> str:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the refreshing must survive whatever is wrong
            # No customer is involved here, so the message may be said: it tells an operator what to mend.
            kind = "" if isinstance(error, RegistryError) else f"{type(error).__name__}: "
            return f"{kind}{' '.join(str(error).split())[:500]}"

    def _look_at_champion(self) -> str:
        self._has_none = False
        found = self._registry.version(CHAMPION)
        old = self.lineup.champion
        if found is None:
            self._has_none = True
            kept = f" Version {old.version} goes on serving." if old else ""
            return f"the registry has no champion: promote a version and it is loaded by itself.{kept}"
        new = self._load(CHAMPION, found, old)
        self.from_cache = False
        if new is not old:
            self._appoint(new)
        return ""

    def _from_cache(self) -> str:
        kept = self._cache.last_good()
        if kept is None:
            return ""
        self._appoint(self._ready(kept))
        self.from_cache = True
        log.warning("version %s is served from this machine's cache until the registry answers", kept.version.version)
        return ""

    def _appoint(self, new: Served) -> None:
        old = self.lineup.champion
        canary = self.lineup.canary
        if canary is not None and canary.version == new.version:  # it answers for everybody now
            self.lineup = replace(self.lineup, champion=new, canary=None, share=0.0)
        else:
            self.lineup = replace(self.lineup, champion=new)
        self._on_champion(new, old)
        self._tidy()
        log.info("version %s is the champion and serves from now on", new.version)

    def _look_at_canary(self) -> str:
        found = self._registry.version(CANARY)
        champion, old = self.lineup.champion, self.lineup.canary
        if found is None or (champion is not None and found.version == champion.version):
            if old is not None:
                self.lineup = replace(self.lineup, canary=None, share=0.0)
                log.info("version %s is no canary any more", old.version)
            return ""
        try:
            share = float(found.tags.get(CANARY_SHARE, ""))
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise RegistryError(f"canary {found.version}: the tag {CANARY_SHARE} must be a share between 0 and 1.")
        new = self._load(CANARY, found, old)
        if new is not old or share != self.lineup.share:
            self.lineup = replace(self.lineup, canary=new, share=share)
            self._tidy()
            log.info("version %s is the canary and answers %.1f%% of the customers", new.version, 100 * share)
        return ""

    def _look_at_shadow(self) -> str:
        found = self._registry.version(CHALLENGER)
        champion, old = self.lineup.champion, self.lineup.shadow
        if found is None or (champion is not None and found.version == champion.version):
            self.lineup = replace(self.lineup, shadow=None)
            return ""
        new = self._load(CHALLENGER, found, old)
        if new is not old:
            self.lineup = replace(self.lineup, shadow=new)
            self._tidy()
            log.info("version %s scores in the shadow", new.version)
        return ""

    def _load(self, alias: str, found: Version, old: Served | None) -> Served:
        """The version, ready to answer: the one that serves already, or a new one."""
        if old is not None and (old.version, old.run_id) == (found.version, found.run_id):
            return old
        failure = self._failed.get(alias)
        if failure is not None and failure.concerns(found) and time.monotonic() < failure.retry_at:
            raise RegistryError(failure.words)
        try:
            new = self._ready(self._cache.fetch(self._registry, found))
        except Exception as error:
            self._cache.forget(found)
            goes_on = f"version {old.version} goes on serving" if old else "nothing is served"
            words = f"the {alias}, version {found.version}, cannot be loaded; {goes_on}: {error}"
            times = failure.times + 1 if failure is not None and failure.concerns(found) else 1
            pause = min(LONGEST_PAUSE, 0.5 * 2**times)
            self._failed[alias] = _Failure(found.version, found.run_id, words, times, time.monotonic() + pause)
            raise RegistryError(words) from error
        self._failed.pop(alias, None)
        return new

    def _ready(self, kept: Kept) -> Served:
        """A version, loaded, warmed and verified. Raises where it must not serve."""
        from churn_platform.ml.compiled import CompiledModel

        model = CompiledModel.load(kept.path)
        wanted = self.contract.feature_names
        if list(model.features) != wanted:
            changed = sorted(set(model.features) ^ set(wanted)) or ["their order"]
            raise RegistryError(
                f"it was trained on other features than the contract describes (different: {', '.join(changed)}). "
                "Train a new model, or bring the contract back."
            )
        version = kept.version.tags.get(FEATURES_VERSION)
        if version is not None and version != str(self.contract.features.version):
            raise RegistryError(
                f"it was trained on version {version} of the features, and the contract describes version "
                f"{self.contract.features.version}. Train a new model, or bring the contract back."
            )
        model.warm()
        # A customer of whom nothing is known is the hardest input: whoever answers that with no probability is broken.
        nobody = model.probabilities(np.full((1, len(model.numeric)), np.nan), [[None] for _ in model.categorical])
        if not usable(nobody[0]):
            raise RegistryError("it gives no probability for a customer of whom nothing is known.")
        return Served(kept.version.version, kept.version.run_id, kept.version.tags, kept.metrics, model)

    def _tidy(self) -> None:
        """Let the cache know who serves."""
        from serving.registry import Version

        def named(one: Served) -> Version:
            return Version(one.version, one.run_id, one.tags)

        champion, canary, shadow = self.lineup.champion, self.lineup.canary, self.lineup.shadow
        if champion is not None:
            self._cache.keep(named(champion), [named(one) for one in (canary, shadow) if one is not None])

    def _say(self, about: str, problem: str) -> None:
        """Log a problem when it appears or changes, and its end; not at every look."""
        before = self._said.get(about, "")
        self._said[about] = problem
        if problem and problem != before:
            log.warning("%s: %s", about, problem)
        elif before and not problem:
            log.info("%s: all is well again", about)


@dataclass(frozen=True)
class _Failure:
    """A version that did not load."""

    version: str
    run_id: str
    words: str
    times: int
    retry_at: float  # on the monotonic clock

    def concerns(self, found: Version) -> bool:
        return (self.version, self.run_id) == (found.version, found.run_id)


def usable(probability: Any) -> bool:
    """Whether a number is a probability; NaN is none."""
    return bool(0.0 <= probability <= 1.0)
