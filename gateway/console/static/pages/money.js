// Money: what is left of budgets, what tenants owe, what nodes have earned.
import { When, ask, askAll, html, query, usd, useLoad, useState } from "../base.js";
import { Card, Empty, Field, FormDialog, Loaded, Page, Stat, Stats, Table } from "../ui.js";
import { Left, nothing } from "./limits.js";

/** The work on each, a few at a time. */
async function each(items, work, atOnce = 6) {
  const found = [];
  const rest = [...items.entries()];
  const one = async () => {
    for (let next = rest.shift(); next; next = rest.shift()) found[next[0]] = await work(next[1]);
  };
  await Promise.all(Array.from({ length: atOnce }, one));
  return found;
}

const MOST = 100;

const ToTenant = ({ name }) => html`<a href=${`/console/tenants/${encodeURIComponent(name)}`}>${name}</a>`;

export function Budgets() {
  const budgets = useLoad(async () => {
    const tenants = await askAll("/admin/tenants");
    const shown = tenants.slice(0, MOST);
    const left = await each(shown, (tenant) => ask(query("/admin/left", { tenant: tenant.name })));
    const rows = shown.map((tenant, i) => ({ name: tenant.name, left: left[i] }));
    return { more: tenants.length - shown.length, free: rows.filter((row) => nothing(row.left)), rows: rows.filter((row) => !nothing(row.left)) };
  }, [], 15_000);
  return html`<${Page} title="Budgets" about="What is left of every tenant’s limits and budgets, counted over all gateways that share their state.">
    <${Loaded} of=${budgets}>${({ rows, free, more }) => html`
      ${rows.length ? html`<div class="columns">${rows.map((row) => html`<${Card} key=${row.name} title=${html`<${ToTenant} name=${row.name} />`} id=${`budget-${row.name}`}><${Left} left=${row.left} /><//>`)}</div>`
        : html`<${Card}><${Empty} title="No tenant is bounded">Give one a budget or a limit on its page.<//><//>`}
      ${rows.length > 0 && free.length > 0 && html`<p class="note">Nothing bounds ${free.map((row, i) => html`${i > 0 && ", "}<${ToTenant} name=${row.name} />`)}.</p>`}
      ${more > 0 && html`<p class="note">and ${more} tenants more, each on its own page</p>`}`}<//><//>`;
}

const months = () => {
  const now = new Date();
  return Array.from({ length: 13 }, (_, i) => new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - i, 1)).toISOString().slice(0, 7));
};
const Month = ({ month, set }) => html`<select aria-label="Month" value=${month} onChange=${(event) => set(event.target.value)}>${months().map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select>`;
const bill = (path, name, month) => `/admin/billing/${path}/${encodeURIComponent(name)}/${month}`;
const Files = ({ path, name, month }) => html`<span>${["pdf", "csv"].map((format) => html`<a key=${format} class="button small" href=${`${bill(path, name, month)}?format=${format}`} target="_blank" rel="noopener" aria-label=${`${name}, ${month}, as ${format.toUpperCase()}`}>${format.toUpperCase()}</a> `)}</span>`;

const balancesOf = async (kind) => {
  const { amounts_nano_usd } = await ask("/admin/billing/balances");
  return Object.entries(amounts_nano_usd).filter(([account]) => account.startsWith(kind)).map(([account, amount]) => ({ name: account.slice(kind.length), amount }));
};

const order = (kind, whom) => ({ amount_usd, note }) =>
  ask(`/admin/billing/${kind}`, { method: "POST", body: { whom, amount_usd, note: note || "", idempotency_key: crypto.randomUUID?.() || `${Date.now()}-${Math.random()}` } });

