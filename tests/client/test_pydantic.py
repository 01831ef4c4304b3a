"""Real pydantic models as arguments and results, over the wire."""

from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, HttpUrl, SecretStr

from jqd import testing
from jqd.client.app import App
from jqd.errors import InvalidArgument, JobFailed


class Line(BaseModel):
    item: str
    price: Decimal = Field(gt=0)


class Order(BaseModel):
    id: UUID
    at: datetime
    hook: HttpUrl
    address: IPv4Address
    photo: Path
    lines: list[Line]


ORDER = Order(
    id=UUID(int=7),
    at=datetime(2030, 1, 2, tzinfo=UTC),
    hook=HttpUrl("https://shop.example/hook"),
    address=IPv4Address("192.0.2.1"),
    photo=Path("/srv/photo 1.png"),
    lines=[Line(item="tea", price=Decimal("1.50")), Line(item="milk", price=Decimal("0.99"))],
)


def test_models_come_back_as_what_they_are():
    app = App()
    seen: list[Order] = []

    @app.task()
    def double(order: Order, more: list[Line]) -> Order:
        seen.append(order)
        return order.model_copy(update={"lines": [*order.lines, *more]})

    with testing.inline(app):
        result = double.submit_and_wait_sync(ORDER, [Line(item="bread", price=Decimal(2))])
    assert seen == [ORDER] and type(result) is Order
    assert [line.item for line in result.lines] == ["tea", "milk", "bread"]


def test_what_a_model_refuses_is_refused_without_another_attempt():
    app = App()

    @app.task()
    def price(line: Line) -> str:
        return str(line.price)

    with testing.inline(app):
        handle = price.submit_sync(Line.model_construct(item="tea", price=Decimal(-1)))
        with pytest.raises(JobFailed, match="1 validation error for Line"):
            handle.wait()
        info = handle.info()
    assert "greater than 0" in info.error
    assert (info.state, info.reason, info.attempt) == ("dead", "refused", 1)


def test_a_secret_is_refused_and_not_sent_as_stars():
    class Account(BaseModel):
        password: SecretStr

    app = App()

    @app.task()
    def login(account: Account) -> None: ...

    with testing.inline(app), pytest.raises(InvalidArgument, match="SecretStr cannot be sent"):
        login.submit_sync(Account(password=SecretStr("swordfish")))
