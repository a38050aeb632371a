"""The section of the configuration that says who is told of usage, and in which words."""

from __future__ import annotations

import base64
import binascii
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from gateway.config_section import (
    ApiKey,
    AuthorityFile,
    Location,
    OpenAIUrl,
    Section,
    no_boolean,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ShapeName = Literal["cloudevents", "lago", "stripe"]
Quantity = Literal[
    "calls",
    "prompt_tokens",
    "uncached_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "charge_nano_usd",
]
"""What a meter counts. Prompt tokens are the cached and the uncached ones, completion tokens have those of reasoning in them."""


def _signing_secret(secret: SecretStr) -> SecretStr:
    """As Standard Webhooks writes them down."""
    kind, _, text = secret.get_secret_value().partition("_")
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if kind != "whsec" or not 24 <= size <= 64:
        raise ValueError("should be whsec_ and 24 to 64 random bytes in base64")
    return secret


SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
WebhookName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MeterName = Annotated[str, Field(pattern=r"^[!-~]{1,100}$")]
Source = Annotated[str, Field(pattern=r"^[A-Za-z0-9/][A-Za-z0-9._~:/?#@!$&'()*+,;=%-]{0,199}$")]


class WebhookSection(Section):
    url: OpenAIUrl = Field(
        description="Where events are posted to, such as `https://openmeter.cloud/api/v1/events`, "
        "`https://api.getlago.com/api/v1/events/batch` or `https://api.stripe.com/v1/billing/meter_events`."
    )
    shape: ShapeName = Field(
        "cloudevents", description="`cloudevents`, which OpenMeter takes as well, `lago` or `stripe`."
    )
    api_key: ApiKey | None = Field(None, description="Sent there as a bearer token.")
    secrets: tuple[SigningSecret, ...] = Field(
        (),
        max_length=4,
        description="`whsec_...`: requests are signed as Standard Webhooks says; with several, by each, while one takes "
        "the place of another.",
    )
    meters: dict[MeterName, Quantity] = Field(
        {},
        max_length=20,
        description="Of `lago` (codes of billable metrics) and `stripe` (event names of meters): what each counts, one of "
        "`calls`, `prompt_tokens`, `uncached_tokens`, `cached_tokens`, `completion_tokens`, `reasoning_tokens`, "
        "`charge_nano_usd`.",
    )
    customer_from: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="The name of that piece of a tenant's metadata which says what it is called there; without it, as here. "
        "Of `stripe`, without it, `stripe_customer_id`.",
    )
    source: Source = Field(
        "tidegate",
        description="Of `cloudevents`: which deployment they come from, where several post to the same place.",
    )
    batch: Annotated[int, BeforeValidator(no_boolean)] = Field(
        100,
        ge=1,
        le=1000,
        description="Most events in a request. 1: each by itself. Lago takes 100 at most, Stripe one.",
    )
    timeout_s: Annotated[float, BeforeValidator(no_boolean)] = Field(
        10, gt=0, le=300, allow_inf_nan=False, description="For one request."
    )
    ca_file: AuthorityFile | None = Field(None, description="PEM file with the CA to trust for https.")
    allow_http: bool = Field(
        default=False,
        description="Permits an `http` URL that is not of this machine: keys go there in the clear.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        shape, meters = given.get("shape") or "cloudevents", given.get("meters")
        if shape in ("lago", "stripe"):
            if not meters:
                yield ("meters",), f"is required where the shape is {shape}"
            if given.get("api_key") is None:
                yield ("api_key",), f"is required where the shape is {shape}"
        elif meters:
            yield ("meters",), "is for lago and stripe; CloudEvents carry all quantities"
        batch = given.get("batch")
        if shape == "lago" and isinstance(batch, int) and batch > 100:
            yield ("batch",), "should be 100 at most: more is refused by Lago"
        url, forced = given.get("url"), str(given.get("allow_http")).lower() == "true"
        if isinstance(url, str) and url.lower().startswith("http:") and not forced and not _is_here(url):
            yield ("url",), "should be https; set allow_http: true if that is meant"
        if given.get("ca_file") is not None and str(url).lower().startswith("http:"):
            yield ("ca_file",), "is of use only with an https URL"

    @property
    def resolved_customer_from(self) -> str | None:
        return self.customer_from or ("stripe_customer_id" if self.shape == "stripe" else None)


def _is_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
