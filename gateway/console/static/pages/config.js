// The configuration as loaded, defaults included; secrets are masked by the gateway.
import { ask, html, useLoad, useState } from "../base.js";
import { Badge, Card, Empty, Loaded, Page } from "../ui.js";

const isBranch = (value) => value !== null && typeof value === "object" && Object.keys(value).length > 0;
const shown = (value) =>
  value === null ? html`<span class="soft">not set</span>` : typeof value === "object" ? html`<span class="soft">${Array.isArray(value) ? "empty list" : "empty"}</span>`
    : value === "**********" ? html`<span class="soft">secret</span>` : html`<code>${String(value)}</code>`;

/** Whether the path or the value has what is looked for. */
const has = (path, value, wanted) =>
  path.toLowerCase().includes(wanted) || (isBranch(value) ? Object.entries(value).some(([key, each]) => has(`${path}.${key}`, each, wanted)) : String(value).toLowerCase().includes(wanted));

function Branch({ name, path, value, wanted, open }) {
  if (wanted && !has(path, value, wanted)) return null;
  if (!isBranch(value)) return html`<div class="leaf"><span>${name}</span>${shown(value)}</div>`;
  return html`<details open=${open || Boolean(wanted)}><summary>${name}${Array.isArray(value) && html` <span class="soft">(${value.length})</span>`}</summary>
    ${Object.entries(value).map(([key, each]) => html`<${Branch} key=${key} name=${Array.isArray(value) ? each?.name || Number(key) + 1 : key} path=${`${path}.${key}`} value=${each} wanted=${wanted} open=${Object.keys(value).length < 4} />`)}</details>`;
}

export function Config() {
  const [search, setSearch] = useState("");
  const config = useLoad(() => ask("/admin/config"), [], 10_000);
  const wanted = search.trim().toLowerCase();
  return html`
    <${Page} title="Configuration" about="As it is in force, defaults included. It is changed in its file, which is taken over as it changes.">
      <${Loaded} of=${config} rows=${8}>${({ file, valid, waiting, config: all }) => html`
        <${Card}><dl class="pairs"><dt>File</dt><dd>${file ? html`<code>${file}</code>` : "none: made by a program"}</dd>
          <dt>State</dt><dd>${valid ? html`<${Badge} tone="good">in force as it stands<//>` : html`<${Badge} tone="bad">the file has changed and is not valid; the log says why<//>`}</dd>
          ${waiting.length > 0 && html`<dt>Take a restart</dt><dd>${waiting.map((each) => html`<code key=${each}>${each}</code> `)}</dd>`}</dl><//>
        <div class="filters"><input type="search" aria-label="Search the configuration" placeholder="Key or value" value=${search} onInput=${(event) => setSearch(event.target.value)} /></div>
        <${Card}><div class="tree">${Object.entries(all).map(([key, value]) => html`<${Branch} key=${key} name=${key} path=${key} value=${value} wanted=${wanted} />`)}</div>
          ${wanted && !Object.entries(all).some(([key, value]) => has(key, value, wanted)) && html`<${Empty} title="Nothing is like that" />`}<//>`}<//>
    <//>`;
}
