"""A web app that submits: FastAPI takes an order and leaves the slow part to a worker.

pip install fastapi uvicorn
uvicorn web:api                     and beside it: jqd worker webhooks:app -q webhooks
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, HttpUrl

import jqd
from webhooks import app, deliver


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with app:  # closes the connection of this event loop when the web server stops
        yield


api = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    item: str
    notify: HttpUrl


@api.post("/orders", status_code=202)
async def order(order: Order, idempotency_key: Annotated[str | None, Header()] = None) -> dict[str, str]:
    """Take an order, and have its receiver told."""
    # On disk when this returns, before the browser hears of it. A browser that asks again with the same key gets the
    # job that is there, for 24 hours, and nobody is told twice.
    task = deliver.options(idempotency_key=idempotency_key) if idempotency_key else deliver
    try:
        job = await task.submit(str(order.notify), {"item": order.item})
    except jqd.errors.UnavailableError as error:  # no daemon, or it takes nothing now: nothing was promised
        raise HTTPException(503, str(error)) from error
    # An id as text: JavaScript reads numbers only up to 2^53.
    return {"job_id": str(job.job_id)}


@api.get("/orders/{job_id}")
async def status(job_id: int) -> dict[str, str | int | None]:
    """Say how far it is."""
    try:
        info = await deliver.handle(job_id).info()
    except jqd.errors.JobNotFound as error:  # or forgotten: a finished job is kept for an hour
        raise HTTPException(404, str(error)) from error
    return {"state": info.state, "attempt": info.attempt, "error": info.error or None}
