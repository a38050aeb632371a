"""What the sections of the configuration are made of: their common base and the kinds of scalar that stand in them.

The base reports every problem of a section and of all below it, each where it stands, instead of stopping at the
first; and it drops the values that pydantic would quote, since any of them may be a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from ipaddress import ip_network
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic import Secret as SecretValue
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gateway.policy import OTHERS, TENANT_NAME
from gateway.redis_url import RedisUrl

Location = tuple[str | int, ...]

MOST_PROCESSES = 256

PLAIN_WORDS = {
    "missing": "is required",
    **dict.fromkeys(("model_type", "dict_type"), "should be a mapping"),
    **dict.fromkeys(("tuple_type", "frozen_set_type"), "should be a list"),
    "string_type": "should be text (a number needs quotes)",
    "path_type": "should be text",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "decimal_type", "decimal_parsing"), "should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
    "too_short": "should have at least one item",
    "path_not_file": "no such file",
}
"""For what pydantic calls by Python's names."""


_NOT_PARAMS = {
    "api_key": "; it has a key of its own, beside params",
    "timeout": "; see timeouts",
    **dict.fromkeys(
        ("model", "messages", "input", "stream", "stream_options", "max_retries", "num_retries"), ""
    ),
}


class Section(BaseModel):
    """A mapping in the file. Knows its keys, and reports all that is wrong with it and below it at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """What is wrong between keys. Sees the values as given, so that it can speak even where some are invalid."""
        del given
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        given = {} if given is None else given  # a section whose keys are all commented out
        found: list[tuple[Location, str]] = []
        section = None
        try:
            section = handler(given)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
            found = [(detail["loc"], cls._message(detail)) for detail in details]
        if isinstance(given, Mapping):
            found += cls.cross_check(given)
        if section is not None and not found:
            return section
        raise ValidationError.from_exception_data(
            cls.__name__,
            [
                InitErrorDetails(
                    type=PydanticCustomError("config", "{message}", {"message": message}), loc=loc, input=None
                )
                for loc, message in found
            ],
        ) from None  # the original carries the values

    @classmethod
    def _message(cls, detail: ErrorDetails) -> str:
        if detail["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(detail["loc"][-1]), cls.model_fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(cls.model_fields)}"
            return f"unknown key; {hint}"
        if detail["type"] == "value_error":
            return str(detail["ctx"]["error"])
        return PLAIN_WORDS.get(detail["type"], detail["msg"].removeprefix("Input "))


def given_in(section: Any, key: str) -> Any:
    """A value of a section as given, which may be a mapping, a section made in code, or nothing of the kind."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


def no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # noqa: TRY004 - pydantic collects ValueErrors only
    return value


def processes(value: Any) -> int | Literal["auto"]:
    """How many; checked here, since of a union pydantic says what is wrong with each of its branches."""
    if value == "auto":
        return "auto"
    digits = str(value)
    if isinstance(value, bool) or not digits.isdecimal() or not 1 <= int(digits[:4]) <= MOST_PROCESSES:
        raise ValueError(f"should be a number from 1 to {MOST_PROCESSES}, or auto")
    return int(digits)


def pico_usd_per_token(usd_per_million: Decimal) -> int:
    """Exact: six decimals at most, so that nothing is left behind the point."""
    return int(usd_per_million * 1_000_000)


def millionths(multiplier: Decimal) -> int:
    """Exact, as above."""
    return int(multiplier * 1_000_000)


def usd_per_million(pico_usd_per_token: int) -> str:
    """The other way round, as text without an exponent."""
    whole, rest = divmod(pico_usd_per_token, 1_000_000)
    return f"{whole}.{rest:06d}".rstrip("0").rstrip(".")


def nano_usd(usd: Decimal) -> int:
    """Exact: nine decimals at most."""
    return int(usd * 1_000_000_000)


def nano_usd_text(usd: str) -> int:
    """The same of text. Raises ValueError."""
    try:
        amount = Decimal(usd).scaleb(9)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount != amount.to_integral_value() or abs(amount) > 10**18:
        raise ValueError(f"{usd[:50]!r} is no amount in USD with at most nine decimals")
    return int(amount)


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError(
            "should be a network such as 10.0.0.0/8, or an address, and no bits behind it"
        ) from None


def _sane_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]{0,127}", name):
        raise ValueError(
            "should be 1 to 128 letters, digits and any of . _ : / @ + - [ ], the first a letter or digit"
        )
    return name


def _tenant_name(name: str) -> str:
    if not TENANT_NAME.fullmatch(name):
        raise ValueError("should be 1 to 64 of A-Z a-z 0-9 . _ @ - starting with a letter or digit")
    return name


def _tenant_or_others(name: str) -> str:
    return name if name == OTHERS else _tenant_name(name)


