"""The model registry, read without MLflow: importing it costs the endpoint 140 MB and three seconds.

An MLflow server is asked by its documented REST API, and hands out the artifacts itself, so the endpoint needs no
access to where they are kept. On a laptop the registry is an SQLite file, of which a few tables are read. Either way
it is MLflow's own record that says who is champion.

What was loaded last is kept in a folder, for a start while the registry is away.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from churn_platform.registered import COMPILED, model_name

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.settings import Settings


class RegistryError(RuntimeError):
    """The registry cannot be reached, or does not hold what was asked for."""


@dataclass(frozen=True)
class Version:
    """A registered version, as far as serving goes."""

    version: str
    run_id: str
    tags: dict[str, str]


class Registry(Protocol):
    """Who is champion, and what it is made of."""

    def version(self, alias: str) -> Version | None:
        """The version that an alias names, or None where it names none. Raises RegistryError."""

    def metrics(self, version: Version) -> dict[str, float]:
        """What was measured of a version when it was trained. Raises RegistryError."""

    def fetch(self, version: Version, target: Path) -> None:
        """Write the version's compiled model to a file. Raises RegistryError."""


def registry(contract: Contract, settings: Settings, timeout: float = 10.0) -> Registry:
    """The registry that the settings name.

    Raises:
        RegistryError: it is of a kind that is not read here.
    """
    name = model_name(contract)
    uri = settings.tracking_uri
    if uri.startswith(("http://", "https://")):
        return HttpRegistry(uri.rstrip("/"), name, timeout)
    if uri.startswith("sqlite:///"):
        return SqliteRegistry(Path(uri.removeprefix("sqlite:///")), name)
    kind = uri.split(":", 1)[0]
    raise RegistryError(
        f"CHURN_MLFLOW_TRACKING_URI is of the kind {kind}: the endpoint reads the registry from an MLflow server "
        "(http or https) or from an SQLite file."
    )


class HttpRegistry:
    """An MLflow server. Credentials come from the variables that MLflow itself reads."""

    def __init__(self, base: str, name: str, timeout: float) -> None:
        self.base = base
        self.name = name
        self.timeout = timeout

    def version(self, alias: str) -> Version | None:
        """See Registry."""
        try:
            found = self._ask("registered-models/alias", name=self.name, alias=alias)["model_version"]
        except _MissingError:
            return None
        tags = {tag["key"]: tag.get("value", "") for tag in found.get("tags", [])}
        return Version(str(found["version"]), str(found.get("run_id", "")), tags)

    def metrics(self, version: Version) -> dict[str, float]:
        """See Registry."""
        measured = self._run(version).get("data", {}).get("metrics", [])
        return {metric["key"]: float(metric["value"]) for metric in measured}

    def fetch(self, version: Version, target: Path) -> None:
        """See Registry."""
        root = self._run(version)["info"]["artifact_uri"]
        if root.startswith("mlflow-artifacts:"):  # the server keeps them, or passes them on
            path = urllib.parse.urlsplit(root).path.strip("/")
            url = f"{self.base}/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(path)}/{COMPILED}"
        else:  # kept elsewhere, as by a server that was started with --no-serve-artifacts: it reads them for us
            query = urllib.parse.urlencode({"path": COMPILED, "run_uuid": version.run_id})
            url = f"{self.base}/get-artifact?{query}"
        try:
            with self._open(url) as answer, target.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except _MissingError:
            raise _no_compiled_model(version) from None

    def _run(self, version: Version) -> dict[str, Any]:
        run: dict[str, Any] = self._ask("runs/get", run_id=version.run_id)["run"]
        return run

    def _ask(self, path: str, **query: str) -> dict[str, Any]:
        with self._open(f"{self.base}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}") as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _open(self, url: str) -> Any:
        request = urllib.request.Request(url, headers=_credentials())  # noqa: S310 - http or https, by `registry`
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)  # noqa: S310
        except urllib.error.HTTPError as error:
            code, words = _said(error)
            if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "alias" in words):
                raise _MissingError(words) from None
            raise RegistryError(f"the MLflow server answered {error.code}: {words}") from None
        except (OSError, ValueError) as error:
            raise RegistryError(f"the MLflow server at {self.base} cannot be reached: {error}") from None


def _no_compiled_model(version: Version) -> RegistryError:
    return RegistryError(
        f"version {version.version} has no {COMPILED}, without which it is not served. "
        "Train a new model: job `retrain`."
    )


