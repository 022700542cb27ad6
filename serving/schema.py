"""What the endpoint takes and answers, derived from the contract, and what it says when it refuses.

The contract names the customer's field and every feature, and such a name may be anything that is JSON. So the
models' fields have names of our own, and the contract's names are their aliases.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import datetime  # noqa: TC003 - pydantic reads it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from churn_platform.contract import Contract

HIGH_RISK = "High Risk"
LOW_RISK = "Low Risk"

LONGEST_CUSTOMER = 256  # characters
LARGEST_BODY = 64 * 1024  # bytes

# Every way to be refused: the code that programs read, and the HTTP status that it goes with.
STATUSES = {
    "malformed_json": 422,
    "invalid_request": 422,
    "unsupported_media_type": 415,
    "body_too_large": 413,
    "unknown_customer": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_ready": 503,
    "features_unavailable": 503,
    "deadline_exceeded": 503,
    "unusable_features": 500,
    "unusable_answer": 500,
    "internal_error": 500,
}


class RefusedError(Exception):
    """A request that is not answered with a prediction: `code` is one of STATUSES, `message` is for the caller.

    Callers see the message, so it holds nothing of what the service is made of.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUSES[code]
        self.message = message


class ErrorDetail(BaseModel):
    """What went wrong: `code` for programs, `message` for people."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


# ------------------------------------------------------------------------------------------------- the customer


def _refuse(words: str) -> PydanticCustomError:
    # The braces of a template are the only thing that pydantic reads in it; none of our words has any.
    return PydanticCustomError("customer", words)


def _text(value: Any) -> str:
    """A customer of type string. Ids are often numbers to those who call, so a JSON integer is its digits."""
    if type(value) is int:
        # The bound comes first: Python refuses to write out an integer of more than 4,300 digits.
        if abs(value) >= 10**LONGEST_CUSTOMER:
            raise _refuse(f"is longer than {LONGEST_CUSTOMER} characters")
        return str(value)
    if not isinstance(value, str):
        raise _refuse("must be text or an integer")
    if not value.strip():
        raise _refuse("is empty")
    if len(value) > LONGEST_CUSTOMER:
        raise _refuse(f"is longer than {LONGEST_CUSTOMER} characters")
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise _refuse("holds control characters")
    return value


def _integer(value: Any) -> int:
    """A customer of type integer. Text that is an integer is taken too: JavaScript cannot hold 64 bits otherwise."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value, re.ASCII):
        value = int(value)
    if type(value) is not int:
        raise _refuse("must be an integer")
    if not -(2**63) <= value < 2**63:
        raise _refuse("must be an integer of at most 64 bits")
    return value


def _example(contract: Contract) -> str | int:
    return "1001" if contract.customer.type == "string" else 1001


def _customer(contract: Contract) -> Any:
    """The annotation of the customer's field in a request."""
    if contract.customer.type == "integer":
        return Annotated[int, BeforeValidator(_integer), WithJsonSchema({"type": "integer", "format": "int64"})]
    shown = [{"type": "string", "minLength": 1, "maxLength": LONGEST_CUSTOMER}, {"type": "integer"}]
    return Annotated[str, BeforeValidator(_text), WithJsonSchema({"anyOf": shown})]


# --------------------------------------------------------------------------------------------------- the models


def request_model(contract: Contract) -> type[BaseModel]:
    """The request: the customer and nothing else. The attribute is `customer`, the JSON key is the contract's."""
    field: Any = Field(
        alias=contract.serving.customer_field, description="The customer's id", examples=[_example(contract)]
    )
    model: type[BaseModel] = create_model(
        "PredictRequest",
        __config__=ConfigDict(extra="forbid", strict=True),
        __doc__="The customer to predict for.",
        customer=(_customer(contract), field),
    )
    return model


def response_model(contract: Contract) -> type[BaseModel]:
    """The response. Made from attributes (`customer`, `features`, ...), written with the contract's names.

    A probability that is none (NaN, 1.2) does not validate: it cannot be answered by mistake.
    """
    fields: dict[str, Any] = {}
    for position, name in enumerate(contract.feature_names):
        if contract.is_categorical(name):
            fields[f"feature_{position}"] = (str | None, Field(alias=name))
        else:
            fields[f"feature_{position}"] = (Annotated[float, Field(allow_inf_nan=False)] | None, Field(alias=name))
    config = ConfigDict(extra="forbid", protected_namespaces=())
    features = create_model(
        "Features",
        __config__=config,
        __doc__="The features that the prediction was made from; null is a value that is not known.",
        **fields,
    )
    shown: dict[str, Any] = {
        "customer": (
            int if contract.customer.type == "integer" else str,
            Field(
                alias=contract.serving.customer_field,
                description="The customer that was asked for",
                examples=[_example(contract)],
            ),
        ),
        "churn_probability": (float, Field(ge=0, le=1, allow_inf_nan=False, examples=[0.27])),
        "prediction": (Literal["High Risk", "Low Risk"], ...),
        "features": (features, ...),
        "model_version": (str, Field(description="The registered version that answered", examples=["3"])),
        "feature_timestamp": (
            AwareDatetime,
            Field(description="The time at which the features were true, UTC", examples=["2017-10-01T00:00:00Z"]),
        ),
    }
    model: type[BaseModel] = create_model(
        "PredictResponse",
        __config__=ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True),
        __doc__="The prediction, and what it was made from.",
        **shown,
    )
    return model


