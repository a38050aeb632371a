from __future__ import annotations

from gateway.config_reference import config_reference


def test_the_reference_names_every_key_with_a_meaning():
    rows = config_reference().splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    assert len(keys) == len(set(keys)) > 50
    assert all(not row.endswith("|  |") for row in rows)
    assert "| `listen.port` | `8000` |" in config_reference()
    assert "models.NAME.endpoints[].cost.cached_input" in keys
