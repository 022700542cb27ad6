"""The specification's service: `uvicorn benchmarks.serving.reference:app`."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.specification import Answering

app = FastAPI()
answering = Answering()


class PredictionRequest(BaseModel):
    """Whom to predict for."""

    user_id: str


@app.post("/predict")
async def predict(request: PredictionRequest) -> dict[str, Any]:
    """Answer, in the event loop, as the specification has it."""
    return answering.predict(request.user_id)


@app.get("/health")
async def health() -> dict[str, str]:
    """Say that the service is there."""
    return {"status": "healthy"}
