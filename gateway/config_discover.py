"""The sections of the configuration for workers that are found: by a name's addresses, or by Kubernetes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.config_endpoint import EndpointSection, PriceTable
from gateway.config_section import (
    ApiKey,
    AuthorityFile,
    Count,
    Location,
    Name,
    Section,
    ServedName,
    WorkerUrl,
    no_boolean,
)
from gateway.policy import TrustName  # noqa: TC001 - pydantic reads annotations at run time
from routing.types import Capability  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.discovery import Found

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What a pod is given to speak to the API server."""
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"

PortNumber = Annotated[int, BeforeValidator(no_boolean), Field(gt=0, le=65_535)]
HostName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")]
NameInCluster = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]


class DnsSection(Section):
    host: HostName = Field(description="A name; each of its addresses is a worker.")
    port: PortNumber = Field(description="Where they listen.")
    scheme: Literal["http", "https"] = Field("http", description="`http` or `https`.")


class KubernetesSection(Section):
    service: NameInCluster | None = Field(
        None, description="The service whose endpoints are workers. This or `selector`."
    )
    selector: str | None = Field(
        None,
        min_length=1,
        description="Labels of endpoint slices, such as `app=vllm`, in place of a service.",
    )
    namespace: NameInCluster | None = Field(None, description="Without it, the gateway's own.")
    port: PortNumber | Name | None = Field(
        None, description="Number or name of the port; without it, the first."
    )
    scheme: Literal["http", "https"] = Field("http", description="`http` or `https`.")
    api: WorkerUrl | None = Field(None, description="URL of the API server; without it, the cluster's own.")
    token_file: Path | None = Field(
        None, description="With `api`: a file with the token to send; without `api`, the pod's."
    )
    ca_file: AuthorityFile | None = Field(
        None, description="With `api`: PEM file with the CA to trust; without `api`, the pod's."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        if (given.get("service") is None) == (given.get("selector") is None):
            yield (), "needs exactly one of service and selector"
        if given.get("api") is None:
            if not (os.environ.get(HOST) and os.environ.get(PORT)):
                yield ("api",), "is required outside a cluster"
            for key in ("token_file", "ca_file"):
                if given.get(key) is not None:
                    yield (key,), "is of use only with api"
        if given.get("namespace") is None and not (ACCOUNT / "namespace").is_file():
            yield ("namespace",), "is required outside a cluster"

    @property
    def labels(self) -> str:
        return self.selector or f"kubernetes.io/service-name={self.service}"

    @property
    def resolved_namespace(self) -> str:
        return self.namespace or (ACCOUNT / "namespace").read_text().strip()

    @property
    def server(self) -> tuple[str, Path | None, Path | None]:
        """URL, token file and CA file."""
        if self.api is not None:
            return self.api, self.token_file, self.ca_file
        host, port = os.environ[HOST], os.environ[PORT]
        shown = f"[{host}]" if ":" in host else host
        return f"https://{shown}:{port}", ACCOUNT / "token", ACCOUNT / "ca.crt"


class DiscoverSection(Section):
    dns: DnsSection | None = Field(None, description="Exactly one of `dns` and `kubernetes`.")
    kubernetes: KubernetesSection | None = Field(None, description="By list and watch of EndpointSlices.")
    model: ServedName | None = Field(None, description="The model's name there; without it, the public name.")
    api_key: ApiKey | None = Field(None, description="Sent there as a bearer token.")
    gpu: Name | None = Field(None, description="The card they run on.")
    region: Name | None = Field(None, description="Where they are.")
    trust: TrustName | None = Field(None, description="How far their operator is trusted; else `community`.")
    cost: PriceTable | None = Field(None, description="What serving there costs us; without it, nothing.")
    capabilities: frozenset[Capability] | None = Field(None, description="Without it, as the model's.")
    context_tokens: Count | None = Field(
        None, description="Without it, as the model's, or as they say themselves."
    )
    ca_file: AuthorityFile | None = Field(None, description="PEM file with the CA to trust for https.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        if (given.get("dns") is None) == (given.get("kubernetes") is None):
            yield (), "needs exactly one of dns and kubernetes"

    @property
    def described(self) -> str:
        """In a few words."""
        if self.dns is not None:
            return f"discover the addresses of {self.dns.host}, port {self.dns.port}"
        kubernetes = self.kubernetes
        return "" if kubernetes is None else f"discover endpoint slices {kubernetes.labels}"

    def endpoint(self, found: Found) -> EndpointSection:
        """The section of a worker that has been found."""
        shared = {key: getattr(self, key) for key in _SHARED}
        return EndpointSection(worker=found.url, name=found.name, **shared)


_SHARED = tuple(set(DiscoverSection.model_fields) & set(EndpointSection.model_fields))
