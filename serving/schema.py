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
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic.json_schema import SkipJsonSchema, models_json_schema
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from churn_platform.contract import Contract

HIGH_RISK = "High Risk"
LOW_RISK = "Low Risk"

EXPLAIN = "explain"  # the fields of requests that the contract does not name
CUSTOMERS = "customers"

RESPONSE_VERSION = 1  # of the response's form; a field that is removed or changes its meaning makes it 2
LONGEST_CUSTOMER = 256  # characters
LARGEST_BODY = 64 * 1024  # bytes, of a request for one customer
LARGEST_BATCH = 1000  # customers
LARGEST_BATCH_BODY = 1024 * 1024  # bytes

# Every way to be refused: the code that programs read, and the HTTP status that it goes with.
STATUSES = {
    "malformed_json": 422,
    "invalid_request": 422,
    "unauthorized": 401,
    "unsupported_media_type": 415,
    "body_too_large": 413,
    "unknown_customer": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_many_requests": 429,
    "overloaded": 503,
    "not_ready": 503,
    "features_unavailable": 503,
    "deadline_exceeded": 503,
    "stale_features": 503,
    "unusable_features": 503,
    "unusable_answer": 503,
    "internal_error": 500,
}
# Seconds after which it is worth asking again.
RETRY_AFTER = {"overloaded": 1, "deadline_exceeded": 1, "stale_features": 600, "unusable_features": 600}
USUAL_RETRY = 5


class RefusedError(Exception):
    """A request that is not answered with a prediction: `code` is one of STATUSES, `message` is for the caller.

    Callers see the message, so it holds nothing of what the service is made of.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUSES[code]
        self.message = message

    @property
    def body(self) -> dict[str, dict[str, str]]:
        """What the caller is told, `ErrorResponse`."""
        return {"error": {"code": self.code, "message": self.message}}


class ErrorDetail(BaseModel):
    """What went wrong: `code` for programs, `message` for people."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


# ------------------------------------------------------------------------------------------------- the customer


_LEAST, _MOST = -(2**63), 2**63 - 1  # what an integer is here
# Text that is neither blank nor holds control characters, for those who read the description.
_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$"


def _refuse(words: str) -> PydanticCustomError:
    # The braces of a template are the only thing that pydantic reads in it; none of our words has any.
    return PydanticCustomError("customer", words)


def _whole(value: Any) -> Any:
    """A JSON number without a fraction as an integer: 1.0 is 1 to JSON, and to its schemas."""
    return int(value) if type(value) is float and value.is_integer() else value


def _text(value: Any) -> str:
    """A customer of type string. Ids are often numbers to those who call, so a JSON integer is its digits."""
    value = _whole(value)
    if type(value) is int:
        if not _LEAST <= value <= _MOST:  # nor would Python write out an integer of more than 4,300 digits
            raise _refuse("must be text where it is an integer of more than 64 bits")
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
    value = _whole(value)
    if type(value) is not int:
        raise _refuse("must be an integer")
    if not _LEAST <= value <= _MOST:
        raise _refuse("must be an integer of at most 64 bits")
    return value


def _example(contract: Contract) -> str | int:
    return "1001" if contract.customer.type == "string" else 1001


def _customer(contract: Contract) -> Any:
    """The annotation of the customer's field in a request."""
    integer = {"type": "integer", "format": "int64", "minimum": _LEAST, "maximum": _MOST}
    shown: list[dict[str, Any]]
    if contract.customer.type == "integer":
        shown = [integer, {"type": "string", "pattern": "^-?[0-9]{1,18}$"}]
        return Annotated[int, BeforeValidator(_integer), WithJsonSchema({"anyOf": shown})]
    shown = [{"type": "string", "minLength": 1, "maxLength": LONGEST_CUSTOMER, "pattern": _PATTERN}, integer]
    return Annotated[str, BeforeValidator(_text), WithJsonSchema({"anyOf": shown})]


# --------------------------------------------------------------------------------------------------- the models


def request_model(contract: Contract) -> type[BaseModel]:
    """The request: the customer, and whether to explain. The attribute is `customer`, the JSON key the contract's."""
    field: Any = Field(
        alias=contract.serving.customer_field, description="The customer's id", examples=[_example(contract)]
    )
    explain: Any = Field(False, alias=EXPLAIN, description="Whether to say what moved the answer")
    model: type[BaseModel] = create_model(
        "PredictRequest",
        __config__=ConfigDict(extra="forbid", strict=True),
        __doc__="The customer to predict for.",
        customer=(_customer(contract), field),
        explain=(bool, explain),
    )
    return model


