// The console itself: who is logged in, which page shows, and what is around it.
import { ask, html, render, useCallback, useEffect, useState, withSession } from "./base.js";
import { Choice, Field, Icon, Loading, Problem } from "./ui.js";
import { Audit, Administrators } from "./pages/audit.js";
import { Budgets, Invoices, Payouts } from "./pages/money.js";
import { Calls } from "./pages/calls.js";
import { Config } from "./pages/config.js";
import { Explain } from "./pages/explain.js";
import { Fleet } from "./pages/fleet.js";
import { Keys } from "./pages/keys.js";
import { Own, OwnKeys, OwnUsage } from "./pages/own.js";
import { Tenant, Tenants } from "./pages/tenants.js";
import { Usage } from "./pages/usage.js";

const OF_ADMINS = [
  ["Now", [["fleet", "Fleet", Fleet], ["calls", "Calls", Calls]]],
  ["Tenants", [["tenants", "Tenants", Tenants], ["keys", "Keys", Keys], ["usage", "Usage", Usage], ["budgets", "Budgets", Budgets]]],
  ["Money", [["invoices", "Invoices", Invoices], ["payouts", "Payouts", Payouts]]],
  ["Gateway", [["explain", "Explain", Explain], ["config", "Configuration", Config, "config"], ["audit", "Audit log", Audit], ["admins", "Administrators", Administrators]]],
];
const OF_TENANTS = [["Yours", [["overview", "Limits", Own, "budgets"], ["usage", "Usage", OwnUsage], ["keys", "Keys", OwnKeys]]]];

const here = () => location.pathname.replace(/^\/console\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);

/** Where we are, and the way to elsewhere. */
function useRoute() {
  const [route, setRoute] = useState(here);
  const go = useCallback((path) => {
    history.pushState(null, "", `/console/${path}`);
    setRoute(here());
    scrollTo(0, 0);
    document.querySelector("main")?.focus({ preventScroll: true });
  }, []);
  useEffect(() => {
    const back = () => setRoute(here());
    const follow = (event) => {
      const link = event.target.closest?.("a[href^='/console/']");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      go(link.getAttribute("href").slice("/console/".length));
    };
    addEventListener("popstate", back);
    addEventListener("click", follow);
    return () => {
      removeEventListener("popstate", back);
      removeEventListener("click", follow);
    };
  }, []);
  return [route, go];
}

function Console() {
  const [session, setSession] = useState(undefined);
  const [failure, setFailure] = useState(null);
  const [over, setOver] = useState(null);
  const take = (found) => {
    withSession(found, (problem) => {
      setOver(problem);
      setSession((before) => ({ ...before, role: null, token: "" }));
    });
    setSession(found);
  };
  const look = async () => {
    setFailure(null);
    try {
      take(await ask("/console/session"));
    } catch (problem) {
      setFailure(problem);
    }
  };
  useEffect(() => {
    look();
  }, []);
  if (failure) return html`<main class="alone"><${Problem} failure=${failure} again=${look} /></main>`;
  if (session === undefined) return html`<main class="alone"><${Loading} /></main>`;
  if (!session.role) return html`<${Login} over=${over} done=${(found) => { setOver(null); take(found); }} />`;
  return html`<${Shell} session=${session} left=${take} />`;
}

function Login({ done, over }) {
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    document.title = "Log in · Tidegate";
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    const key = new FormData(event.target).get("key");
    setBusy(true);
    setFailure(null);
    try {
      done(await ask("/console/login", { method: "POST", body: { key }, quiet: true }));
    } catch (problem) {
      setFailure(problem);
      setBusy(false);
    }
  };
  return html`
    <main class="login">
      <${Waves} />
      <form class="card" onSubmit=${submit}>
        <h1><${Brand} /></h1>
        ${over && !failure && html`<p class="note" role="status">Your session has ended. ${over.message}</p>`}
        <${Field} label="Key" name="key" type="password" required autofocus autocomplete="current-password" placeholder="tga-… or tg-…"
          hint="An admin key or the master key; with a key for calls you see your own tenant’s page." />
        ${failure && html`<${Problem} failure=${failure} />`}
        <button class="primary" disabled=${busy}>Log in</button>
      </form>
    </main>`;
}

