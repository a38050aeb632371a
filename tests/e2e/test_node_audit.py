"""What administrators do to nodes is in the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from failing import QUICK
from pool import gateway
from test_nodes import AUTH, MASTER, NOBODY, admin, said

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path


async def test_who_registers_drains_preempts_and_removes_a_node_is_on_record_with_what_has_changed(
    tmp_path: Path,
):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        headers = {"authorization": f"Bearer {MASTER}"}
        made = await gw.http.post("/admin/admin-keys", json={"role": "admin"}, headers=headers)
        ops = made.json()
        section = said(worker, api_key="sk-worker", region="eu")
        await admin(gw, "POST", "", section, key=ops["key"])
        await admin(gw, "POST", "", section)  # the same again
        await admin(gw, "POST", "/node-1/heartbeat")
        await admin(gw, "POST", "", {**section, "region": "us"})
        await admin(gw, "POST", "/node-1/drain", {"within_s": 600})
        await admin(gw, "DELETE", "/node-1/drain")
        await admin(gw, "POST", "/node-1/preempt", {"in_s": 600})
        await admin(gw, "POST", "/nobody/drain", {})
        await admin(gw, "DELETE", "/node-1")
        found = (await gw.http.get("/admin/audit?subject=node:node-1", headers=headers)).json()["data"]
        entries: list[dict[str, Any]] = found[::-1]
        assert [(each["action"], each["actor"]) for each in entries] == [
            ("node.register", ops["id"]),
            ("node.register", "master"),
            ("node.drain", "master"),
            ("node.stay", "master"),
            ("node.preempt", "master"),
            ("node.remove", "master"),
        ]
        first, moved, drained, stays, noticed, removed = entries
        assert first["source"] == "127.0.0.1"
        assert first["before"] == {"registered": None}
        assert (first["after"]["registered"]["url"], first["after"]["registered"]["region"]) == (
            worker.url,
            "eu",
        )
        assert "sk-worker" not in str(found)
        assert "api_key" not in first["after"]["registered"]
        regions = [moved[side]["registered"]["region"] for side in ("before", "after")]
        assert regions == ["eu", "us"]
        assert drained["before"] == {"leaving": None, "leaves": None}
        assert drained["after"]["leaving"] == "drained"
        assert drained["after"]["leaves"].endswith("Z")
        assert stays["after"] == drained["before"]
        assert noticed["after"]["leaving"] == "preempted"
        assert removed["after"]["registered"] is None
        everything = (await gw.http.get("/admin/audit", headers=headers)).json()["data"]
        assert "node:nobody" not in {each["subject"] for each in everything}