def explain_model(contract: Contract) -> type[BaseModel]:
    """The request of /explain: the customer."""
    field: Any = Field(
        alias=contract.serving.customer_field, description="The customer's id", examples=[_example(contract)]
    )
    model: type[BaseModel] = create_model(
        "ExplainRequest",
        __config__=ConfigDict(extra="forbid", strict=True),
        __doc__="The customer to explain the prediction of.",
        customer=(_customer(contract), field),
    )
    return model


def batch_model(contract: Contract) -> type[BaseModel]:
    """The request of /predict/batch: customers, any of whom may be refused by itself."""
    words = {"description": "A customer's id; what is none is refused in its place", "examples": [_example(contract)]}
    anything: Any = Annotated[Any, WithJsonSchema(words)]
    field: Any = Field(
        alias=CUSTOMERS,
        description=f"The customers' ids, {LARGEST_BATCH:,} at most",
        min_length=1,
        max_length=LARGEST_BATCH,
        examples=[[_example(contract)]],
    )
    model: type[BaseModel] = create_model(
        "BatchRequest",
        __config__=ConfigDict(extra="forbid", strict=True),
        __doc__="The customers to predict for.",
        customers=(list[anything], field),
    )
    return model


def response_model(contract: Contract) -> type[BaseModel]:
    """The response, as it is described to callers; `serving.scorer` makes it."""
    fields: dict[str, Any] = {}
    for position, name in enumerate(contract.feature_names):
        kind = str if contract.is_categorical(name) else float
        fields[f"feature_{position}"] = (kind | None, Field(alias=name))
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
        "churn_probability": (float, Field(ge=0, le=1, examples=[0.27])),
        "prediction": (Literal["High Risk", "Low Risk"], ...),
        "features": (features, ...),
        "model_version": (str, Field(description="The registered version that answered", examples=["3"])),
        "feature_timestamp": (
            AwareDatetime,
            Field(description="The time at which the features were true, UTC", examples=["2017-10-01T00:00:00Z"]),
        ),
        "stale": (bool, Field(description="Whether the features are older than the contract allows")),
        "schema_version": (Literal[1], Field(description="The form of this response")),
        "reasons": (
            list[ReasonResponse] | SkipJsonSchema[None],  # type: ignore[misc] # that is how pydantic has it
            Field(None, description="What moved the answer most, where that was asked for"),
        ),
    }
    model: type[BaseModel] = create_model(
        "PredictResponse",
        __config__=ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True),
        __doc__="The prediction, and what it was made from.",
        **shown,
    )
    return model


class ReasonResponse(BaseModel):
    """What one feature did to the score: above 0 it raised the risk."""

    feature: str
    contribution: float
    words: str


