"""Reading `contract.yaml`: strictly, and with all problems at once, each with its line, its key and the remedy."""

from __future__ import annotations

import difflib
import re
from datetime import date
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from churn_platform.contract import CompleteJourney, Contract, Files, Postgres, Simulated
from churn_platform.contradictions import Problem, contradictions

if TYPE_CHECKING:
    from pathlib import Path


class ContractError(ValueError):
    """The contract cannot be used. `problems` holds all that is wrong, not only the first."""

    def __init__(self, problems: list[Problem], source: str) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        super().__init__(f"{source} has {many}:\n{lines}")


def load(path: Path) -> Contract:
    """Read and check a contract.

    Raises:
        ContractError: the file is missing, is not YAML, or breaks a rule; all problems are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "Create it, or say where it is with CHURN_CONTRACT=/path/to/contract.yaml."
        raise ContractError([Problem((), "there is no such file.", remedy)], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        remedy = "It must be a readable text file in UTF-8."
        raise ContractError([Problem((), f"it cannot be read ({error}).", remedy)], str(path)) from None
    return parse(text, str(path))


def parse(text: str, source: str = "contract.yaml") -> Contract:
    """Check the text of a contract; `source` is what error messages call it. Raises ContractError."""
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        problems = _index_lines(node, (), lines)
        impossible = _impossible_values(node, ())
        if impossible:
            raise ContractError(problems + impossible, source)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"this is not YAML: {getattr(error, 'problem', None) or error}."
        remedy = "Mind indentation, colons and quotes around text with special characters."
        raise ContractError([Problem((), what, remedy, mark.line + 1 if mark else None)], source) from None
    except RecursionError:
        raise ContractError([Problem((), "it is nested without end.", "Write it without anchors.")], source) from None
    if not isinstance(data, dict):
        what = "the file holds no keys." if data is None else f"the file holds a {type(data).__name__}, not keys."
        raise ContractError([*problems, Problem((), what, "Start from one of docs/examples/.")], source)
    try:
        contract = Contract.model_validate(data)
    except ValidationError as error:
        problems += _merged([_explain(details) for details in error.errors(include_url=False)])
    else:
        problems += contradictions(contract)
        if not problems:
            return contract
    located = [
        Problem(problem.path, problem.what, problem.remedy, problem.line or _line_of(problem.path, lines))
        for problem in problems
    ]
    raise ContractError(located, source)


def _index_lines(
    node: yaml.Node | None, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> list[Problem]:
    """Fill `lines` with the line of every key; the keys that stand there twice are returned as problems."""
    problems: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, str(key.value))
            line = key.start_mark.line + 1
            if child in lines:
                what = f"this key stands twice (first on line {lines[child]})."
                problems.append(Problem(child, what, "Keep one of them.", line))
            lines[child] = line
            problems += _index_lines(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*path, position)] = value.start_mark.line + 1
            problems += _index_lines(value, (*path, position), lines)
    return problems


def _impossible_values(node: yaml.Node | None, path: tuple[str | int, ...]) -> list[Problem]:
    """Values that look like a date or a number and are none, such as 2017-02-30: YAML's reader stumbles over them."""
    if isinstance(node, yaml.MappingNode):
        return [problem for key, value in node.value for problem in _impossible_values(value, (*path, str(key.value)))]
    if isinstance(node, yaml.SequenceNode):
        return [
            problem for place, value in enumerate(node.value) for problem in _impossible_values(value, (*path, place))
        ]
    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.SafeLoader("").construct_object(node)
        except yaml.YAMLError:
            return []  # reported by the reader, with its place
        except (ValueError, OverflowError, AttributeError, KeyError, TypeError, IndexError) as error:
            shown = node.value[:40]
            remedy = "Correct it; text goes in quotes."
            return [Problem(path, f"{shown!r} is no such value: {error}.", remedy, node.start_mark.line + 1)]
    return []


