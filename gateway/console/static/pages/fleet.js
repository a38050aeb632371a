// The fleet as it is now: every endpoint, how fast, how busy, how full, how long it stays and what it earns.
import { ask, count, html, percent, short, span, usd, useEvents, useLoad, useRef, useState } from "../base.js";
import { Badge, Card, Chip, Choice, Dialog, Empty, Field, FormDialog, Loaded, Meter, Page, Stat, Stats, Table } from "../ui.js";
import { Spark } from "../chart.js";

const TONES = { serving: "good", ramping: "warn", leaving: "warn", draining: "warn", probing: "warn", out: "bad" };
const SAYS = {
  serving: "gets calls",
  ramping: "is new: a few calls at a time",
  leaving: "has given notice",
  draining: "gets nothing new, finishes what it has",
  probing: "is being probed before it gets calls",
  out: "is left alone",
};
const KEPT = 90;
const nameOf = (each) => `${each.model}/${each.name}`;
const earned = (each) => each.done?.earned_nano_usd || 0;

export function Fleet({ may }) {
  const [live, setLive] = useState(null);
  const [shape, setShape] = useState(localStorage.getItem("tidegate.fleet") || "map");
  const [looked, setLooked] = useState(null);
  const past = useRef(new Map());
  const first = useLoad(() => ask("/admin/fleet"), []);
  const take = (fleet) => {
    const known = new Map();
    for (const each of fleet.endpoints) {
      const values = past.current.get(nameOf(each)) || [];
      known.set(nameOf(each), [...values, each.inflight].slice(-KEPT));
    }
    past.current = known;
    setLive(fleet);
  };
  const events = useEvents({ fleet: true }, { fleet: take });
  const shown = live ? { ...first, value: live } : first;
  const choose = (to) => {
    setShape(to);
    localStorage.setItem("tidegate.fleet", to);
  };
  return html`
    <${Page} title="Fleet" about="Every endpoint as this gateway sees it now. Speeds are learned from calls."
      actions=${html`<${Live} state=${events} /><${Choice} label="Shown as" options=${[["map", "Map"], ["list", "List"]]} value=${shape} set=${choose} />`}>
      <${Loaded} of=${shown} rows=${6}>${(fleet) => html`
        <${Totals} fleet=${fleet} />
        ${!fleet.endpoints.length
          ? html`<${Card}><${Empty} title="No endpoints yet">Name some in the configuration, or have nodes register.<//><//>`
          : shape === "map"
            ? html`<${Map_} fleet=${fleet} past=${past.current} look=${setLooked} />`
            : html`<${List} fleet=${fleet} look=${setLooked} />`}
        ${looked && html`<${Looked} each=${fleet.endpoints.find((each) => nameOf(each) === looked)} past=${past.current.get(looked) || []} may=${may} close=${() => setLooked(null)} />`}`}
      <//>
    <//>`;
}

export const Live = ({ state }) =>
  html`<${Badge} tone=${state === "live" ? "good live" : state === "off" ? "" : "warn"}>${{ live: "live", late: "connecting", off: "paused" }[state]}<//>`;

function Totals({ fleet }) {
  const all = fleet.endpoints;
  const up = all.filter((each) => !each.reason).length;
  const done = all.map((each) => each.done).filter(Boolean);
  const sum = (name) => done.reduce((total, each) => total + each[name], 0);
  return html`<${Stats}>
    <${Stat} label="Get calls" value=${`${up} of ${all.length}`} tone=${up === 0 && all.length ? "bad" : ""} note=${up < all.length ? `${all.length - up} left alone` : "all of them"} />
    <${Stat} label="Calls under way" value=${count(fleet.running)} />
    <${Stat} label="Calls, last day" value=${short(sum("calls"))} note=${sum("errors") ? `${count(sum("errors"))} ended in errors` : "no errors"} />
    <${Stat} label="Tokens, last day" value=${short(sum("tokens"))} note=${`${percent(sum("tokens") ? sum("cached_tokens") / sum("tokens") : 0)} from caches`} />
    <${Stat} label="Earned by nodes, last day" value=${usd(all.reduce((total, each) => total + earned(each), 0))} />
  <//>`;
}

