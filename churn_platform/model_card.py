"""The model card of a version: what it is for, what it was made of, how good it is and for whom, and what it cannot do.

After Mitchell et al. 2019, "Model Cards for Model Reporting". Everything in it is derived from the contract and from
what training measured, so that it cannot be out of date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import LABEL
from churn_platform.explain import explain
from churn_platform.ml import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from churn_platform.contract import Contract
    from churn_platform.ml.training import Trained

_USE = """\
## Intended use

To rank the customers of this contract who are at risk, and to choose whom to contact. The probability is that of
churn as the contract defines it (below), for a customer who is left alone.

## Limits

- It says who is likely to leave, not who would stay because of an offer: `retention_effect` measures that.
- It knows customers as they were in the windows below, and was tested on no other countries, channels or times.
- A customer unlike all that it has seen (a new segment, most features missing) gets a number all the same.
- It must not be used to refuse anybody a service or a price."""


def card(contract: Contract, trained: Trained, about: Mapping[str, str]) -> str:
    """The card, as Markdown.

    Args:
        contract: what the model was asked for.
        trained: the model and its evidence.
        about: the tags of the version: window, versions of the inputs, libraries and the like.
    """
    parts = trained.splits
    measured = [name for name in metrics.NAMES if f"test_{name}" in trained.metrics]
    shown = [key for key in ("training_set_version", "inputs", "code", "libraries") if key in about]
    lines = [
        f"# Model card: churn of {contract.name}, as of {about.get('window', 'now')}",
        "",
        f"A model ({contract.model.family}) of how likely a customer is to churn. {contract.owner} answers for it.",
        "",
        *_USE.splitlines(),
        "",
        "## Data",
        "",
        *(f"- {key}: `{about[key]}`" for key in shown),
        f"- divided by {parts.by}; {parts.left_out:,} rows are left out, whose labels were not known in time (embargo)",
        "",
        "| part | rows | churn rate | used for |",
        "|---|---|---|---|",
    ]
    uses = {
        "train": "fitting, search",
        "validation": "calibration, threshold, fitting",
        "test": "the gates and this card, no choice",
    }
    for name, use in uses.items():
        rows = getattr(parts, name)
        lines.append(f"| {name} | {len(rows):,} | {rows[LABEL].mean():.3f} | {use} |")
    lines += ["", "## How good it is", "", "| metric | validation | test |", "|---|---|---|"]
    for name in measured:
        validation = trained.metrics.get(f"validation_{name}", float("nan"))
        lines.append(f"| {name} | {validation:.4f} | {trained.metrics[f'test_{name}']:.4f} |")
    lines += ["", *_slices(contract, trained)]
    lines += [
        "## Probabilities and decisions",
        "",
        f"- calibration: {trained.calibration}",
        f"- High Risk from a probability of {trained.threshold:.4f} on, {_why(contract, trained.threshold)}",
        f"- parameters: `{trained.parameters}`",
        "",
        "## The contract, in words",
        "",
        "```",
        explain(contract),
        "```",
        "",
    ]
    return "\n".join(lines)


def _why(contract: Contract, threshold: float) -> str:
    if contract.value is None:
        return "as the contract says"
    if threshold == contract.model.threshold:
        return "as the contract says: on the validation window, no threshold earned anything"
    return "which earned most on the validation window"


def summary(contract: Contract, trained: Trained, about: Mapping[str, str], kept_as: str) -> str:
    """What the registry says of a version at first sight, and where its card is; Markdown.

    Args:
        contract: what the model was asked for.
        trained: the model and its evidence.
        about: the tags of the version.
        kept_as: the name of the card among the artifacts of the version's run.
    """
    shown = [name for name in ("roc_auc", "brier", "calibration_error") if f"test_{name}" in trained.metrics]
    measured = ", ".join(f"{name} {trained.metrics[f'test_{name}']:.4f}" for name in shown)
    rows = len(trained.splits.train) + len(trained.splits.validation)
    return (
        f"{contract.model.family} as of {about.get('window', 'now')}, fitted on {rows:,} rows, High Risk from "
        f"{trained.threshold:.4f} on. On {len(trained.splits.test):,} test rows: {measured or 'nothing measured'}. "
        f"The model card is the artifact `{kept_as}` of its run."
    )


def _slices(contract: Contract, trained: Trained) -> list[str]:
    test = trained.splits.test
    labels = test[LABEL].to_numpy(dtype="float64")
    found = [metrics.by_slice(test, column, labels, trained.test_probability) for column in contract.slices]
    rows = [row for table in found for row in table.to_dict("records")]
    if not rows:
        return ["The contract names no slices, or none has enough test rows of both kinds.", ""]
    lines = ["| test customers with | rows | churn rate | mean probability | ROC AUC |", "|---|---|---|---|---|"]
    for row in rows:
        rates = (f"{row[name]:.3f}" for name in ("churn_rate", "mean_probability", "roc_auc"))
        lines.append(f"| {row['slice']} | {row['rows']:,} | {' | '.join(rates)} |")
    return [*lines, ""]
