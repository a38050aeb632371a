"""From the configuration to the fleet: what calls are planned over, and what `explain` plans over without a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.fleet import Fleet, FleetSettings
from backends.incoming import Patience
from backends.kv_events import KvSource
from backends.lane import LaneLimits
from backends.litellm_api import LiteLLMAccess
from backends.worker import Access

if TYPE_CHECKING:
    from backends.fleet import Listed
    from gateway.config import Config
    from gateway.config_endpoint import EndpointSection


def fleet_of(config: Config) -> Fleet:
    """The endpoints of a configuration. No connection is made before its block is entered."""
    timeouts, limits = config.timeouts, config.limits
    settings = FleetSettings(
        lane=LaneLimits(
            limits.connections_per_endpoint, float(timeouts.idle_connection_s), float(timeouts.connect_s)
        ),
        patience=Patience(float(timeouts.first_byte_s), float(timeouts.silence_s), float(timeouts.total_s)),
        prefix_pieces=limits.prefix_pieces,
        health_interval_s=float(config.health.interval_s),
        health_timeout_s=float(config.health.timeout_s),
        scrape_interval_s=float(config.health.scrape_interval_s),
        probe_answer_s=float(config.health.probe_timeout_s),
    )
    return Fleet(listed(config), settings)


def listed(config: Config) -> dict[str, list[Listed]]:
    """The endpoints of a configuration with the ways to them, by model."""
    return {
        name: list(zip(config.endpoints_of(name), map(access_of, section.endpoints), strict=True))
        for name, section in config.models.items()
    }


def access_of(section: EndpointSection) -> Access | LiteLLMAccess:
    keys = tuple(key.get_secret_value() for key in section.keys)
    if section.litellm is not None:
        return LiteLLMAccess(section.litellm, keys, section.params.get_secret_value())
    return Access(
        url=section.url,
        api_keys=keys,
        ca_file=None if section.ca_file is None else str(section.ca_file),
        kv_events=None if section.kv_events is None else KvSource(section.kv_events, section.kv_replay),
    )