function Map_({ fleet, past, look }) {
  const models = [...new Set(fleet.endpoints.map((each) => each.model))];
  return models.map((model) => {
    const mine = fleet.endpoints.filter((each) => each.model === model);
    return html`<section key=${model} aria-label=${model}>
      <div class="model-head"><h2>${model}</h2><span class="soft">${mine.filter((each) => !each.reason).length} of ${mine.length} get calls</span></div>
      <div class="fleet">${mine.map((each) => html`<${Node} key=${nameOf(each)} each=${each} values=${past.get(nameOf(each)) || []} look=${look} />`)}</div>
    </section>`;
  });
}

function Node({ each, values, look }) {
  const tone = TONES[each.state];
  return html`
    <button class=${`node ${tone}`} onClick=${() => look(nameOf(each))}>
      <span class="node-head"><b>${each.name}</b><${Badge} tone=${tone} title=${SAYS[each.state]}>${each.state}<//></span>
      <span>${[each.kind === "worker" ? each.gpu : each.kind, each.region, each.trust].filter(Boolean).map((word) => html`<${Chip} key=${word}>${word}<//> `)}</span>
      ${each.reason && html`<span class="why soft">${each.reason}</span>`}
      ${each.leaves_in_s != null && html`<span class="why warn">leaves in ${span(Math.max(0, each.leaves_in_s) * 1000)}</span>`}
      <${Spark} values=${values} label=${`Calls under way at ${each.name} over the last minute and a half`} />
      <span class="load">
        <span class="soft">In flight</span><${Meter} share=${each.inflight / 32} label="Calls under way, of 32" tone=${each.inflight > 32 ? "warn" : ""} /><span>${each.inflight}</span>
        <span class="soft">Reading</span><${Meter} share=${each.busy} label="Time spent on reading prompts" /><span>${percent(each.busy)}</span>
        <span class="soft">KV cache</span><${Meter} share=${each.kv_usage} label="KV cache held by calls" /><span>${percent(each.kv_usage)}</span>
      </span>
      <dl>
        <div><dt>Reads, tok/s</dt><dd>${short(each.prefill_tokens_per_s)}</dd></div>
        <div><dt>Writes, tok/s</dt><dd>${short(each.decode_tokens_per_s)}</dd></div>
        <div><dt>Cache hits</dt><dd>${percent(each.cache_hits)}</dd></div>
        <div><dt>Stays</dt><dd>${each.history?.median_stay_s == null ? "–" : span(each.history.median_stay_s * 1000)}</dd></div>
        <div><dt>Served, 1 d</dt><dd>${each.done ? short(each.done.calls) : "–"}</dd></div>
        <div><dt>Earned, 1 d</dt><dd>${each.done ? usd(earned(each)) : "–"}</dd></div>
      </dl>
    </button>`;
}

function List({ fleet, look }) {
  const by = (read) => ({ sort: read });
  const columns = [
    { key: "name", label: "Endpoint", cell: (each) => html`<b>${each.name}</b><span class="sub">${each.model}</span>`, ...by((each) => each.name) },
    { key: "state", label: "State", cell: (each) => html`<${Badge} tone=${TONES[each.state]} title=${each.reason || SAYS[each.state]}>${each.state}<//>`, ...by((each) => each.state) },
    { key: "kind", label: "Kind", cell: (each) => html`${each.kind}<span class="sub">${[each.gpu, each.region].filter(Boolean).join(" · ")}</span>`, ...by((each) => each.kind) },
    { key: "inflight", label: "In flight", num: true, cell: (each) => each.inflight, ...by((each) => each.inflight) },
    { key: "reads", label: "Reads tok/s", num: true, cell: (each) => short(each.prefill_tokens_per_s), ...by((each) => each.prefill_tokens_per_s) },
    { key: "writes", label: "Writes tok/s", num: true, cell: (each) => short(each.decode_tokens_per_s), ...by((each) => each.decode_tokens_per_s) },
    { key: "kv", label: "KV cache", num: true, cell: (each) => percent(each.kv_usage), ...by((each) => each.kv_usage) },
    { key: "hits", label: "Cache hits", num: true, cell: (each) => percent(each.cache_hits), ...by((each) => each.cache_hits) },
    { key: "stay", label: "Stays", num: true, cell: (each) => (each.history?.median_stay_s == null ? "–" : span(each.history.median_stay_s * 1000)), ...by((each) => each.history?.median_stay_s) },
    { key: "calls", label: "Calls, 1 d", num: true, cell: (each) => (each.done ? count(each.done.calls) : "–"), ...by((each) => each.done?.calls) },
    { key: "earned", label: "Earned, 1 d", num: true, cell: (each) => (each.done ? usd(earned(each)) : "–"), ...by(earned) },
  ];
  return html`<${Card} flush><${Table} label="Endpoints" columns=${columns} rows=${fleet.endpoints} id=${nameOf} open=${(each) => look(nameOf(each))} start=${{ key: "name" }} /><//>`;
}

