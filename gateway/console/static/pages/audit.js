// Who has changed what, and who may.
import { When, ask, count, html, query, usd, useLoad, useState } from "../base.js";
import { Badge, Card, Empty, Field, FormDialog, Loaded, Page, Secret, Table } from "../ui.js";
import { stateOf } from "./keys.js";

export function Audit() {
  const [tenant, setTenant] = useState("");
  const [before, setBefore] = useState([]);
  const entries = useLoad(() => ask(query("/admin/audit", { tenant: tenant.trim(), before: before.at(-1), most: 50 })), [tenant, before]);
  const columns = [
    { key: "time", label: "When", cell: (each) => html`<${When} at=${each.time} />` },
    { key: "actor", label: "Who", cell: (each) => html`${each.actor}<span class="sub">${each.source}</span>` },
    { key: "action", label: "Did", cell: (each) => html`<b class="nowrap">${each.action}</b>` },
    { key: "subject", label: "To", cell: (each) => html`<code>${each.subject}</code>` },
    { key: "change", label: "Change", wide: true, cell: (each) => html`<${Change} before=${each.before} after=${each.after} />` },
  ];
  return html`
    <${Page} title="Audit log" about="Every change by an administrator or a command. Entries are never changed, nor deleted.">
      <div class="filters"><input type="search" aria-label="Only of this tenant" placeholder="Only of this tenant" value=${tenant} onChange=${(event) => { setTenant(event.target.value); setBefore([]); }} /></div>
      <${Loaded} of=${entries}>${(page) => html`<${Card} flush><${Table} label="Changes" columns=${columns} rows=${page.data} id=${(each) => each.id} empty=${html`<${Empty} title="Nothing has been changed" />`} /><//>
        <div class="actions">${before.length > 0 && html`<button onClick=${() => setBefore(before.slice(0, -1))}>Newer</button>`}${page.before && html`<button onClick=${() => setBefore([...before, page.before])}>Older</button>`}</div>`}<//>
    <//>`;
}

/** Of what is new, what the other columns say already, and what nobody asks for. */
const KNOWN = new Set(["id", "new", "kind", "account", "prefix", "last4", "time_ms", "created_ms", "issued_ms"]);
const isSaid = (value) => value != null && value !== "";
const named = (name) => name.replace(/_(nano_usd|pico_usd|ms)$/, "").replaceAll("_", " ");

/** A value in words, by its name: money in USD to its last digit, times as they are here. */
function said(name, value) {
  if (Array.isArray(value)) return value.join(", ");
  if (value !== null && typeof value === "object") {
    const inside = (key) => (name === "budgets" ? `${key}_nano_usd` : key);
    return Object.entries(value).filter(([, each]) => isSaid(each)).map(([key, each], i) => html`${i > 0 && "; "}${named(key)} ${said(inside(key), each)}`);
  }
  if (name.endsWith("_nano_usd")) return usd(value, 9);
  if (name.endsWith("_pico_usd")) return `${usd(value * 1000, 9)} per million`;
  if (name.endsWith("_ms")) return html`<${When} at=${value} />`;
  return typeof value === "number" ? count(value) : String(value);
}

function Change({ before, after }) {
  const names = [...new Set([...Object.keys(before || {}), ...Object.keys(after || {})])];
  const differ = names.filter((name) => JSON.stringify(before?.[name]) !== JSON.stringify(after?.[name]) && (isSaid(before?.[name]) || isSaid(after?.[name])));
  const told = before ? differ : differ.filter((name) => !KNOWN.has(name));
  return html`<dl class="changes">${told.map((name) => html`<div key=${name}><dt>${named(name)}</dt> <dd>${isSaid(before?.[name]) && html`<del>${said(name, before[name])}</del> `}
    ${isSaid(after?.[name]) && (before ? html`<ins>${said(name, after[name])}</ins>` : said(name, after[name]))}</dd></div>`)}</dl>`;
}

export function Administrators({ may }) {
  const [doing, setDoing] = useState(null);
  const [secret, setSecret] = useState(null);
  const keys = useLoad(() => ask("/admin/admin-keys"), []);
  const done = (made) => {
    setDoing(null);
    if (made.key) setSecret(made);
    keys.again();
  };
  const columns = [
    { key: "name", label: "Key", cell: (key) => html`<b>${key.name || "unnamed"}</b><span class="sub mono">${key.prefix}…${key.last4}</span>`, sort: (key) => key.name || "" },
    { key: "role", label: "Role", cell: (key) => (key.role === "admin" ? "changes everything" : "looks, changes nothing"), sort: (key) => key.role },
    { key: "state", label: "State", cell: (key) => html`<${Badge} tone=${stateOf(key)[0]}>${stateOf(key)[1]}<//>`, sort: (key) => stateOf(key)[1] },
    { key: "created", label: "Made", cell: (key) => html`<${When} at=${key.created} as="day" />`, sort: (key) => key.created },
    { key: "expires", label: "Ends", cell: (key) => (key.expires ? html`<${When} at=${key.expires} />` : html`<span class="soft">never</span>`) },
    { key: "id", label: "Id", cell: (key) => html`<code>${key.id}</code>` },
    ...(may ? [{ key: "do", label: "", cell: (key) => !key.revoked && html`<div class="rowend"><button class="small danger" onClick=${() => setDoing(key)}>Revoke</button></div>` }] : []),
  ];
  return html`
    <${Page} title="Administrators" about="Keys for this console and the administration API; they are good for no call." actions=${may && html`<button class="primary" onClick=${() => setDoing("new")}>New admin key</button>`}>
      <${Loaded} of=${keys}>${({ data }) => html`<${Card} flush><${Table} label="Admin keys" columns=${columns} rows=${data} id=${(key) => key.id} empty=${html`<${Empty} title="No admin keys">Only the master key of the configuration gets in.<//>`} /><//>`}<//>
      ${doing === "new" && html`<${FormDialog} title="New admin key" label="Make it" close=${() => setDoing(null)} done=${done}
        send=${({ name, role, expires }) => ask("/admin/admin-keys", { method: "POST", body: { name: name || null, role, expires: expires ? new Date(expires).toISOString() : null } })}>
        <${Field} label="Name" name="name" placeholder="whose it is" maxlength="128" />
        <${Field} label="Role" name="role"><option value="read">Looks, changes nothing</option><option value="admin">Changes everything</option><//>
        <${Field} label="Ends" name="expires" type="datetime-local" hint="Empty: not by itself." /><//>`}
      ${doing?.id && html`<${FormDialog} title=${`Revoke ${doing.name || doing.id}?`} label="Revoke it" tone="danger" close=${() => setDoing(null)} done=${done} send=${() => ask(`/admin/admin-keys/${doing.id}`, { method: "DELETE" })}>
        <p>Its sessions end within a second.</p><//>`}
      ${secret && html`<${Secret} title=${`Admin key ${secret.name || secret.id}`} secret=${secret.key} close=${() => setSecret(null)} />`}
    <//>`;
}