def _line_of(path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> int:
    """The line of a key, or of the nearest section above it (a missing key has no line of its own)."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


_SOURCES: dict[str, type[BaseModel]] = {
    "complete_journey": CompleteJourney,
    "simulated": Simulated,
    "files": Files,
    "postgres": Postgres,
}


def _model_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that describes the section at `path`, to suggest the key that was meant."""
    annotation: Any = Contract
    for position, part in enumerate(path):
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]  # `part` is a name that the team chose
        elif position == 1 and path[0] == "source":
            annotation = _SOURCES.get(str(part))
        elif get_origin(annotation) is list:
            annotation = get_args(annotation)[0]
        else:
            model = _first_model(annotation)
            field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None) if model else None
            if field is None:
                return None
            annotation = field.annotation
    return _first_model(annotation)


def _first_model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Label | None`."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


_ALTERNATIVES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "date": "a date",
}


def _explain(details: Any) -> Problem:
    """A pydantic error in our words: what is wrong and what to do."""
    path = tuple(part for part in details["loc"] if part != "[key]")
    if len(path) > 1 and path[0] == "source" and path[1] in _SOURCES:
        path = (path[0], *path[2:])
    kind, message, given = details["type"], details["msg"], details.get("input")
    if kind == "extra_forbidden":
        found = (path, "this key is not known.", _near_key(details["loc"]))
    elif kind == "missing":
        found = (path, "this key is required and missing.", f"Add `{path[-1]}:` to this section.")
    elif kind in ("literal_error", "enum", "union_tag_invalid"):
        expected = str(details["ctx"].get("expected") or details["ctx"].get("expected_tags"))
        value = details["ctx"].get("tag", given)
        near = difflib.get_close_matches(str(value).lower(), re.findall(r"'([^']+)'", expected), n=1, cutoff=0.5)
        meant = f"Did you mean `{near[0]}`? " if near else ""
        path = (*path, "kind") if kind == "union_tag_invalid" else path
        found = (path, f"{value!r} is not one of the choices.", f"{meant}Use one of: {expected}.")
    elif kind == "union_tag_not_found":
        found = ((*path, "kind"), "this key is required and missing.", f"Use one of: {', '.join(_SOURCES)}.")
    elif kind == "string_pattern_mismatch" and path[-1] == "url_variable":  # may be the URL itself: not quoted
        remedy = "Write the variable's name here, and put the URL into the environment."
        found = (path, "this is not the name of an environment variable.", remedy)
    elif kind == "string_pattern_mismatch":
        found = (path, f"{given!r} is not a usable name.", "Use lower-case letters, digits and _.")
    elif kind == "invalid_key":
        found = (path, "a key has to be text.", "Put it in quotes.")
    else:
        shown = f" (found {given!r})" if isinstance(given, str | int | float | bool | date) else ""
        found = (path, f"{message}{shown}.", _remedy_of_type(kind, given))
    return Problem(*found)


def _near_key(location: tuple[str | int, ...]) -> str:
    """What to do about an unknown key."""
    model = _model_at(location[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()] if model else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"Did you mean `{near[0]}`?" if near else f"Remove it; known here: {', '.join(known)}."


def _remedy_of_type(kind: str, given: Any) -> str:
    """What to do about a value of the wrong type."""
    if given is None:
        return "Give a value, or remove the key."
    if kind == "string_type" and isinstance(given, int | float | date):
        return "Put it in quotes."
    quoted = isinstance(given, str) and re.fullmatch(r"[\d.-]+|true|false", given)
    if quoted and kind in ("int_type", "float_type", "bool_type", "date_type"):
        return "Write it without quotes."
    return "Correct the value."


def _merged(problems: list[Problem]) -> list[Problem]:
    """One problem for a key that may have several types, where pydantic reports one for each of them."""
    found: list[Problem] = []
    by_key: dict[tuple[str | int, ...], list[str]] = {}
    for problem in problems:
        last = problem.path[-1] if problem.path else None
        if last not in _ALTERNATIVES or not problem.what.startswith("Input "):
            found.append(problem)
            continue
        key = problem.path[:-1]
        by_key.setdefault(key, []).append(_ALTERNATIVES[str(last)])
        if len(by_key[key]) == 1:
            found.append(Problem(key, "", ""))
        words = " or ".join(by_key[key])
        place = next(
            at for at, earlier in enumerate(found) if earlier.path == key and earlier.what in ("", "wrong type.")
        )
        found[place] = Problem(key, "wrong type.", f"Write {words}.")
    return found
