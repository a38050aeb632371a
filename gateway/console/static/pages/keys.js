// Keys for calls: make one, seen this once; give it a new secret; end it.
import { When, ask, askAll, html, query, useLoad, useState } from "../base.js";
import { Badge, Card, Empty, Field, FormDialog, Loaded, Page, Secret, Table } from "../ui.js";
import { Bounds } from "./limits.js";

export const stateOf = (key) =>
  key.revoked ? ["bad", "revoked"] : key.expires && new Date(key.expires) < new Date() ? ["", "expired"] : ["good", "in force"];

export function Keys({ may }) {
  return html`<${Page} title="Keys" about="What calls are made with. Secrets are shown once, and kept by nobody."><${KeyList} may=${may} /><//>`;
}

export function KeyList({ tenant, project, may }) {
  const [search, setSearch] = useState("");
  const [ended, setEnded] = useState(false);
  const [doing, setDoing] = useState(null);
  const [secret, setSecret] = useState(null);
  const keys = useLoad(() => askAll(query("/admin/keys", { tenant, project })), [tenant, project]);
  const wanted = search.trim().toLowerCase();
  const done = (made) => {
    setDoing(null);
    if (made.key) setSecret(made);
    keys.again();
  };
  const columns = [
    { key: "name", label: "Key", cell: (key) => html`<b>${key.name || "unnamed"}</b><span class="sub mono">${key.prefix}…${key.last4}</span><span class="sub mono">${key.id}</span>`, sort: (key) => key.name || "" },
    ...(tenant ? [] : [{ key: "tenant", label: "Tenant", cell: (key) => html`<a href=${`/console/tenants/${encodeURIComponent(key.tenant)}`}>${key.tenant}</a>`, sort: (key) => key.tenant }]),
    { key: "project", label: "Project", cell: (key) => key.project || html`<span class="soft">–</span>`, sort: (key) => key.project || "" },
    { key: "state", label: "State", cell: (key) => html`<${Badge} tone=${stateOf(key)[0]}>${stateOf(key)[1]}<//>`, sort: (key) => stateOf(key)[1] },
    { key: "bounds", label: "Bounds of its own", wide: true, cell: (key) => html`<${Bounds} policy=${key.policy} />` },
    { key: "created", label: "Made", cell: (key) => html`<${When} at=${key.created} as="day" />`, sort: (key) => key.created },
    { key: "expires", label: "Ends", cell: (key) => (key.revoked ? html`<${When} at=${key.revoked} />` : key.expires ? html`<${When} at=${key.expires} />` : html`<span class="soft">never</span>`), sort: (key) => key.expires },
    ...(may ? [{ key: "do", label: "", cell: (key) => !key.revoked && html`<div class="rowend">
      <button class="small" onClick=${() => setDoing(["rotate", key])}>Rotate</button><button class="small danger" onClick=${() => setDoing(["revoke", key])}>Revoke</button></div>` }] : []),
  ];
  return html`
    <div class="filters"><input type="search" aria-label="Search keys" placeholder="Name, tenant, project, id" value=${search} onInput=${(event) => setSearch(event.target.value)} />
      <label class="check"><input type="checkbox" checked=${ended} onChange=${(event) => setEnded(event.target.checked)} /> Revoked and expired too</label>
      ${may && html`<button class="primary" onClick=${() => setDoing(["create"])}>New key</button>`}</div>
    <${Loaded} of=${keys}>${(all) => {
      const rows = all.filter((key) => (ended || stateOf(key)[1] === "in force") && (!wanted || [key.name, key.tenant, key.project, key.id, key.last4].some((each) => each?.toLowerCase().includes(wanted))));
      return html`<${Card} flush><${Table} label="Keys" columns=${columns} rows=${rows} id=${(key) => key.id} empty=${html`<${Empty} title=${all.length ? "None is like that" : "No keys yet"}>${may && !all.length ? "Make one, and a client can call." : ""}<//>`} /><//>`;
    }}<//>
    ${doing?.[0] === "create" && html`<${Create} tenant=${tenant} project=${project} close=${() => setDoing(null)} done=${done} />`}
    ${doing?.[0] === "rotate" && html`<${FormDialog} title=${`New secret for ${doing[1].name || doing[1].id}`} label="Rotate" close=${() => setDoing(null)} done=${done}
      send=${({ hours }) => ask(`/admin/keys/${doing[1].id}/rotate`, { method: "POST", body: { overlap_s: Math.round(Number(hours) * 3600) } })}>
      <p>The key keeps its id, limits and history. The secret of until now goes on for a while, so that nobody is cut off.</p>
      <${Field} label="Hours for which the old secret is good" name="hours" type="number" min="0" max="2160" step="any" value="24" required /><//>`}
    ${doing?.[0] === "revoke" && html`<${FormDialog} title=${`Revoke ${doing[1].name || doing[1].id}?`} label="Revoke it" tone="danger" close=${() => setDoing(null)} done=${done}
      send=${() => ask(`/admin/keys/${doing[1].id}`, { method: "DELETE" })}>
      <p>Calls with it are refused within a second, for good. Those under way finish.</p><//>`}
    ${secret && html`<${Secret} title=${`Key ${secret.name || secret.id}`} secret=${secret.key} close=${() => setSecret(null)}>
      <p class="soft">Base URL: <code>${location.origin}/v1</code></p><//>`}`;
}

function Create({ tenant, project, close, done }) {
  const tenants = useLoad(() => (tenant ? [] : askAll("/admin/tenants")), []);
  const send = ({ name, tenant: whose, project: part, expires }) =>
    ask("/admin/keys", {
      method: "POST",
      body: { tenant: whose || tenant, name: name || null, project: part || project || null, expires: expires ? new Date(expires).toISOString() : null },
    });
  return html`<${FormDialog} title="New key" label="Make it" close=${close} done=${done} send=${send}>
    ${!tenant && html`<${Field} label="Tenant" name="tenant" required list="tenants" hint="A new name makes a new tenant." /><datalist id="tenants">${(tenants.value || []).map((each) => html`<option key=${each.name} value=${each.name} />`)}</datalist>`}
    <${Field} label="Name" name="name" maxlength="128" placeholder="such as: web app, staging" />
    <div class="fields"><${Field} label="Project" name="project" placeholder="none" value=${project || ""} /><${Field} label="Ends" name="expires" type="datetime-local" hint="Empty: not by itself." /></div>
  <//>`;
}
