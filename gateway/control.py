"""The control routes: models, health, metrics, administration; and an answer in the usual shape for all other paths."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from gateway.admin_page import POLICY, page
from gateway.billing import BillingError
from gateway.config_file import path_of
from gateway.database import StoreError
from gateway.errors import ApiError
from gateway.limit_store import LimitStoreAway
from gateway.openai import PATHS
from gateway.secured import Secured

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.fleet import Fleet
    from gateway.auth import Key
    from gateway.catalog import Catalog
    from gateway.policy import Policy
    from gateway.telemetry import Telemetry

log = logging.getLogger(__name__)

_READ = ["GET", "HEAD"]
_DOCUMENT = "/admin/openapi.json"
_ELSEWHERE = " here: administration has an address of its own (admin.listen)"


class ModelCard(BaseModel):
    """A model as OpenAI's API lists it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "tidegate"


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: str


def control_app(administration: APIRouter | None, *others: APIRouter) -> FastAPI:
    """What is described as OpenAPI is administration, where it is there; the rest is OpenAI's and Prometheus'."""
    app = FastAPI(
        title="Tidegate",
        version=version("tidegate"),
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere
        redoc_url=None,
        openapi_url=None if administration is None else _DOCUMENT,
        # A redirect from a path with a slash too many would be to whatever the request's Host header says.
        redirect_slashes=False,
    )
    if administration is not None:
        app.include_router(administration)

        @app.api_route("/admin/docs", methods=_READ, include_in_schema=False)
        async def docs() -> Response:
            return HTMLResponse(page(app.openapi(), _DOCUMENT), headers={"content-security-policy": POLICY})

    for each in others:
        app.include_router(each, include_in_schema=False)
    show_errors(app)
    app.add_middleware(Secured)
    return app


def health_routes(fleet: Fleet) -> APIRouter:
    routes = APIRouter(prefix="/health")

    @routes.api_route("/live", methods=_READ)
    async def live() -> Health:
        return Health(status="ok")

    @routes.api_route("/ready", methods=_READ)
    async def ready(request: Request, response: Response) -> Health:
        leaving = request.state.leaving()
        if fleet.ready and not leaving:
            return Health(status="ok")
        response.status_code = 503
        return Health(status="shutting down" if leaving else "no endpoint can serve")

    return routes


def metrics_routes(telemetry: Telemetry) -> APIRouter:
    routes = APIRouter()

    @routes.api_route("/metrics", methods=_READ)
    async def metrics() -> Response:
        collector = None if telemetry.of_all is None else await telemetry.of_all()
        return Response(telemetry.page(collector), media_type=CONTENT_TYPE_LATEST)

    return routes


def show_errors(app: FastAPI) -> None:
    """In the usual shape."""
    app.add_exception_handler(ApiError, _shown)
    app.add_exception_handler(StoreError, _shown_of_store)
    app.add_exception_handler(BillingError, _shown_of_ledger)
    app.add_exception_handler(LimitStoreAway, _shown_of_limits)
    app.add_exception_handler(RequestValidationError, _shown_of_body)
    app.add_exception_handler(HTTPException, _shown_http)


def models_routes(catalog: Catalog, caller: Callable[[Request], Key]) -> APIRouter:
    """`caller` says who asks, with a key for calls, or raises ApiError."""

    def policy_of(request: Request) -> Policy | None:
        policy = caller(request).policy
        if policy is not None:
            policy.expect_api("models")
        return policy

    def card(name: str) -> ModelCard:
        return ModelCard(id=name, created=catalog.created_s)

    routes = APIRouter(prefix="/v1/models")

    @routes.api_route("", methods=_READ)
    async def list_models(request: Request) -> ModelList:
        return ModelList(data=[card(name) for name in catalog.listed(policy_of(request))])

    @routes.api_route("/{name:path}", methods=_READ)
    async def get_model(name: str, request: Request) -> ModelCard:
        return card(catalog.listed_name(name, policy_of(request)))

    return routes


async def _shown(_request: Request, error: Any) -> Response:
    return Response(error.body(), error.status, {k.decode(): v.decode() for k, v in error.headers()})


_OF_LEDGER = {
    "Unknown": ("subject_not_found", "whom"),
    "Conflict": ("idempotency_conflict", "idempotency_key"),
    "BadOrder": ("invalid_value", None),
}


async def _shown_of_ledger(request: Request, error: Any) -> Response:
    code, param = _OF_LEDGER.get(type(error).__name__, ("billing_refused", None))
    return await _shown(request, ApiError(code, str(error), param=param))


async def _shown_of_limits(request: Request, error: Any) -> Response:
    return await _shown(request, ApiError("limits_unavailable", f"Redis cannot be asked: {error}"))


_OF_STORE = {
    "NotFound": "subject_not_found",
    "Taken": "name_taken",
    "BadName": "invalid_value",
    "Unfit": "invalid_value",
}


async def _shown_of_store(request: Request, error: Any) -> Response:
    code = _OF_STORE.get(type(error).__name__)
    if code is None:
        log.warning("%s %s could not be answered: %s", request.method, request.url.path, error)
        message = "the database cannot be reached now"
        return await _shown(request, ApiError("database_away", message, retry_after_s=1.0))
    return await _shown(
        request, ApiError(code, str(error), param="name" if type(error).__name__ == "BadName" else None)
    )


async def _shown_of_body(request: Request, error: Any) -> Response:
    """All that is wrong with what was sent, each at its place."""
    problems = []
    for detail in error.errors():
        if detail["type"] == "json_invalid":
            return await _shown(request, ApiError("invalid_json", "the body is no JSON"))
        location = detail["loc"][1:]
        place = path_of(location[:-1] if location and location[-1] == "[key]" else location)
        problems.append((place, detail["msg"]))
    shown = "; ".join(f"{place}: {message}" if place else message for place, message in problems)
    return await _shown(request, ApiError("invalid_value", shown, param=problems[0][0] or None))


def _meant(path: str) -> str:
    """What an SDK asks for whose base URL lacks its /v1, or has it twice."""
    known = (*(path.decode() for path in PATHS), "/v1/models")
    found = [each for each in (f"/v1{path}", path.removeprefix("/v1")) if each in known]
    return f"; did you mean {found[0]}? A base URL ends with /v1, once" if found else ""


def _is_elsewhere(request: Request) -> bool:
    """Whether it is for administrators, and has come where they have nothing."""
    return request.app.openapi_url is None and request.url.path.startswith(("/admin", "/metrics"))


async def _shown_http(request: Request, error: Any) -> Response:
    path = request.url.path[:200]
    if error.status_code == 405:
        allow = ", ".join(sorted(error.headers["Allow"].split(", ")))
        failure = ApiError(
            "method_not_allowed",
            f"{path} does not take {request.method}",
            headers=[(b"allow", allow.encode())],
        )
    else:
        elsewhere = _ELSEWHERE if _is_elsewhere(request) else _meant(path)
        failure = ApiError("unknown_url", f"there is no {request.method} {path}{elsewhere}")
    return await _shown(request, failure)
