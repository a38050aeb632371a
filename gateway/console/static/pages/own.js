// A tenant's own: what bounds it, what it has used, and its keys.
import { When, ask, html, useLoad, usd } from "../base.js";
import { Badge, Card, Empty, Loaded, Page, Stat, Stats, Table } from "../ui.js";
import { Left } from "./limits.js";
import { stateOf } from "./keys.js";
import { UsageOf } from "./usage.js";

export function Own({ session }) {
  const used = useLoad(() => ask("/v1/usage?by="), [], 5000);
  return html`
    <${Page} title=${session.tenant} about="What bounds your calls, and what is left of it.">
      <${Loaded} of=${used}>${(found) => {
        const sums = found.data[0] || { calls: 0, charge_nano_usd: 0, prompt_tokens: 0, completion_tokens: 0 };
        return html`
          <${Stats}><${Stat} label="Charged this month" value=${usd(sums.charge_nano_usd)} /><${Stat} label="Calls this month" value=${sums.calls.toLocaleString("en-US")} />
            ${found.balance_nano_usd != null && html`<${Stat} label="Paid in and not spent" value=${usd(found.balance_nano_usd)} />`}<//>
          <${Card} title="What is left" id="left"><${Left} left=${found} /><//>
          <${Card} title="How to call" id="how"><dl class="pairs"><dt>Base URL</dt><dd><code>${location.origin}/v1</code></dd><dt>Key</dt><dd>the one you have logged in with, as <code>Authorization: Bearer …</code></dd></dl><//>`;
      }}<//>
    <//>`;
}

export const OwnUsage = () => html`<${UsageOf} path="/v1/usage" title="Usage" about="A call is in these sums a second or two after its end."
  groups=${[["model", "Model"], ["key", "Key"], ["project", "Project"], ["tier", "Tier"], ["customer", "Customer"]]} measures=${["charge_nano_usd", "tokens", "calls", "errors"]} />`;

export function OwnKeys() {
  const keys = useLoad(() => ask("/console/own/keys"), []);
  const columns = [
    { key: "name", label: "Key", cell: (key) => html`<b>${key.name || "unnamed"}</b><span class="sub mono">${key.prefix}…${key.last4}</span>`, sort: (key) => key.name || "" },
    { key: "project", label: "Project", cell: (key) => key.project || html`<span class="soft">–</span>`, sort: (key) => key.project || "" },
    { key: "state", label: "State", cell: (key) => html`<${Badge} tone=${stateOf(key)[0]}>${stateOf(key)[1]}<//>` },
    { key: "created", label: "Made", cell: (key) => html`<${When} at=${key.created} as="day" />`, sort: (key) => key.created },
    { key: "expires", label: "Ends", cell: (key) => (key.revoked ? html`<${When} at=${key.revoked} />` : key.expires ? html`<${When} at=${key.expires} />` : html`<span class="soft">never</span>`) },
    { key: "id", label: "Id", cell: (key) => html`<code>${key.id}</code>` },
  ];
  return html`<${Page} title="Keys" about="Keys are made and ended by the operator of this gateway.">
    <${Loaded} of=${keys}>${({ data }) => html`<${Card} flush><${Table} label="Keys" columns=${columns} rows=${data} id=${(key) => key.id} empty=${html`<${Empty} title="No keys" />`} /><//>`}<//><//>`;
}