def write_response(model: type[BaseModel], values: dict[str, Any]) -> bytes:
    """A response as JSON.

    Raises:
        RefusedError: the values are no valid response.
    """
    try:
        return model.model_validate(values).model_dump_json(by_alias=True).encode()
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in details["loc"]) for details in error.errors()})
        message = f"The answer is not valid in: {', '.join(fields)}. Tell the service's operators."
        raise RefusedError("unusable_answer", message) from None


def read_request(model: type[BaseModel], body: bytes) -> str | int:
    """The customer that a body asks for.

    Raises:
        RefusedError: the body is not a valid request. The message never repeats what was sent.
    """
    try:
        request: Any = model.model_validate_json(body)
    except ValidationError as error:
        raise _explain(model, error) from None
    customer: str | int = request.customer
    return customer


def _explain(model: type[BaseModel], error: ValidationError) -> RefusedError:
    field = model.model_fields["customer"]
    name, example = field.alias, json.dumps({field.alias: (field.examples or [None])[0]})
    # Neither URL, context nor input: what was sent may be personal data, and is not repeated.
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    kinds = {problem["type"]: problem["msg"] for problem in problems}
    if "json_invalid" in kinds:
        return RefusedError("malformed_json", f"The body is not JSON in UTF-8. Send an object such as {example}.")
    if "missing" in kinds:
        return RefusedError("invalid_request", f'The field "{name}" is missing. Send an object such as {example}.')
    if "extra_forbidden" in kinds:
        return RefusedError(
            "invalid_request", f'Only the field "{name}" is known: remove the others. Example: {example}.'
        )
    if "customer" in kinds:
        return RefusedError("invalid_request", f'The field "{name}" {kinds["customer"]}. Send one such as {example}.')
    return RefusedError("invalid_request", f"The body must be an object such as {example}.")


# -------------------------------------------------------------------------------------------------- its OpenAPI


class Health(BaseModel):
    """Whether the service can answer, and what is missing where it cannot."""

    status: Literal["healthy", "unavailable"]
    model_version: str | None
    feature_store: Literal["available", "unavailable"]
    problems: list[str]


class ModelInformation(BaseModel):
    """The champion that answers now."""

    version: str
    run_id: str
    trained_at: datetime | None
    threshold: float
    features: list[str]


def openapi(contract: Contract, request: type[BaseModel], response: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the endpoint."""
    models: list[type[BaseModel]] = [request, response, ErrorResponse, Health, ModelInformation]
    _, schemas = models_json_schema(
        [(model, "validation" if model is request else "serialization") for model in models],
        ref_template="#/components/schemas/{model}",
    )

    def content(model: type[BaseModel], words: str) -> dict[str, Any]:
        reference = {"$ref": f"#/components/schemas/{model.__name__}"}
        return {"description": words, "content": {"application/json": {"schema": reference}}}

    refusals = {
        "404": content(ErrorResponse, "The customer is not known"),
        "413": content(ErrorResponse, "The body is too large"),
        "415": content(ErrorResponse, "The body is not declared to be JSON"),
        "422": content(ErrorResponse, "The request is not valid"),
        "500": content(ErrorResponse, "The service made a mistake"),
        "503": content(ErrorResponse, "No champion yet, or the online store does not answer"),
    }
    predict = {
        "operationId": "predict",
        "summary": "The probability that a customer churns",
        "requestBody": {"required": True, **content(request, "The customer")},
        "responses": {"200": content(response, "The prediction"), **refusals},
    }
    health = {
        "operationId": "health",
        "summary": "Whether predictions can be had",
        "responses": {"200": content(Health, "They can"), "503": content(Health, "They cannot")},
    }
    model = {
        "operationId": "model",
        "summary": "The model that answers",
        "responses": {"200": content(ModelInformation, "The champion"), "503": refusals["503"]},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Churn predictions: {contract.name}", "version": str(contract.features.version)},
        "paths": {"/predict": {"post": predict}, "/health": {"get": health}, "/model": {"get": model}},
        "components": {"schemas": schemas["$defs"]},
    }