def _web_url(text: str) -> SplitResult:
    """The parts of an http(s) URL. Messages never quote it: what is wrong with it may be a password."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("should be a URL of printable ASCII characters without spaces")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("should be a URL with a valid host and port") from None
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
        raise ValueError("should be a URL such as http://10.0.0.5:8000")
    if "@" in url.netloc:
        raise ValueError("should have no user or password in the URL; use api_key")
    if "?" in text or "#" in text:
        raise ValueError("should have no query and no fragment")
    return url


def _worker_url(text: str) -> str:
    if _web_url(text).path.strip("/"):
        raise ValueError("should be the worker's root: leave out the path (such as /v1)")
    return text.rstrip("/")


def _openai_url(text: str) -> str:
    _web_url(text)
    return text.rstrip("/")


def _zmq_address(text: str) -> str:
    if not re.fullmatch(
        r"tcp://[A-Za-z0-9._-]+:[1-9][0-9]{0,4}|tcp://\[[0-9a-fA-F:]+\]:[1-9][0-9]{0,4}", text
    ):
        raise ValueError("should be an address such as tcp://10.0.0.5:5557")
    return text


def _origin(text: str) -> str:
    if not re.fullmatch(r"\*|https?://[a-z0-9.:\[\]-]+", text):
        raise ValueError(
            "should be * or an origin as browsers send it, such as https://chat.example.com (no path)"
        )
    return text


def _authority(path: Path) -> Path:
    try:
        SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except SSLError:
        raise ValueError("should hold a certificate in PEM") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


def _key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
        raise ValueError("should be printable ASCII characters without spaces or line breaks")
    return secret


def _litellm_model(text: str) -> str:
    if not re.fullmatch(r"[!-~]+/[!-~]+", text):
        raise ValueError("should be PROVIDER/MODEL, such as anthropic/claude-sonnet-4-5")
    return text


def _arguments(params: SecretValue[dict[str, Any]]) -> SecretValue[dict[str, Any]]:
    """Not those that a call or the gateway gives."""
    for name in params.get_secret_value():
        if name in _NOT_PARAMS:
            raise ValueError(f"{name} cannot be given here{_NOT_PARAMS[name]}")
    return params


def _database_url(secret: SecretStr) -> SecretStr:
    url = secret.get_secret_value()
    if re.fullmatch(r"sqlite:///[^?#]+", url) and not url.endswith(":memory:"):
        return secret
    if re.fullmatch(r"postgresql(\+\w+)?://[^/\s]*/[^/?\s]+(\?\S+)?", url):
        return secret
    raise ValueError("should be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")


def _shared_state_url(secret: SecretStr) -> SecretStr:
    url = secret.get_secret_value()
    if url != "memory://":
        _can_be_loaded(RedisUrl.parse(url).tls or {})
    return secret


def _can_be_loaded(tls: Mapping[str, str | bool]) -> None:
    """The files in a URL of Redis: found out now, and not only when it is connected to. Their paths are not quoted."""
    files = {name: Path(file) for name, file in tls.items() if isinstance(file, str)}
    try:
        if "ssl_ca_certs" in files:
            _authority(files["ssl_ca_certs"])
    except ValueError as problem:
        raise ValueError(f"ssl_ca_certs {problem}") from None
    try:
        if "ssl_certfile" in files:
            # An empty passphrase: without one, OpenSSL would ask for it at the terminal.
            ours = SSLContext(PROTOCOL_TLS_CLIENT)
            ours.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"), password="")
    except SSLError:
        raise ValueError(
            "ssl_certfile and ssl_keyfile should hold a certificate and its key in PEM"
        ) from None
    except OSError as error:
        raise ValueError(f"ssl_certfile or ssl_keyfile cannot be read: {error.strerror}") from None


Name = Annotated[str, AfterValidator(_sane_name)]
TenantOrOthers = Annotated[str, AfterValidator(_tenant_or_others)]
ServedName = Annotated[str, Field(min_length=1, max_length=512)]
WorkerUrl = Annotated[str, AfterValidator(_worker_url)]
OpenAIUrl = Annotated[str, AfterValidator(_openai_url)]
ZmqAddress = Annotated[str, AfterValidator(_zmq_address)]
Origin = Annotated[str, AfterValidator(_origin)]
AuthorityFile = Annotated[FilePath, AfterValidator(_authority)]
LiteLLMModel = Annotated[str, Field(max_length=512), AfterValidator(_litellm_model)]
LiteLLMParams = Annotated[SecretValue[dict[str, Any]], AfterValidator(_arguments)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
SharedStateUrl = Annotated[SecretStr, AfterValidator(_shared_state_url)]
Secret = Annotated[SecretStr, Field(min_length=1)]
ApiKey = Annotated[SecretStr, AfterValidator(_key)]
NetworkText = Annotated[str, AfterValidator(_network)]
Count = Annotated[int, BeforeValidator(no_boolean), Field(gt=0, le=2**53)]
Seconds = Annotated[float, BeforeValidator(no_boolean), Field(gt=0, le=86_400, allow_inf_nan=False)]
WaitSeconds = Annotated[float, BeforeValidator(no_boolean), Field(ge=0, le=600, allow_inf_nan=False)]
Usd = Annotated[
    Decimal,
    BeforeValidator(no_boolean),
    Field(ge=0, le=1_000_000, decimal_places=6, allow_inf_nan=False),
]
"""A price per million tokens."""
Amount = Annotated[
    Decimal,
    BeforeValidator(no_boolean),
    Field(ge=0, le=1_000_000_000, decimal_places=9, allow_inf_nan=False),
]
"""Of money, in USD, to the nano-USD."""
Multiplier = Annotated[
    Decimal,
    BeforeValidator(no_boolean),
    Field(ge=0, le=1000, decimal_places=6, allow_inf_nan=False),
]
