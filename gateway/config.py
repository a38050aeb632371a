"""The configuration: one frozen, typed tree, parsed once at the start and handed to those who need a part of it.

Whatever is wrong is reported all at once, each with its path in the file, and nothing that is secret ever reaches a
message: an operator fixes the file in one go, and can paste what we printed. `config_file` reads the YAML, this
module says what may stand in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic import Secret as SecretValue

from backends.litellm_prices import Known, known
from backends.litellm_thread import INSTALL, is_installed
from gateway.config_file import ConfigError, Problem, path_of, read
from gateway.config_policy import TenantSection, no_such_model
from gateway.config_section import (
    ApiKey,
    AuthorityFile,
    Count,
    DatabaseUrl,
    LiteLLMModel,
    LiteLLMParams,
    Location,
    Name,
    OpenAIUrl,
    Origin,
    Seconds,
    Secret,
    Section,
    ServedName,
    SharedStateUrl,
    TenantName,
    Usd,
    WorkerUrl,
    ZmqAddress,
    no_boolean,
    pico_usd_per_token,
)
from gateway.policy import TrustName  # noqa: TC001 - pydantic reads annotations at run time
from routing.types import Capability, Endpoint, EndpointKind, Price, Tier, TierName, Trust

__all__ = ["Config", "ConfigError", "Problem", "config_reference", "load"]


class Listen(Section):
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: Annotated[int, BeforeValidator(no_boolean)] = Field(
        8000, ge=0, le=65_535, description="Port to listen on; 0 lets the system choose one."
    )

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(self.host)


class Cors(Section):
    origins: tuple[Origin, ...] = Field(
        (),
        description="Origins that browsers may call from, such as `https://chat.example.com`, or `*`; empty: none.",
    )


class Auth(Section):
    mode: Literal["keys", "none"] = Field(
        "keys", description="`keys`: every call needs a tenant's key. `none`: calls need none, loopback only."
    )
    master_key: Secret | None = Field(
        None,
        description="For administration, and one more key for calls, whose tenant is `master`; it needs no database.",
    )
    allow_public: bool = Field(
        default=False, description="Permits mode `none` on an address that others can reach."
    )


class JournalFolder(Section):
    folder: Path = Field(
        Path("tidegate-journal"),
        description="Folder of the journal: usage rows wait there until they are in the database.",
    )


class Limits(Section):
    body_bytes: Count = Field(33_554_432, description="Largest request body; a larger one gets a 413.")
    header_bytes: Count = Field(
        65_536, description="Largest header section of a request; a larger one gets a 431."
    )
    reply_bytes: Count = Field(67_108_864, description="Largest reply that is not a stream.")
    event_bytes: Count = Field(8_388_608, description="Largest single event of a stream.")
    connections_per_endpoint: Count = Field(1024, description="Most connections to one endpoint.")
    attempts: Count = Field(3, le=20, description="Most endpoints of a model tried for one call.")
    prefix_pieces: Count = Field(
        500_000,
        description="Most pieces of prompts (512 bytes each) remembered for the endpoints of one model, to find those that "
        "have a prompt in their cache; 250 bytes of memory each.",
    )


class Timeouts(Section):
    connect_s: Seconds = Field(5, description="Until a connection to an endpoint stands.")
    first_byte_s: Seconds = Field(
        120, description="Until the first byte of an endpoint's stream; a whole reply has `total_s`."
    )
    silence_s: Seconds = Field(30, description="Between two chunks of a reply.")
    total_s: Seconds = Field(600, description="For the whole call.")
    idle_connection_s: Seconds = Field(4, description="How long an unused connection to an endpoint is kept.")
    drain_s: Seconds = Field(30, description="After SIGTERM, how long running calls may take to finish.")


class Health(Section):
    interval_s: Seconds = Field(5, description="Between two checks of an endpoint, with jitter.")
    timeout_s: Seconds = Field(2, description="For one check or scrape.")
    scrape_interval_s: Seconds = Field(
        5, description="Between two looks at a worker's `/metrics`, with jitter."
    )


class DecisionLogSection(Section):
    file: Path = Field(description="Where they go, as JSON lines.")
    sample: Annotated[float, BeforeValidator(no_boolean)] = Field(
        0.01, gt=0, le=1, description="Which share of the decisions is kept."
    )
    max_bytes: Count = Field(67_108_864, description="When the file is larger, it becomes `FILE.1`.")
    keep: Count = Field(5, le=1000, description="Of such older files, how many are kept.")


class QueueSection(Section):
    calls: Count = Field(1024, description="Most calls that wait for an endpoint, of all tenants.")
    calls_per_tenant: Count = Field(
        256, description="Most calls of one tenant that wait; one more gets a 429."
    )
    max_wait_s: Seconds = Field(
        3,
        description="Longest wait of calls that are not flex, for endpoints that are only busy; flex waits for its tier's target.",
    )


class PriceTable(Section):
    input: Usd = Field(description="USD per million prompt tokens, at most six decimals.")
    output: Usd = Field(description="USD per million completion tokens.")
    cached_input: Usd | None = Field(
        None, description="USD per million prompt tokens found in the prefix cache; without it, as `input`."
    )

    def price(self) -> Price:
        cached = self.cached_input
        return Price(
            pico_usd_per_token(self.input),
            pico_usd_per_token(self.output),
            None if cached is None else pico_usd_per_token(cached),
        )


class EndpointSection(Section):
    worker: WorkerUrl | None = Field(
        None,
        description="URL of a vLLM server, without a path. Exactly one of `worker`, `openai`, `litellm`.",
    )
    openai: OpenAIUrl | None = Field(
        None, description="Base URL of an OpenAI-compatible API, with its path (`/v1`)."
    )
    litellm: LiteLLMModel | None = Field(
        None, description="`PROVIDER/MODEL` of anything that litellm speaks; takes the extra `litellm`."
    )
    params: LiteLLMParams = Field(
        SecretValue({}),
        description="Of a `litellm` endpoint: further arguments of litellm's, such as `aws_region_name`.",
    )
    name: Name | None = Field(
        None,
        description="Unique within the model; without it, `host:port` of the URL, or what `litellm` says.",
    )
    model: ServedName | None = Field(None, description="The model's name there; without it, the public name.")
    api_key: ApiKey | None = Field(None, description="Sent there as a bearer token.")
    api_keys: tuple[ApiKey, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Several keys of an `openai` endpoint in place of `api_key`, used in turn.",
    )
    gpu: Name | None = Field(None, description="The card it runs on, for reports.")
    region: Name | None = Field(None, description="Where it is; calls may ask for regions.")
    trust: TrustName | None = Field(
        None,
        description="How far its operator is trusted; without it, `community` for a worker, `provider` for the others.",
    )
    cost: PriceTable | None = Field(
        None,
        description="What serving it there costs us; without it, nothing, or for `litellm` what its price table says.",
    )
    capabilities: frozenset[Capability] | None = Field(
        None, description="What it can do; without it, as the model's, or for `litellm` as its table says."
    )
    context_tokens: Count | None = Field(
        None, description="Longest context; without it, as the model's, or for `litellm` as its table says."
    )
    ca_file: AuthorityFile | None = Field(None, description="PEM file with the CA to trust for https.")
    kv_events: ZmqAddress | None = Field(
        None,
        description="Where a worker publishes its KV events, such as `tcp://10.0.0.5:5557`; needs the extra `kv-events`.",
    )
    kv_replay: ZmqAddress | None = Field(None, description="Where it sends events again that were missed.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        targets = [kind for kind in ("worker", "openai", "litellm") if given.get(kind) is not None]
        if len(targets) != 1:
            what = " and ".join(targets) or "none"
            yield (), f"needs exactly one of worker, openai and litellm, and has {what}"
            return
        if given.get("api_keys") is not None:
            if given.get("api_key") is not None:
                yield ("api_keys",), "stands in place of api_key; give one of the two"
            if targets != ["openai"]:
                yield ("api_keys",), "is for openai endpoints; use api_key"
        if targets == ["litellm"]:
            yield from _litellm_problems(given)
        elif given.get("params"):
            yield ("params",), "is for litellm endpoints"
        if given.get("ca_file") is not None and str(given[targets[0]]).lower().startswith("http:"):
            yield ("ca_file",), "is of use only with an https URL"
        yield from _kv_events_problems(given)

    @property
    def kind(self) -> EndpointKind:
        return "worker" if self.worker is not None else "openai" if self.openai is not None else "litellm"

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.api_keys or (() if self.api_key is None else (self.api_key,))

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return self.worker or self.openai or ""

    @property
    def resolved_name(self) -> str:
        return self.name or self.litellm or _name_by_url(self.url)

    @property
    def resolved_trust(self) -> TrustName:
        return self.trust or ("community" if self.kind == "worker" else "provider")

    @property
    def known(self) -> Known | None:
        """What litellm's table says of it."""
        return None if self.litellm is None else known(self.litellm, self.params.get_secret_value())

    @property
    def price(self) -> Price:
        """What serving it there costs us."""
        if self.cost is not None:
            return self.cost.price()
        table = self.known
        return Price() if table is None else table.price

    def endpoint(self, public_name: str, model: ModelSection) -> Endpoint:
        """As routing sees it."""
        known = self.known
        capabilities = model.capabilities if self.capabilities is None else self.capabilities
        context_tokens = self.context_tokens or model.context_tokens
        if known is not None:
            capabilities = known.capabilities if capabilities is None else capabilities
            context_tokens = context_tokens or known.context_tokens
        return Endpoint(
            name=self.resolved_name,
            model=public_name,
            served_model=self.litellm or self.model or public_name,
            kind=self.kind,
            url=self.url,
            region=self.region,
            trust=Trust[self.resolved_trust.upper()],
            gpu=self.gpu,
            capabilities=capabilities,
            context_tokens=context_tokens,
            cost=self.price,
        )


