"""The console as its users have it, in Chromium: a key is made, called with, seen and revoked; every page can be used by
everybody, in both themes and on a phone, says nothing on the browser's console, and breaks no rule of its policy.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from openai import AuthenticationError
from playwright.async_api import async_playwright, expect
from pool import HELLO, LIMIT_S, Gateway, gateway
from test_console import MASTER, admin_key

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

CHROMIUM = os.environ.get("TIDEGATE_CHROMIUM") or shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text()
PAGES = {
    "fleet": "Fleet",
    "calls": "Calls",
    "tenants": "Tenants",
    "tenants/harbour": "harbour",
    "keys": "Keys",
    "usage": "Usage",
    "budgets": "Budgets",
    "invoices": "Invoices",
    "payouts": "Payouts",
    "explain": "Explain",
    "config": "Configuration",
    "audit": "Audit log",
    "admins": "Administrators",
}
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH, nor TIDEGATE_CHROMIUM"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as one, SimWorker(WorkerSpec()) as other:
        home = tmp_path_factory.mktemp("gateway")
        async with gateway(home, one, other, auth={"master_key": MASTER}) as running:
            for _ in range(3):
                await running.client().chat.completions.create(**HELLO)
            await running.rows(3)
            yield running


class Said(list[str]):
    """What a page should not say: errors, warnings, and what its policy has refused."""

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and self.append(message.text))
        page.on("pageerror", lambda error: self.append(str(error)))


async def log_in(gw: Gateway, chromium: Browser, key: str = MASTER, **options: Any) -> tuple[Page, Said]:
    context = await chromium.new_context(base_url=gw.url, **options)
    context.set_default_timeout(LIMIT_S * 1000)
    page, said = await context.new_page(), Said()
    said.listen(page)
    await page.goto("/console")
    await page.get_by_label("Key").fill(key)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("navigation")).to_be_visible(timeout=LIMIT_S * 1000)
    return page, said


async def test_a_key_is_made_called_with_seen_and_revoked(gw: Gateway, chromium: Browser):
    page, said = await log_in(gw, chromium)
    await page.get_by_role("link", name="Keys").click()
    await page.get_by_role("button", name="New key").click()
    await page.get_by_label("Tenant", exact=True).fill("acme")
    await page.get_by_label("Name", exact=True).fill("made in the console")
    await page.get_by_role("button", name="Make it").click()
    key = await page.locator(".secret code").inner_text()
    await page.get_by_role("button", name="I have it").click()

    await page.get_by_role("link", name="Calls").click()
    await expect(page.get_by_text("live", exact=True)).to_be_visible()
    reply = await gw.client(key).chat.completions.create(**HELLO)
    assert reply.choices
    row = page.get_by_role("row").filter(has_text="made in the console")
    await expect(row).to_contain_text("ok")
    await row.get_by_role("button").click()
    await expect(page.get_by_role("region", name="Candidates")).to_contain_text("worker-1")
    assert "High water" not in await page.content()

    await page.get_by_role("link", name="Keys").click()
    row = page.get_by_role("row").filter(has_text="made in the console")
    await row.get_by_role("button", name="Revoke").click()
    await page.get_by_role("button", name="Revoke it").click()
    await expect(row).to_have_count(0)
    with pytest.raises(AuthenticationError):
        await gw.client(key).chat.completions.create(**HELLO)
    assert said == []
    await page.context.close()


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
async def test_everybody_can_use_every_page(gw: Gateway, chromium: Browser, look: str):
    options: dict[str, Any] = {
        "color_scheme": "dark" if look == "dark" else "light",
        "reduced_motion": "reduce",
    }
    if look == "phone":
        options["viewport"] = {"width": 390, "height": 844}
    page, said = await log_in(gw, chromium, **options)
    for path, title in PAGES.items():
        await page.goto(f"/console/{path}")
        await expect(page.get_by_role("heading", level=1)).to_have_text(title)
        await expect(page.locator(".loading")).to_have_count(0)
        if path == "explain":
            await page.get_by_role("button", name="Explain").click()
            await expect(page.get_by_role("region", name="Candidates")).to_be_visible()
        if path == "calls":
            await page.locator("button.opener").first.click()
        await expect_accessible(page, path)
        wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{path} is {wide} px wider than the window"
    assert said == []
    await page.context.close()


async def expect_accessible(page: Page, path: str) -> None:
    """axe-core finds nothing that is serious. It is run beside the page, whose policy lets in no script of others."""
    await page.evaluate(AXE)
    found = await page.evaluate("axe.run({resultTypes: ['violations']})")
    serious = [
        (each["id"], [(node["html"][:200], node["failureSummary"]) for node in each["nodes"][:3]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == [], path


async def test_dialogs_are_left_by_escape_and_the_keyboard_finds_its_way(gw: Gateway, chromium: Browser):
    page, said = await log_in(gw, chromium)
    await page.goto("/console/keys")
    button = page.get_by_role("button", name="New key")
    await button.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await expect_accessible(page, "a dialog")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(button).to_be_focused()
    assert said == []
    await page.context.close()


async def test_whoever_may_only_look_finds_nothing_to_press(gw: Gateway, chromium: Browser):
    page, said = await log_in(gw, chromium, admin_key(gw, "read")[0])
    for path, button in {"keys": "New key", "tenants": "New tenant", "admins": "New admin key"}.items():
        await page.goto(f"/console/{path}")
        await expect(page.locator(".loading")).to_have_count(0)
        await expect(page.get_by_role("button", name=button)).to_have_count(0)
        await expect(page.get_by_role("button", name="Revoke")).to_have_count(0)
    assert said == []
    await page.context.close()


async def test_a_tenant_has_its_own_pages(gw: Gateway, chromium: Browser):
    page, said = await log_in(gw, chromium, gw.key)
    await expect(page.get_by_role("heading", level=1)).to_have_text("harbour")
    for path in ("overview", "usage", "keys"):
        await page.goto(f"/console/{path}")
        await expect(page.locator(".loading")).to_have_count(0)
        await expect_accessible(page, path)
    await expect(page.get_by_role("link", name="Fleet")).to_have_count(0)
    assert said == []
    await page.context.close()


async def test_a_draft_of_this_months_invoice_is_there_to_read_and_not_to_issue(
    gw: Gateway, chromium: Browser
):
    page, said = await log_in(gw, chromium)
    await page.goto("/console/invoices")
    row = page.get_by_role("row").filter(has_text="harbour")
    href = await row.get_by_role("link", name="as PDF").get_attribute("href")
    assert (await page.request.get(href)).headers["content-type"] == "application/pdf"
    await expect(row.get_by_role("button", name="Issue")).to_have_count(0)
    assert said == []
    await page.context.close()


async def test_bounds_and_what_was_changed_are_said_in_words(gw: Gateway, chromium: Browser):
    page, said = await log_in(gw, chromium)
    policy = {"budgets": {"day": "0.25"}, "tokens_per_min": 20_000, "max_price": {"input": "0.5"}}
    body = {"tenant": "harbour", "name": "bounded", "policy": policy}
    await gw.http.post("/admin/keys", json=body, headers={"authorization": f"Bearer {MASTER}"})
    await page.goto("/console/keys")
    row = page.get_by_role("row").filter(has_text="bounded")
    for words in ("$0.25 a day", "20,000 tokens/min", "input: at most $0.5 per million"):
        await expect(row).to_contain_text(words)
    await page.goto("/console/audit")
    row = page.get_by_role("row").filter(has_text="bounded")
    for words in ("budgets day $0.25", "tokens per min 20,000", "max input $0.50 per million"):
        await expect(row).to_contain_text(words)
    await expect(page.locator("main")).not_to_contain_text("nano")
    assert said == []
    await page.context.close()


async def test_a_theme_is_chosen_and_stays(gw: Gateway, chromium: Browser):
    page, _ = await log_in(gw, chromium, color_scheme="light")
    light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    await page.get_by_role("button", name="Dark").click()
    dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    await page.reload()
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    await page.context.close()
