"""The configuration: one frozen, typed tree, parsed once at the start and handed to those who need a part of it.

Whatever is wrong is reported all at once, each with its path in the file, and nothing that is secret ever reaches a
message: an operator fixes the file in one go, and can paste what we printed. `config_file` reads the YAML, this
module says what may stand in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError

from gateway.config_events import (  # noqa: TC001 - pydantic reads annotations at run time
    WebhookName,
    WebhookSection,
)
from gateway.config_file import ConfigError, Problem, Stamp, path_of, read
from gateway.config_listen import Admin, Listen, Server, open_to_anyone, same_twice
from gateway.config_model import AliasSection, ModelSection, aliases_of_nothing, all_names, names_used_twice
from gateway.config_policy import TenantSection, no_such_model
from gateway.config_section import (
    Count,
    DatabaseUrl,
    Location,
    Multiplier,
    Name,
    Origin,
    Seconds,
    Secret,
    Section,
    SharedStateUrl,
    TenantOrOthers,
    Usd,
    WaitSeconds,
    given_in,
    millionths,
    no_boolean,
)
from gateway.config_telemetry import LogSection, TelemetrySection
from routing.types import Endpoint, Tier, TierName


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
        description="For administration beside admin keys, and one more key for calls, whose tenant is `master`; it needs no database.",
    )
    allow_public: bool = Field(
        default=False, description="Permits mode `none` on an address that others can reach."
    )
    explain_to: frozenset[Name | Literal["*"]] = Field(
        frozenset(),
        description="Tenants whose calls may ask for their plan, with endpoints, costs and load in it, or `*`. The master key may anyway.",
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
    client_connections: Count = Field(
        10_000,
        description="Most connections of clients; one more gets a 503. `ulimit -n` has to allow for them.",
    )
    connections_per_endpoint: Count = Field(1024, description="Most connections to one endpoint.")
    attempts: Count = Field(
        5,
        le=20,
        description="Most endpoints of a model tried for one call, and most times that it waits for room and is tried again.",
    )
    prefix_pieces: Count = Field(
        500_000,
        description="Most pieces of prompts (512 bytes each) remembered for the endpoints of one model, to find those that "
        "have a prompt in their cache; 250 bytes of memory each.",
    )

    default_max_tokens: Count = Field(
        4096,
        description="What a call with a budget may write at most where it does not say so itself, if such calls have not "
        "written more of late.",
    )
    wait_for_budget_s: WaitSeconds = Field(
        1,
        description="How long a call waits for money that calls under way hold, before it gets a 429; 0: not at all.",
    )
    when_store_is_away: Literal["open", "closed"] = Field(
        "closed",
        description="Whether calls with limits that cannot be looked up, Redis or the database being away, are let go (`open`) "
        "or get a 503 (`closed`).",
    )


class Timeouts(Section):
    connect_s: Seconds = Field(5, description="Until a connection to an endpoint stands.")
    first_byte_s: Seconds = Field(
        120, description="Until the first byte of an endpoint's stream; a whole reply has `total_s`."
    )
    silence_s: Seconds = Field(30, description="Between two chunks of a reply.")
    total_s: Seconds = Field(600, description="For the whole call.")
    idle_connection_s: Seconds = Field(4, description="How long an unused connection to an endpoint is kept.")
    unready_s: WaitSeconds = Field(0, description="After SIGTERM, how long it takes calls and is not ready.")
    drain_s: Seconds = Field(30, description="From then on, how long running calls may take to finish.")
    request_head_s: Seconds = Field(
        30,
        description="Within which a client's request line and headers have to come, or the connection is closed.",
    )
    request_s: Seconds = Field(
        300,
        description="Within which the whole of its request has to: the largest body at a megabit a second.",
    )
    idle_client_s: Seconds = Field(
        75,
        description="How long an unused connection of a client is kept: longer than load balancers keep theirs.",
    )


class Health(Section):
    interval_s: Seconds = Field(5, description="Between two checks of an endpoint, with jitter.")
    timeout_s: Seconds = Field(2, description="For one check or scrape.")
    scrape_interval_s: Seconds = Field(
        5, description="Between two looks at a worker's `/metrics`, with jitter."
    )
    probe_timeout_s: Seconds = Field(
        30, description="For the token that a worker which joins has to make before it gets calls."
    )


class NodesSection(Section):
    lease_s: Seconds = Field(
        30, ge=1, description="How long a node that has registered may go without a heartbeat."
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


class TierSection(Section):
    max_ttft_ms: Count = Field(description="The time to first token it aims at, in milliseconds.")
    waiting_usd_per_hour: Usd = Field(description="What an hour of waiting is worth.")

    price_multiplier: Multiplier = Field(
        Decimal(1), description="What models' prices are multiplied with in this tier."
    )

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
    server: Server = Server()
    admin: Admin = Admin()
    cors: Cors = Cors()
    database: DatabaseUrl = Field(
        SecretStr("sqlite:///tidegate.db"),
        description="`sqlite:///FILE`, relative to the working directory, or `postgresql://USER:PASSWORD@HOST/NAME`.",
    )
    shared_state: SharedStateUrl = Field(
        SecretStr("memory://"),
        description="Where limits are counted: `memory://`, for each process by itself, or for all `redis://HOST:PORT/NUMBER`, "
        "`redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/NUMBER` or `redis+cluster://HOST:PORT,HOST:PORT`; "
        "by TLS `rediss` in its place, with `?ssl_ca_certs=FILE` for a CA of one's own.",
    )
    auth: Auth = Auth()
    journal: JournalFolder = JournalFolder()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    nodes: NodesSection = NodesSection()
    events: dict[WebhookName, WebhookSection] = Field(
        {}, max_length=32, description="Webhooks that are told of usage, by a name of yours."
    )
    decision_log: DecisionLogSection | None = Field(
        None, description="A sample of decisions, to be looked into and replayed; without it, none."
    )
    telemetry: TelemetrySection = TelemetrySection()
    log: LogSection = LogSection()
    queue: QueueSection = QueueSection()
    hedge: bool = Field(
        True,
        description="Whether a call whose first token is late may be tried at a second endpoint beside the first.",
    )
    resume: bool = Field(
        default=True, description="Whether a stream that breaks goes on at another endpoint, where it can."
    )
    models: dict[Name, ModelSection] = Field(
        max_length=10_000, description="The models served, by the name that clients use."
    )
    aliases: dict[Name, AliasSection] = Field(
        {}, max_length=10_000, description="Names that stand for another model in each tier."
    )
    tiers: Tiers = Tiers()
    tenants: dict[TenantOrOthers, TenantSection] = Field(
        {},
        max_length=100_000,
        description="Bounds for the calls of a tenant, and how it pays, by its name; under `*`, bounds for all that are not named.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        yield from open_to_anyone(given)
        yield from same_twice(given)
        if given_in(given_in(given.get("tenants"), "*"), "billing") is not None:
            yield ("tenants", "*", "billing"), "is for tenants by their names"
        models = given.get("models")
        if models == {}:
            yield ("models",), "needs at least one model"
        if isinstance(models, Mapping):
            aliases = given.get("aliases")
            aliases = aliases if isinstance(aliases, Mapping) else {}
            yield from names_used_twice(models, aliases)
            yield from aliases_of_nothing(models, aliases)
            yield from _policies_on_nothing(all_names(models, aliases), given.get("tenants"))

    def endpoints_of(self, model: str) -> tuple[Endpoint, ...]:
        """The endpoints of a model, by its public name, in the order of the file."""
        return self.models[model].endpoints_as(model)

    @property
    def model_names(self) -> frozenset[str]:
        """All that calls may name as their model, suffixes apart."""
        return all_names(self.models, self.aliases)

    @property
    def shares_state(self) -> bool:
        """Whether processes share what is not in the database."""
        return self.shared_state.get_secret_value() != "memory://"

    @property
    def admin_scheme(self) -> str:
        return "http" if self.admin.tls is None and self.server.tls is None else "https"

    @property
    def administration_url(self) -> str | None:
        """Where this machine finds it; None where the system is to choose the port."""
        listen = self.admin.listen or self.listen
        return f"{self.admin_scheme}://{listen.reached_at}:{listen.port}" if listen.port else None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches any of it."""
        return self.listen.is_loopback and (self.admin.listen is None or self.admin.listen.is_loopback)

    def database_shown(self) -> str:
        """The database's URL without user, password and options, for printing."""
        return _place(self.database)

    def shown(self) -> dict[str, Any]:
        """All of it as JSON values, with no secret in it: of most, only whether they are set."""
        urls = {"database": self.database_shown(), "shared_state": _place(self.shared_state)}
        return self.model_dump(mode="json") | urls

    def tier(self, name: TierName) -> Tier:
        section: TierSection = getattr(self.tiers, name)
        return section.tier(name)

    def price_millionths(self, tier: TierName) -> int:
        """What models' prices are multiplied with in `tier`."""
        section: TierSection = getattr(self.tiers, tier)
        return millionths(section.price_multiplier)

    def tenant_millionths(self) -> dict[str, int]:
        """What they are multiplied with for tenants of whom there is anything said."""
        billing = {name: section.billing.price_multiplier for name, section in self.tenants.items()}
        return {name: millionths(factor) for name, factor in billing.items() if factor != 1}


def _place(secret: SecretStr) -> str:
    """Of a URL, neither who asks there nor how."""
    url = urlsplit(secret.get_secret_value())
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def load(
    path: Path,
    environ: Mapping[str, str],
    listen: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    files: dict[Path, Stamp | None] | None = None,
) -> Config:
    """The configuration in a file. Keys in `listen` and `server` (the command line's) win over the file's; `files` then has
    those that values came from.

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
    given, problems = read(text, environ, files)
    for name, said in (("listen", listen), ("server", server)):
        of_file = given.get(name)
        if said and (of_file is None or isinstance(of_file, dict)):
            given[name] = {**(of_file or {}), **said}
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


def _policies_on_nothing(names: frozenset[str], tenants: Any) -> Iterator[tuple[Location, str]]:
    """A name that is no model's, which would allow nothing where something was meant."""
    for tenant, section in tenants.items() if isinstance(tenants, Mapping) else ():
        models = given_in(given_in(section, "policy"), "models")
        for index, name in enumerate(models if isinstance(models, list | tuple | frozenset) else ()):
            if isinstance(name, str) and name not in names:
                yield ("tenants", tenant, "policy", "models", index), no_such_model(name, names)
