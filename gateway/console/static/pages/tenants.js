// Tenants: who they are, what bounds them, what they have used of it.
import { When, ask, askAll, html, useLoad, useState } from "../base.js";
import { Badge, Card, Choice, Empty, Field, FormDialog, Loaded, Page, Table } from "../ui.js";
import { KeyList } from "./keys.js";
import { Bounds, Limits } from "./limits.js";
import { UsageOf } from "./usage.js";

const PERIODS = ["day", "week", "month", "total"];

const Suspended = ({ of }) => (of.suspended ? html`<${Badge} tone="bad">suspended<//>` : html`<${Badge} tone="good">active<//>`);

export function Tenants({ may, go }) {
  const [search, setSearch] = useState("");
  const [making, setMaking] = useState(false);
  const tenants = useLoad(() => askAll("/admin/tenants"), []);
  const wanted = search.trim().toLowerCase();
  const columns = [
    { key: "name", label: "Tenant", cell: (each) => html`<b>${each.name}</b>`, sort: (each) => each.name },
    { key: "state", label: "State", cell: (each) => html`<${Suspended} of=${each} />`, sort: (each) => each.suspended || "" },
    { key: "bounds", label: "Bounds of its own", wide: true, cell: (each) => html`<${Bounds} policy=${each.policy} />${each.config_policy && html`<span class="sub">by the configuration: <${Bounds} policy=${each.config_policy} /></span>`}` },
    { key: "created", label: "Since", cell: (each) => (each.created ? html`<${When} at=${each.created} as="day" />` : html`<span class="soft">configured</span>`), sort: (each) => each.created },
  ];
  return html`
    <${Page} title="Tenants" about="Whose calls are served, and billed." actions=${may && html`<button class="primary" onClick=${() => setMaking(true)}>New tenant</button>`}>
      <div class="filters"><input type="search" aria-label="Search tenants" placeholder="Name" value=${search} onInput=${(event) => setSearch(event.target.value)} /></div>
      <${Loaded} of=${tenants}>${(all) => html`<${Card} flush><${Table} label="Tenants" columns=${columns} rows=${all.filter((each) => each.name.toLowerCase().includes(wanted))} id=${(each) => each.name}
        open=${(each) => go(`tenants/${encodeURIComponent(each.name)}`)} empty=${html`<${Empty} title="No tenants yet">One is made with its first key as well.<//>`} /><//>`}<//>
      ${making && html`<${FormDialog} title="New tenant" label="Make it" close=${() => setMaking(false)} done=${(made) => go(`tenants/${encodeURIComponent(made.name)}`)}
        send=${({ name }) => ask("/admin/tenants", { method: "POST", body: { name } })}>
        <${Field} label="Name" name="name" required pattern="[A-Za-z0-9][A-Za-z0-9._@\\-]{0,63}" hint="1 to 64 letters, digits and . _ @ -, beginning with a letter or digit." /><//>`}
    <//>`;
}

export function Tenant({ name, may }) {
  const [view, setView] = useState("overview");
  const [doing, setDoing] = useState(null);
  const path = `/admin/tenants/${encodeURIComponent(name)}`;
  const tenant = useLoad(() => ask(path), [name]);
  const done = () => {
    setDoing(null);
    tenant.again();
  };
  const found = tenant.value;
  const views = html`<${Choice} label="View" options=${[["overview", "Overview"], ["keys", "Keys"], ["usage", "Usage"], ["projects", "Projects"]]} value=${view} set=${setView} />`;
  if (view === "usage")
    return html`<${UsageOf} path=${`/admin/usage`} only=${{ tenant: name }} title=${name} about="What it has used." actions=${views}
      groups=${[["model", "Model"], ["key", "Key"], ["project", "Project"], ["customer", "Customer"], ["tier", "Tier"], ["endpoint", "Endpoint"]]} measures=${["charge_nano_usd", "cost_nano_usd", "tokens", "calls", "errors"]} />`;
  return html`
    <${Page} title=${name} about=${html`<a href="/console/tenants">Tenants</a>${found && html` · <${Suspended} of=${found} />${found.created ? html` · since <${When} at=${found.created} as="day" />` : " · only in the configuration"}`}`} actions=${views}>
      ${view === "keys" && html`<${KeyList} tenant=${name} may=${may} />`}
      ${view === "projects" && html`<${Projects} tenant=${name} may=${may} />`}
      ${view === "overview" && html`<${Loaded} of=${tenant}>${(each) => html`
        <div class="columns">
          <${Card} title="Bounds of its own" id="bounds" actions=${may && each.created && html`<button class="small" onClick=${() => setDoing("policy")}>Change</button>`}>
            <p><${Bounds} policy=${each.policy} /></p>
            ${each.config_policy && html`<h3>By the configuration as well</h3><p><${Bounds} policy=${each.config_policy} /></p>`}
            ${each.metadata && html`<h3>Your words for it</h3><dl class="pairs">${Object.entries(each.metadata).map(([key, value]) => html`<dt key=${key}>${key}</dt><dd>${value}</dd>`)}</dl>`}
            ${may && each.created && html`<h3>${each.suspended ? "It is suspended" : "Suspend"}</h3><p class="soft">While it is, no call is admitted; those under way end.</p>
              <button class=${each.suspended ? "small" : "small danger"} onClick=${() => setDoing("suspend")}>${each.suspended ? "Let it call again" : "Suspend it"}</button>`}
          <//>
          <${Limits} tenant=${name} />
        </div>`}<//>`}
      ${doing === "policy" && html`<${PolicyForm} title=${`Bounds of ${name}`} policy=${found.policy} close=${() => setDoing(null)} done=${done} send=${(policy) => ask(path, { method: "PATCH", body: { policy } })} />`}
      ${doing === "suspend" && html`<${FormDialog} title=${found.suspended ? `Let ${name} call again?` : `Suspend ${name}?`} label=${found.suspended ? "Let it" : "Suspend"} tone=${found.suspended ? "primary" : "danger"}
        close=${() => setDoing(null)} done=${done} send=${() => ask(path, { method: "PATCH", body: { suspended: !found.suspended } })}>
        <p>${found.suspended ? "Its keys admit calls again within a second." : "Its keys admit nothing within a second, until you take it back."}</p><//>`}
    <//>`;
}