function Looked({ each, past, may, close }) {
  const [draining, setDraining] = useState(false);
  const [failure, setFailure] = useState(null);
  if (!each) return html`<${Dialog} title="It has left" close=${close}><p>This endpoint is no longer there.</p><//>`;
  const stay = async () => {
    try {
      await ask(`/admin/nodes/${encodeURIComponent(each.name)}/drain`, { method: "DELETE" });
      setFailure(null);
    } catch (problem) {
      setFailure(problem);
    }
  };
  if (draining)
    return html`<${FormDialog} title=${`Drain ${each.name}`} label="Drain" tone="danger" close=${() => setDraining(false)} done=${() => setDraining(false)}
      send=${({ within_s }) => ask(`/admin/nodes/${encodeURIComponent(each.name)}/drain`, { method: "POST", body: within_s ? { within_s: Number(within_s) } : {} })}>
      <p>It gets nothing new from now on. What still runs shortly before the deadline is finished elsewhere.</p>
      <${Field} label="Within seconds" name="within_s" type="number" min="0" step="any" placeholder="as long as a call may take" /><//>`;
  const hours = each.history?.hours || [];
  const pairs = [
    ["Model", `${each.model}${each.served_model !== each.model ? `, there ${each.served_model}` : ""}`],
    ["Kind", [each.kind, each.gpu, each.region, `trust: ${each.trust}`].filter(Boolean).join(" · ")],
    ["Known from", each.source],
    ["Context", each.context_tokens ? `${count(each.context_tokens)} tokens` : "not said"],
    ["Calls there", `${each.inflight}, of which ${each.decoding} are written${each.waiting == null ? "" : `; ${each.waiting} wait`}`],
    ["Speed", `reads ${count(each.prefill_tokens_per_s)} tokens/s, writes ${count(each.decode_tokens_per_s)} tokens/s a stream`],
    ["Before the first token", `${span(each.base_ttft_ms)} besides reading`],
    ["KV cache", each.kv_usage == null ? "not said" : `${percent(each.kv_usage, 1)}${each.kv_tokens ? ` of ${count(each.kv_tokens)} tokens` : ""}`],
    ["Prefix cache", each.cache_hits == null ? "not said" : `${percent(each.cache_hits, 1)} of what was looked up`],
    ["Attempts since start", Object.entries(each.attempts).map(([outcome, n]) => `${count(n)} ${outcome}`).join(", ") || "none"],
    ["Ejected", `${each.ejections} times`],
    ["Last day", each.done ? `${count(each.done.calls)} calls, ${short(each.done.tokens)} tokens, ${usd(earned(each))} earned, ${short(each.done.wasted_tokens)} tokens wasted` : "nothing"],
    ["Stays", each.history?.stays ? `${each.history.stays} in 30 days, half of them longer than ${span(each.history.median_stay_s * 1000)}; ${Object.entries(each.history.endings).map(([how, n]) => `${n} ${how}`).join(", ") || "none ended"}` : "does not register"],
    ["Lease", each.lease_left_s == null ? "none" : `${span(Math.max(0, each.lease_left_s) * 1000)} left`],
  ];
  return html`
    <${Dialog} title=${each.name} close=${close} wide>
      <p><${Badge} tone=${TONES[each.state]}>${each.state}<//> <span class="soft">${each.reason || SAYS[each.state]}</span></p>
      ${failure && html`<p class="bad">${failure.message}</p>`}
      <${Spark} values=${past} label="Calls under way over the last minute and a half" />
      <dl class="pairs">${pairs.map(([name, value]) => html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}</dl>
      ${hours.some(Boolean) && html`<h3>There by hour of the day (UTC)</h3><div class="hours" role="img" aria-label=${`By hour: ${hours.map((share, hour) => `${hour}: ${percent(share)}`).join(", ")}`}>${hours.map((share, hour) => html`<i key=${hour} title=${`${hour}:00 UTC: ${percent(share)}`} style=${{ height: `${share * 100}%` }}></i>`)}</div>`}
      ${may && each.kind === "worker" && html`<footer>${each.leaves_in_s != null
        ? html`<button onClick=${stay}>Let it stay</button>`
        : html`<button class="danger" onClick=${() => setDraining(true)}>Drain…</button>`}</footer>`}
    <//>`;
}