def read_request(model: type[BaseModel], body: bytes) -> Any:
    """A request: an instance of the model, `request.customer` and whatever else it has.

    Raises:
        RefusedError: the body is not a valid request. The message never repeats what was sent.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _explain(model, error) from None


def customer_reader(contract: Contract) -> Callable[[Any], str | int]:
    """What reads one item of a batch: returns the customer, or raises RefusedError."""
    adapter: TypeAdapter[Any] = TypeAdapter(_customer(contract), config=ConfigDict(strict=True))
    name = contract.serving.customer_field

    def read(item: Any) -> str | int:
        try:
            customer: str | int = adapter.validate_python(item)
        except ValidationError as error:
            words = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
            raise RefusedError("invalid_request", f'This "{name}" {words}.') from None
        return customer

    return read


def _explain(model: type[BaseModel], error: ValidationError) -> RefusedError:
    key = "customer" if "customer" in model.model_fields else "customers"
    field = model.model_fields[key]
    name, example = field.alias, json.dumps({field.alias: (field.examples or [None])[0]})
    # Neither URL, context nor input: what was sent may be personal data, and is not repeated.
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    kinds = {problem["type"]: problem["msg"] for problem in problems}
    if "json_invalid" in kinds:
        return RefusedError("malformed_json", f"The body is not JSON in UTF-8. Send an object such as {example}.")
    known = " and ".join(f'"{one.alias}"' for one in model.model_fields.values())
    list_words = f'The field "{name}" must be a list of 1 to {LARGEST_BATCH:,} ids. Send an object such as {example}.'
    words = {  # the first that applies
        "missing": f'The field "{name}" is missing. Send an object such as {example}.',
        "extra_forbidden": f"Only {known} may be sent: remove the others. Example: {example}.",
        "customer": f'The field "{name}" {kinds.get("customer")}. Send one such as {example}.',
        "too_long": list_words,
        "too_short": list_words,
        "list_type": list_words,
        "bool_type": f'The field "{EXPLAIN}" must be true or false.',
    }
    usual = f"The body must be an object such as {example}."
    return RefusedError("invalid_request", next((said for kind, said in words.items() if kind in kinds), usual))


# -------------------------------------------------------------------------------------------------- its OpenAPI


class Health(BaseModel):
    """Whether the service can answer, what is missing where it cannot, and what is not as it should be."""

    status: Literal["healthy", "unavailable"]
    model_version: str | None
    feature_store: Literal["available", "unavailable"]
    problems: list[str] = Field(description="What keeps it from answering")
    warnings: list[str] = Field(description="What does not: such as a registry that is away")


class ModelInformation(BaseModel):
    """The champion that answers now."""

    version: str
    run_id: str
    trained_at: datetime | None
    window: str | None = Field(description="The newest window of the data that it was trained on")
    tested_from: str | None
    tested_to: str | None
    metrics: dict[str, float] = Field(description="What was measured on its test window")
    threshold: float
    features: list[str]
    from_cache: bool = Field(description="Whether the registry could not be asked, and the last good model serves")
    canary_version: str | None
    canary_share: float
    shadow_version: str | None


def openapi(contract: Contract, keys: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the endpoint.

    Args:
        contract: names the customer's field and the features.
        keys: whether an API key is asked for.
    """
    response = response_model(contract)
    requests = [request_model(contract), explain_model(contract), batch_model(contract)]
    models: list[type[BaseModel]] = [*requests, response, ErrorResponse, Health, ModelInformation]
    _, schemas = models_json_schema(
        [(model, "validation" if model in requests else "serialization") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    items = schemas["$defs"]
    items["BatchResponse"] = {
        "type": "object",
        "description": "One result for each customer, in the order of the request.",
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/PredictResponse"},
                        {"$ref": "#/components/schemas/ErrorResponse"},
                    ]
                },
            },
            "answered": {"type": "integer", "minimum": 0},
            "refused": {"type": "integer", "minimum": 0},
            "schema_version": {"const": RESPONSE_VERSION},
        },
        "required": ["results", "answered", "refused", "schema_version"],
        "additionalProperties": False,
    }

    def content(name: str, words: str) -> dict[str, Any]:
        reference = {"$ref": f"#/components/schemas/{name}"}
        return {"description": words, "content": {"application/json": {"schema": reference}}}

    def refusals(*statuses: str) -> dict[str, Any]:
        words = {
            "401": "The API key is missing or is none",
            "404": "The customer is not known",
            "413": "The body is too large",
            "415": "The body is not declared to be JSON",
            "422": "The request is not valid",
            "429": "This API key asks too often: see Retry-After",
            "500": "The service made a mistake",
            "503": "No champion yet, the online store does not answer, features are not usable, or too much is asked",
        }
        wanted = [*statuses, *(("401", "429") if keys else ()), "500"]
        return {status: content("ErrorResponse", words[status]) for status in sorted(wanted)}

    def post(operation: str, summary: str, request: type[BaseModel], answer: str, *statuses: str) -> dict[str, Any]:
        return {
            "post": {
                "operationId": operation,
                "summary": summary,
                "requestBody": {"required": True, **content(request.__name__, summary)},
                "responses": {
                    "200": content(answer, "The answer"),
                    **refusals("413", "415", "422", "503", *statuses),
                },
                **({"security": [{"key": []}, {"bearer": []}]} if keys else {}),
            }
        }

    def get(operation: str, summary: str, answer: str, *statuses: str, secured: bool = False) -> dict[str, Any]:
        described: dict[str, Any] = {"operationId": operation, "summary": summary}
        described["responses"] = {"200": content(answer, summary)}
        described["responses"] |= {status: content(answer, "It cannot") for status in statuses if not secured}
        if secured:
            described["responses"] |= refusals(*statuses)
            described |= {"security": [{"key": []}, {"bearer": []}]} if keys else {}
        return {"get": described}

    predict, explain, batch = requests
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Churn predictions: {contract.name}", "version": str(contract.features.version)},
        "paths": {
            "/predict": post("predict", "The probability that a customer churns", predict, "PredictResponse", "404"),
            "/predict/batch": post("predict_batch", "The same for many customers", batch, "BatchResponse"),
            "/explain": post("explain", "The same, and what moved it", explain, "PredictResponse", "404"),
            "/health": get("health", "Whether predictions can be had", "Health", "503"),
            "/model": get("model", "The model that answers", "ModelInformation", "503", secured=True),
        },
        "components": {
            "schemas": items,
            **(
                {
                    "securitySchemes": {
                        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                        "bearer": {"type": "http", "scheme": "bearer"},
                    }
                }
                if keys
                else {}
            ),
        },
    }