export function Invoices({ may }) {
  const [doing, setDoing] = useState(null);
  const [month, setMonth] = useState(months()[0]);
  const accounts = useLoad(() => balancesOf("tenant:"), []);
  const issued = useLoad(() => askAll("/admin/billing/invoices"), []);
  const again = () => {
    setDoing(null);
    accounts.again();
    issued.again();
  };
  const ofIssued = [
    { key: "number", label: "Number", cell: (each) => html`<b>${each.number}</b>`, sort: (each) => each.number },
    { key: "tenant", label: "Tenant", cell: (each) => each.tenant, sort: (each) => each.tenant },
    { key: "month", label: "Month", cell: (each) => each.month, sort: (each) => each.month },
    { key: "issued", label: "Issued", cell: (each) => html`<${When} at=${each.issued} as="day" />`, sort: (each) => each.issued },
    { key: "total", label: "Total", num: true, cell: (each) => usd(each.total_nano_usd), sort: (each) => each.total_nano_usd },
    { key: "files", label: "", cell: (each) => html`<div class="rowend"><${Files} path="invoices" name=${each.tenant} month=${each.month} /></div>` },
  ];
  const columns = [
    { key: "name", label: "Tenant", cell: (row) => html`<a href=${`/console/tenants/${encodeURIComponent(row.name)}`}><b>${row.name}</b></a>`, sort: (row) => row.name },
    { key: "owes", label: "Owes", num: true, cell: (row) => usd(row.amount), sort: (row) => row.amount },
    { key: "files", label: "Invoice of the month", cell: (row) => html`<${Files} path="invoices" name=${row.name} month=${month} />${may && month < months()[0] && html`<button class="small" onClick=${() => setDoing(["issue", row.name])}>Issue</button>`}` },
    ...(may ? [{ key: "do", label: "", cell: (row) => html`<div class="rowend">${["payment", "credit"].map((kind) => html`<button key=${kind} class="small" onClick=${() => setDoing([kind, row.name])}>Enter ${kind}</button>`)}</div>` }] : []),
  ];
  return html`<${Page} title="Invoices" about="What each tenant owes by the ledger; below zero it has paid in advance. What is not issued yet is a draft; a month can be issued once it is over." actions=${html`<${Month} month=${month} set=${setMonth} />`}>
    <${Loaded} of=${accounts}>${(rows) => html`
      <${Stats}><${Stat} label="Owed to us" value=${usd(rows.reduce((sum, row) => sum + Math.max(0, row.amount), 0))} /><${Stat} label="Paid in advance" value=${usd(-rows.reduce((sum, row) => sum + Math.min(0, row.amount), 0))} /><//>
      <${Card} flush><${Table} label="Tenants’ accounts" columns=${columns} rows=${rows} id=${(row) => row.name} start=${{ key: "owes", down: true }} empty=${html`<${Empty} title="Nobody owes anything yet" />`} /><//>`}<//>
    <${Loaded} of=${issued}>${(rows) => html`<${Card} title="Issued" id="issued" flush><${Table} label="Issued invoices" columns=${ofIssued} rows=${rows} id=${(each) => each.number} start=${{ key: "number", down: true }} empty=${html`<${Empty} title="None has been issued yet" />`} /><//>`}<//>
    ${doing?.[0] === "issue" && html`<${FormDialog} title=${`Issue ${doing[1]}’s invoice of ${month}?`} label="Issue it" close=${() => setDoing(null)} done=${again} send=${() => ask(bill("invoices", doing[1], month), { method: "POST" })}>
      <p>It gets a number and stays as it is; what comes in later is on the next one.</p><//>`}
    ${doing && doing[0] !== "issue" && html`<${Order} kind=${doing[0]} whom=${doing[1]} close=${() => setDoing(null)} done=${again} />`}
  <//>`;
}

const SAYS = { payment: "The tenant has paid this much.", credit: "It owes this much less, without having paid.", payout: "This much has been paid to the node." };

const Order = ({ kind, whom, amount, ...rest }) => html`
  <${FormDialog} title=${`${kind[0].toUpperCase()}${kind.slice(1)}: ${whom}`} label="Enter it" send=${order(kind, whom)} ...${rest}>
    <p>${SAYS[kind]} It is entered in the ledger for good, and once.</p>
    <${Field} label="Amount, USD" name="amount_usd" required inputmode="decimal" pattern="[0-9]+(\\.[0-9]{1,9})?" value=${amount} />
    <${Field} label="Note" name="note" placeholder="such as a reference" />
  <//>`;

export function Payouts({ may }) {
  const [doing, setDoing] = useState(null);
  const [month, setMonth] = useState(months()[0]);
  const accounts = useLoad(() => balancesOf("payout:"), []);
  const earned = useLoad(() => ask(query("/admin/usage", { from: "30d", by: "endpoint", limit: 10_000 })), []);
  const of = (name) => earned.value?.data.find((row) => row.endpoint === name);
  const columns = [
    { key: "name", label: "Node", cell: (row) => html`<b>${row.name}</b>`, sort: (row) => row.name },
    { key: "due", label: "Due to it", num: true, cell: (row) => usd(-row.amount), sort: (row) => -row.amount },
    { key: "calls", label: "Calls, 30 d", num: true, cell: (row) => (of(row.name) ? of(row.name).calls.toLocaleString("en-US") : "–"), sort: (row) => of(row.name)?.calls },
    { key: "earned", label: "Earned, 30 d", num: true, cell: (row) => usd(of(row.name)?.cost_nano_usd), sort: (row) => of(row.name)?.cost_nano_usd },
    { key: "files", label: "Statement", cell: (row) => html`<${Files} path="payouts" name=${row.name} month=${month} />` },
    ...(may ? [{ key: "do", label: "", cell: (row) => html`<div class="rowend"><button class="small" onClick=${() => setDoing(row)}>Enter payout</button></div>` }] : []),
  ];
  return html`<${Page} title="Payouts" about="What nodes have earned by the ledger and have not been paid yet." actions=${html`<${Month} month=${month} set=${setMonth} />`}>
    <${Loaded} of=${accounts}>${(rows) => html`
      <${Stats}><${Stat} label="Due to nodes" value=${usd(-rows.reduce((sum, row) => sum + row.amount, 0))} /><${Stat} label="Nodes with earnings" value=${rows.length} /><//>
      <${Card} flush><${Table} label="Nodes’ accounts" columns=${columns} rows=${rows} id=${(row) => row.name} start=${{ key: "due", down: true }} empty=${html`<${Empty} title="No node has earned anything yet" />`} /><//>`}<//>
    ${doing && html`<${Order} kind="payout" whom=${doing.name} amount=${doing.amount < 0 ? (-doing.amount / 1e9).toFixed(9) : ""} close=${() => setDoing(null)} done=${() => { setDoing(null); accounts.again(); }} />`}
  <//>`;
}