const Brand = () => html`<span class="brand"><svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" /><path d="M5 13c3.700 0 3.700 3.200 7.300 3.200S16 13 19.700 13s3.600 3.200 7.300 3.200M5 20c3.700 0 3.700 3.200 7.300 3.200S16 20 19.700 20s3.600 3.200 7.300 3.200" /></svg>Tidegate</span>`;

const Waves = () => html`<svg class="waves" viewBox="0 0 1200 200" preserveAspectRatio="none" aria-hidden="true">
  <path d="M0 90c150 0 150 40 300 40s150-40 300-40 150 40 300 40 150-40 300-40v110H0z" /><path d="M0 120c150 0 150 40 300 40s150-40 300-40 150 40 300 40 150-40 300-40v80H0z" /></svg>`;

function Shell({ session, left }) {
  const [[name, ...rest], go] = useRoute();
  const [open, setOpen] = useState(false);
  const groups = session.role === "tenant" ? OF_TENANTS : OF_ADMINS;
  const pages = groups.flatMap(([, each]) => each);
  const found = pages.find(([key]) => key === name);
  const first = pages[0][0];
  useEffect(() => {
    if (!name) history.replaceState(null, "", `/console/${first}`);
    setOpen(false);
  }, [name, rest.join("/")]);
  const Shown = (found || (name ? null : pages[0]))?.[2];
  const may = session.role === "admin";
  const out = async () => left(await ask("/console/logout", { method: "POST" }));
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>To the page</a>
    <div class=${`shell${open ? " open" : ""}`}>
      <nav class="side" aria-label="Pages">
        <div class="side-top"><a class="home" href=${`/console/${first}`}><${Brand} /></a>
          <button class="plain menu" aria-expanded=${open} aria-label="Menu" onClick=${() => setOpen(!open)}><${Icon} name=${open ? "close" : "menu"} /></button></div>
        <div class="side-rest">
          ${groups.map(([title, each]) => html`
            <h2 key=${title} id=${`nav-${title}`}>${title}</h2>
            <ul aria-labelledby=${`nav-${title}`}>${each.map(([key, label, , icon]) => html`
              <li key=${key}><a href=${`/console/${key}`} aria-current=${key === (name || first) ? "page" : undefined}><${Icon} name=${icon || key} />${label}</a></li>`)}</ul>`)}
          <div class="side-end">
            <${Theme} />
            <div class="who"><div><b>${session.tenant || session.name || "This machine"}</b>
              <small>${session.role === "read" ? "may look, changes nothing" : session.role === "tenant" ? `key ${session.name}` : session.asks_for_keys ? "administrator" : "no keys are asked for"}</small></div>
              ${session.asks_for_keys && html`<button class="plain" aria-label="Log out" title="Log out" onClick=${out}><${Icon} name="out" /></button>`}</div>
            <small class="version">Tidegate ${session.version}${session.role !== "tenant" && html` · <a href="/admin/docs">API</a>`}</small>
          </div>
        </div>
      </nav>
      <main id="main" tabindex="-1">
        ${name === "tenants" && rest.length
          ? html`<${Tenant} key=${rest[0]} name=${rest[0]} session=${session} may=${may} go=${go} />`
          : Shown
            ? html`<${Shown} key=${name} session=${session} may=${may} go=${go} rest=${rest} />`
            : html`<h1>There is no such page</h1><p><a href=${`/console/${first}`}>To the first one</a></p>`}
      </main>
    </div>`;
}

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || "system");
  const set = (to) => {
    setTheme(to);
    if (to === "system") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("tidegate.theme");
    } else {
      document.documentElement.dataset.theme = to;
      localStorage.setItem("tidegate.theme", to);
    }
  };
  const icon = (name, label) => html`<${Icon} name=${name} /><span class="hidden">${label}</span>`;
  return html`<div class="theme"><${Choice} label="Colours" value=${theme} set=${set}
    options=${[["light", icon("light", "Light")], ["dark", icon("dark", "Dark")], ["system", icon("system", "As the system")]]} /></div>`;
}

render(html`<${Console} />`, document.getElementById("console"));