class _MissingError(RegistryError):
    """What was asked for is not there."""


def _said(error: urllib.error.HTTPError) -> tuple[str, str]:
    """MLflow's error code and its words."""
    text = error.read(4096).decode(errors="replace")
    try:
        body = json.loads(text)
        return str(body.get("error_code", "")), str(body.get("message", ""))[:300]
    except (ValueError, AttributeError):
        return "", " ".join(text.split())[:300]


def _credentials() -> dict[str, str]:
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}


class SqliteRegistry:
    """MLflow's database on this machine, opened for reading only."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    def version(self, alias: str) -> Version | None:
        """See Registry."""
        if not self.path.exists():
            return None
        found = self._select(
            "SELECT v.version, v.run_id FROM registered_model_aliases a JOIN model_versions v "
            "ON v.name = a.name AND v.version = a.version WHERE a.name = ? AND a.alias = ?",
            self.name,
            alias,
        )
        if not found:
            return None
        version, run_id = found[0]
        tags = dict(
            self._select("SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", self.name, version)
        )
        return Version(str(version), str(run_id), tags)

    def metrics(self, version: Version) -> dict[str, float]:
        """See Registry."""
        return dict(self._select("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", version.run_id))

    def fetch(self, version: Version, target: Path) -> None:
        """See Registry."""
        found = self._select("SELECT artifact_uri FROM runs WHERE run_uuid = ?", version.run_id)
        if not found:
            raise RegistryError(f"the run of version {version.version} is not there.")
        root = urllib.parse.unquote(str(found[0][0]).removeprefix("file://"))
        try:
            if "://" in root:
                import fsspec

                with fsspec.open(f"{root}/{COMPILED}", "rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
            else:
                shutil.copyfile(Path(root) / COMPILED, target)
        except FileNotFoundError:
            raise _no_compiled_model(version) from None
        except OSError as error:
            raise RegistryError(
                f"the compiled model of version {version.version} cannot be read: {error.strerror or error}."
            ) from None

    def _select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"file:{urllib.parse.quote(str(self.path))}?mode=ro", uri=True)) as con:
                return con.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if "no such table" in str(error):  # it is being made right now
                return []
            raise RegistryError(f"the registry {self.path} cannot be read: {error}") from None


# ------------------------------------------------------------------------------- the last good model, on local disk


@dataclass(frozen=True)
class Kept:
    """A version with its compiled model in a local file."""

    version: Version
    metrics: dict[str, float]
    path: Path


class Cache:
    """The models that are served now, in a folder. Workers may share it: files appear whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch(self, registry: Registry, version: Version) -> Kept:
        """Bring a version here, where it is not here yet. Raises RegistryError."""
        path = self._path(version)
        noted = self._noted(path)
        if noted is not None:
            return Kept(version, noted.metrics, path)
        self.folder.mkdir(parents=True, exist_ok=True)
        metrics = registry.metrics(version)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
            part = Path(file.name)
        try:
            registry.fetch(version, part)
            note = part.with_suffix(".note")
            note.write_text(json.dumps({**asdict(version), "metrics": metrics}))
            note.replace(path.with_suffix(".json"))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return Kept(version, metrics, path)

    def forget(self, version: Version) -> None:
        """Remove a model that turned out to be unusable, so that the next look fetches it anew."""
        self._path(version).unlink(missing_ok=True)

    def keep(self, version: Version, others: list[Version]) -> None:
        """Remember a version as the last that served well, and remove those that nobody serves any more."""
        self._write(self.folder / "last_good", self._path(version).name)
        wanted = {self._path(one).stem for one in [version, *others]}
        for path in self.folder.iterdir():
            if path.suffix in (".npz", ".json") and path.stem not in wanted:
                path.unlink(missing_ok=True)

    def last_good(self) -> Kept | None:
        """What served well last, or None."""
        try:
            name = (self.folder / "last_good").read_text().strip()
        except OSError:
            return None
        return self._noted(self.folder / name)

    def _path(self, version: Version) -> Path:
        # the run as well as the number: a registry that was made anew counts from 1 again
        return self.folder / f"{version.version}-{version.run_id}.npz"

    @staticmethod
    def _noted(path: Path) -> Kept | None:
        """What is here under a name; None where it is not, or not whole."""
        try:
            noted = json.loads(path.with_suffix(".json").read_text())
            version = Version(noted["version"], noted["run_id"], noted["tags"])
            return Kept(version, noted["metrics"], path) if path.is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