class ModelSection(Section):
    aliases: tuple[Name, ...] = Field((), max_length=100, description="Other names that clients may use.")
    price: PriceTable = Field(description="What tenants are charged.")
    capabilities: frozenset[Capability] | None = Field(
        None,
        description="Any of `tools`, `vision`, `json_schema`, `logprobs`, `embeddings`; without it, nothing is ruled out.",
    )
    context_tokens: Count | None = Field(None, description="Longest context; without it, not checked.")
    prefix_cache: Literal["shared", "per_tenant"] = Field(
        "shared",
        description="`per_tenant`: workers are sent a secret `cache_salt` for each tenant, so that nobody can find out by "
        "the clock what another tenant has sent; prompts that tenants have in common are then computed for each.",
    )
    endpoints: tuple[EndpointSection, ...] = Field(max_length=1000, description="Where the model is served.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        endpoints = given.get("endpoints")
        if endpoints in ([], ()):
            yield ("endpoints",), "needs at least one endpoint"
        seen: dict[str, int] = {}
        for index, endpoint in enumerate(endpoints if isinstance(endpoints, list | tuple) else ()):
            name = (
                _get(endpoint, "name")
                or _name_by_url(_get(endpoint, "worker") or _get(endpoint, "openai"))
                or _get(endpoint, "litellm")
            )
            if not isinstance(name, str) or not name:
                continue
            if name in seen:
                other = f"endpoints[{seen[name]}]"
                yield ("endpoints", index), f"has the name of {other}, {name}; give it another `name`"
            seen.setdefault(name, index)


class AliasSection(Section):
    default: Name = Field(description="The model that serves calls of tier `default`.")
    priority: Name | None = Field(None, description="The one of tier `priority`; without it, as `default`.")
    flex: Name | None = Field(None, description="The one of tier `flex`; without it, as `default`.")
    fallbacks: tuple[Name, ...] = Field(
        (),
        max_length=20,
        description="Models tried in turn where none of the tier's endpoints can take the call or has answered it.",
    )

    def models(self, tier: TierName) -> tuple[str, ...]:
        """Public names of the models to try, in order."""
        first: str | None = getattr(self, tier)
        return tuple(dict.fromkeys((first or self.default, *self.fallbacks)))


class TierSection(Section):
    max_ttft_ms: Count = Field(description="The time to first token it aims at, in milliseconds.")
    waiting_usd_per_hour: Usd = Field(description="What an hour of waiting is worth.")

    def tier(self, name: TierName) -> Tier:
        nano_usd_per_s = self.waiting_usd_per_hour * 1_000_000_000 / 3600
        return Tier(name, self.max_ttft_ms / 1000, float(nano_usd_per_s))


class PriorityTier(TierSection):
    max_ttft_ms: Count = Field(1000, description="Time decides: the time to first token it aims at.")
    waiting_usd_per_hour: Usd = Field(Decimal(100), description="What an hour of waiting is worth.")


class DefaultTier(TierSection):
    max_ttft_ms: Count = Field(5000, description="Time counts: the time to first token it aims at.")
    waiting_usd_per_hour: Usd = Field(Decimal(4), description="What an hour of waiting is worth.")


class FlexTier(TierSection):
    max_ttft_ms: Count = Field(600_000, description="Price decides: the time to first token it aims at.")
    waiting_usd_per_hour: Usd = Field(Decimal(0), description="What an hour of waiting is worth.")


class Tiers(Section):
    priority: PriorityTier = PriorityTier()
    default: DefaultTier = DefaultTier()
    flex: FlexTier = FlexTier()


class Config(Section):
    """The whole of it."""

    listen: Listen = Listen()
    cors: Cors = Cors()
    database: DatabaseUrl = Field(
        SecretStr("sqlite:///tidegate.db"),
        description="`sqlite:///FILE`, relative to the working directory, or `postgresql://USER:PASSWORD@HOST/NAME`.",
    )
    shared_state: SharedStateUrl = Field(
        SecretStr("memory://"),
        description="Where several processes would share state; only `memory://` for now.",
    )
    auth: Auth = Auth()
    journal: JournalFolder = JournalFolder()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    decision_log: DecisionLogSection | None = Field(
        None, description="A sample of decisions, to be looked into and replayed; without it, none."
    )
    queue: QueueSection = QueueSection()
    models: dict[Name, ModelSection] = Field(
        max_length=10_000, description="The models served, by the name that clients use."
    )
    aliases: dict[Name, AliasSection] = Field(
        {}, max_length=10_000, description="Names that stand for another model in each tier."
    )
    tiers: Tiers = Tiers()
    tenants: dict[TenantName, TenantSection] = Field(
        {}, max_length=100_000, description="Bounds for the calls of a tenant, by its name."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        auth, host = given.get("auth"), _get(given.get("listen"), "host") or "127.0.0.1"
        meant = str(_get(auth, "allow_public")).lower() in {"true", "yes", "on", "1"}
        if _get(auth, "mode") == "none" and not meant and not _is_loopback(str(host)):
            advice = "set auth.allow_public: true if that is meant"
            yield ("auth", "mode"), f"none on listen.host {host} lets anyone in; {advice}"
        models = given.get("models")
        if models == {}:
            yield ("models",), "needs at least one model"
        if isinstance(models, Mapping):
            aliases = given.get("aliases")
            aliases = aliases if isinstance(aliases, Mapping) else {}
            yield from _names_used_twice(models, aliases)
            yield from _aliases_of_nothing(models, aliases)
            yield from _policies_on_nothing(_all_names(models, aliases), given.get("tenants"))

    def endpoints_of(self, model: str) -> tuple[Endpoint, ...]:
        """The endpoints of a model, by its public name, in the order of the file."""
        section = self.models[model]
        return tuple(endpoint.endpoint(model, section) for endpoint in section.endpoints)

    @property
    def model_names(self) -> frozenset[str]:
        """All that calls may name as their model, suffixes apart."""
        return _all_names(self.models, self.aliases)

    def database_shown(self) -> str:
        """The database's URL without user, password and options, for printing."""
        url = urlsplit(self.database.get_secret_value())
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    def tier(self, name: TierName) -> Tier:
        section: TierSection = getattr(self.tiers, name)
        return section.tier(name)


def load(path: Path, environ: Mapping[str, str], listen: Mapping[str, Any] | None = None) -> Config:
    """The configuration in a file. Keys in `listen` (the command line's) win over the file's.

    Raises ConfigError with every problem at once.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError((Problem("", f"no such file: {path}"),)) from None
    except UnicodeDecodeError:
        raise ConfigError((Problem("", f"not UTF-8 text: {path}"),)) from None
    except OSError as error:
        raise ConfigError((Problem("", f"cannot read {path}: {error.strerror}"),)) from None
    given, problems = read(text, environ)
    of_file = given.get("listen")
    if listen and (of_file is None or isinstance(of_file, dict)):
        given["listen"] = {**(of_file or {}), **listen}
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        known = {problem.path for problem in problems}
        details = error.errors(include_url=False, include_input=False)
        found = (Problem(_path(detail["loc"]), detail["msg"]) for detail in details)
        problems += [problem for problem in found if problem.path not in known]
    if problems:
        raise ConfigError(tuple(problems)) from None
    return config


def _path(location: Location) -> str:
    return path_of(location[:-1] if location and location[-1] == "[key]" else location)


def config_reference() -> str:
    """Every key of the file with its default and meaning, as a Markdown table."""
    lines = ["| Key | Default | Meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _rows(Config, "")]
    return "\n".join(lines) + "\n"


def _rows(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        key = prefix + name
        if field.description:
            yield key, _default_text(field.is_required(), field.default), field.description
        below = _below(field.annotation)
        if below is not None:
            yield from _rows(below[0], key + below[1])


def _below(annotation: Any) -> tuple[type[Section], str] | None:
    """The section that a key holds, in a table, a list or by itself, and how the path goes on to it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, "."
    step = {dict: ".NAME.", tuple: "[].", UnionType: "."}.get(get_origin(annotation))
    found = [below[0] for inner in get_args(annotation) if (below := _below(inner)) is not None]
    return (found[0], step) if found and step else None


def _default_text(required: bool, default: Any) -> str:  # noqa: FBT001 - one caller, one line away
    if required:
        return "required"
    if default is None:
        return ""
    if isinstance(default, SecretStr | SecretValue):
        default = default.get_secret_value()
    if isinstance(default, tuple):
        return "`[]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _get(section: Any, key: str) -> Any:
    """A value of a section as given, which may be a mapping, a section made in code, or nothing of the kind."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


def _litellm_problems(given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """What is wrong with a litellm endpoint, as given."""
    for name in ("model", "ca_file"):
        if given.get(name) is not None:
            yield (name,), "is not for litellm endpoints"
    model, params = given["litellm"], given.get("params")
    if not is_installed():
        yield ("litellm",), f"litellm is not installed; get it by {INSTALL}"
    elif given.get("cost") is None and isinstance(model, str):
        table = known(model, params if isinstance(params, Mapping) else {})
        if table is None:
            yield ("litellm",), f"litellm's table has no price per token for {model}; give one as `cost`"


def _kv_events_problems(given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    if given.get("kv_events") is None:
        if given.get("kv_replay") is not None:
            yield ("kv_replay",), "is of use only with kv_events"
    elif given.get("worker") is None:
        yield ("kv_events",), "is for workers"
    elif find_spec("zmq") is None:
        yield ("kv_events",), "needs pyzmq: pip install 'tidegate[kv-events]'"


def _name_by_url(url: Any) -> str:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{host}:{port}" if host else ""


def _names_used_twice(
    models: Mapping[str, Any], by_tier: Mapping[str, Any]
) -> Iterator[tuple[Location, str]]:
    owner = {name: f"model {name}" for name in models}
    for name, model in models.items():
        aliases = _get(model, "aliases")
        for index, alias in enumerate(aliases if isinstance(aliases, list | tuple) else ()):
            if not isinstance(alias, str):
                continue
            if alias in owner:
                yield ("models", name, "aliases", index), f"{alias} is taken already, by {owner[alias]}"
            owner.setdefault(alias, f"an alias of model {name}")
    for name in by_tier:
        if name in owner:
            yield ("aliases", name), f"{name} is taken already, by {owner[name]}"


def _aliases_of_nothing(
    models: Mapping[str, Any], by_tier: Mapping[str, Any]
) -> Iterator[tuple[Location, str]]:
    for name, alias in by_tier.items():
        fallbacks = _get(alias, "fallbacks")
        meant: dict[Location, Any] = {(tier,): _get(alias, tier) for tier in ("default", "priority", "flex")}
        if isinstance(fallbacks, list | tuple):
            meant |= {("fallbacks", index): model for index, model in enumerate(fallbacks)}
        for where, model in meant.items():
            if isinstance(model, str) and model not in models:
                yield ("aliases", name, *where), no_such_model(model, models)


def _all_names(models: Mapping[str, Any], by_tier: Mapping[str, Any]) -> frozenset[str]:
    """What a call, or a policy, may name as its model."""
    spelled = (_get(model, "aliases") for model in models.values())
    others = (name for names in spelled if isinstance(names, list | tuple) for name in names)
    return frozenset((*models, *by_tier, *(name for name in others if isinstance(name, str))))


def _policies_on_nothing(names: frozenset[str], tenants: Any) -> Iterator[tuple[Location, str]]:
    """A name that is no model's, which would allow nothing where something was meant."""
    for tenant, section in tenants.items() if isinstance(tenants, Mapping) else ():
        models = _get(_get(section, "policy"), "models")
        for index, name in enumerate(models if isinstance(models, list | tuple | frozenset) else ()):
            if isinstance(name, str) and name not in names:
                yield ("tenants", tenant, "policy", "models", index), no_such_model(name, names)
