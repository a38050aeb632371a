"""Configuration files for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from gateway.config import Config

Read = Callable[..., Config]
Problems = Callable[..., dict[str, str]]

MINIMAL = """
models:
  llama:
    price: {input: 0.05, output: 0.10}
    endpoints:
      - worker: http://10.0.0.5:8000
"""


def with_endpoint(**endpoint: Any) -> str:
    model = {"price": {"input": 1, "output": 2}, "endpoints": [endpoint]}
    return yaml.safe_dump({"models": {"llama": model}})


def with_names(aliases: Any = None, tenants: Any = None) -> str:
    """Three models, one of them with a second name, and what is said of aliases and tenants."""
    model = {"price": {"input": 1, "output": 2}, "endpoints": [{"worker": "http://10.0.0.5:8000"}]}
    models = {"big": {**model, "aliases": ["huge"]}, "llama-70b": model, "llama-8b": model}
    return yaml.safe_dump({"models": models, "aliases": aliases or {}, "tenants": tenants or {}})