/** The bounds that most want, as a form; the others as they are sent. */
export function PolicyForm({ title, policy, send, ...rest }) {
  const { requests_per_min, tokens_per_min, concurrency, budgets = {}, ...others } = policy || {};
  const read = (values) => {
    const given = values.others.trim() ? JSON.parse(values.others) : {};
    for (const name of ["requests_per_min", "tokens_per_min", "concurrency"]) if (values[name]) given[name] = Number(values[name]);
    const amounts = PERIODS.filter((period) => values[period]).map((period) => [period, values[period]]);
    if (amounts.length) given.budgets = Object.fromEntries(amounts);
    return Object.keys(given).length ? given : null;
  };
  return html`<${FormDialog} title=${title} ...${rest} send=${async (values) => send(read(values))}>
    <div class="fields"><${Field} label="Requests a minute" name="requests_per_min" type="number" min="1" value=${requests_per_min} />
      <${Field} label="Tokens a minute" name="tokens_per_min" type="number" min="1" value=${tokens_per_min} />
      <${Field} label="Calls at once" name="concurrency" type="number" min="1" value=${concurrency} /></div>
    <div class="fields">${PERIODS.map((period) => html`<${Field} key=${period} label=${period === "total" ? "Budget in all, USD" : `Budget a ${period}, USD`} name=${period} inputmode="decimal" pattern="[0-9]+(\\.[0-9]{1,9})?" value=${budgets[period]} />`)}</div>
    <${Field} label="Further bounds, as JSON" name="others" rows="4" value=${Object.keys(others).length ? JSON.stringify(others, null, 2) : ""} placeholder=${'{"models": ["…"], "tiers": ["default"], "least_trust": "verified"}'} hint="models, tiers, least_trust, regions, max_price, apis, networks" />
  <//>`;
}

function Projects({ tenant, may }) {
  const [doing, setDoing] = useState(null);
  const path = `/admin/tenants/${encodeURIComponent(tenant)}/projects`;
  const projects = useLoad(() => askAll(path), [tenant]);
  const done = () => {
    setDoing(null);
    projects.again();
  };
  const columns = [
    { key: "name", label: "Project", cell: (each) => html`<b>${each.name}</b>`, sort: (each) => each.name },
    { key: "state", label: "State", cell: (each) => html`<${Suspended} of=${each} />` },
    { key: "bounds", label: "Bounds", wide: true, cell: (each) => html`<${Bounds} policy=${each.policy} />` },
    { key: "created", label: "Since", cell: (each) => html`<${When} at=${each.created} as="day" />` },
    ...(may ? [{ key: "do", label: "", cell: (each) => html`<div class="rowend"><button class="small" onClick=${() => setDoing(each)}>Bounds</button></div>` }] : []),
  ];
  return html`
    ${may && html`<div class="filters"><button class="primary" onClick=${() => setDoing("new")}>New project</button></div>`}
    <${Loaded} of=${projects}>${(all) => html`<${Card} flush><${Table} label="Projects" columns=${columns} rows=${all} id=${(each) => each.name} empty=${html`<${Empty} title="No projects">Keys can be put into one, to bound and to count them together.<//>`} /><//>`}<//>
    ${doing === "new" && html`<${FormDialog} title="New project" label="Make it" close=${() => setDoing(null)} done=${done} send=${({ name }) => ask(path, { method: "POST", body: { name } })}><${Field} label="Name" name="name" required /><//>`}
    ${doing?.name && html`<${PolicyForm} title=${`Bounds of ${doing.name}`} policy=${doing.policy} close=${() => setDoing(null)} done=${done} send=${(policy) => ask(`${path}/${encodeURIComponent(doing.name)}`, { method: "PATCH", body: { policy } })} />`}`;
}
