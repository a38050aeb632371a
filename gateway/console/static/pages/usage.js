// What was used: calls, tokens and money over time, by whatever is asked for.
import { ask, count, html, percent, query, short, usd, useLoad, useState } from "../base.js";
import { Card, Choice, Empty, Loaded, Page, Stat, Stats, Table } from "../ui.js";
import { Bars } from "../chart.js";

const SPANS = [["24h", "Day"], ["7d", "Week"], ["30d", "Month"], ["90d", "90 days"]];
const MEASURES = {
  charge_nano_usd: ["Charged", usd],
  cost_nano_usd: ["Cost", usd],
  tokens: ["Tokens", short],
  calls: ["Calls", short],
  errors: ["Errors", short],
};
const TOKENS = (row) => row.prompt_tokens + row.completion_tokens;
const valueOf = (row, measure) => (measure === "tokens" ? TOKENS(row) : row[measure] || 0);
const SHOWN = 6;

export function Usage() {
  return html`<${UsageOf} path="/admin/usage" title="Usage" about="Read from sums by the hour; a call is in them a second or two after its end."
    groups=${[["model", "Model"], ["tenant", "Tenant"], ["endpoint", "Endpoint"], ["tier", "Tier"], ["key", "Key"], ["project", "Project"], ["customer", "Customer"]]}
    measures=${["charge_nano_usd", "cost_nano_usd", "tokens", "calls", "errors"]} />`;
}

async function everyPage(path, values) {
  const data = [];
  let cursor = "";
  do {
    const page = await ask(query(path, { ...values, limit: 10_000, cursor }));
    data.push(...page.data);
    cursor = page.next_cursor;
  } while (cursor && data.length < 50_000);
  return data;
}

/** Each time of a span, though nothing was used then. */
function timesOf(since) {
  const hourly = since === "24h";
  const step = hourly ? 3_600_000 : 86_400_000;
  const columns = hourly ? 25 : Number.parseInt(since, 10) + 1;
  const last = Math.floor(Date.now() / step) * step;
  return Array.from({ length: columns }, (_, i) => {
    const iso = new Date(last - (columns - 1 - i) * step).toISOString();
    return hourly ? `${iso.slice(0, 13)}Z` : iso.slice(0, 10);
  });
}

const timeShown = (time) =>
  time.length > 10
    ? new Date(`${time.slice(0, 13)}:00:00Z`).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })
    : new Date(`${time}T00:00:00Z`).toLocaleDateString(undefined, { month: "short", day: "numeric", timeZone: "UTC" });

export function UsageOf({ path, only = {}, title, about, groups, measures, actions }) {
  const [since, setSince] = useState("24h");
  const [by, setBy] = useState(groups[0][0]);
  const [measure, setMeasure] = useState(measures[0]);
  const bucket = since === "24h" ? "hour" : "day";
  const used = useLoad(async () => {
    const [rows, totals] = await Promise.all([
      everyPage(path, { ...only, from: since, by: `${bucket},${by}` }),
      everyPage(path, { ...only, from: since, by }),
    ]);
    return { rows, totals, since, by, bucket };
  }, [since, by], 30_000);
  return html`
    <${Page} title=${title} about=${about} actions=${html`${actions}<${Choice} label="Span" options=${SPANS} value=${since} set=${setSince} />`}>
      <${Loaded} of=${used} rows=${7}>${(value) => html`<${Shown} value=${value} measure=${measure} measures=${measures} groups=${groups} by=${by} setBy=${setBy} setMeasure=${setMeasure} />`}<//>
    <//>`;
}

function Shown({ value, measure, measures, groups, by, setBy, setMeasure }) {
  const { rows, totals, since, bucket } = value;
  const money = "cost_nano_usd" in (totals[0] || {});
  const sum = (name) => totals.reduce((total, row) => total + (row[name] || 0), 0);
  const [word, shown] = MEASURES[measure];
  const name = (row) => row[value.by] || "none";
  const largest = [...totals].sort((a, b) => valueOf(b, measure) - valueOf(a, measure));
  const own = largest.slice(0, SHOWN).map(name);
  const times = timesOf(since);
  const series = [...own, ...(largest.length > SHOWN ? ["the rest"] : [])].map((each) => ({ name: each, values: times.map(() => 0) }));
  for (const row of rows) {
    const column = times.indexOf(row[bucket]);
    const place = own.indexOf(name(row));
    if (column >= 0) series[place >= 0 ? place : series.length - 1].values[column] += valueOf(row, measure);
  }
  const columns = [
    { key: "name", label: groups.find(([key]) => key === value.by)[1], cell: (row) => html`<b>${name(row)}</b>`, sort: name },
    { key: "calls", label: "Calls", num: true, cell: (row) => count(row.calls), sort: (row) => row.calls },
    { key: "errors", label: "Errors", num: true, cell: (row) => (row.errors ? html`<span class="bad">${count(row.errors)}</span>` : "0"), sort: (row) => row.errors },
    { key: "prompt", label: "Read", num: true, cell: (row) => short(row.prompt_tokens), sort: (row) => row.prompt_tokens },
    { key: "cached", label: "Cached", num: true, cell: (row) => percent(row.prompt_tokens ? row.cached_tokens / row.prompt_tokens : null), sort: (row) => row.cached_tokens / (row.prompt_tokens || 1) },
    { key: "written", label: "Written", num: true, cell: (row) => short(row.completion_tokens), sort: (row) => row.completion_tokens },
    { key: "charge", label: "Charged", num: true, cell: (row) => usd(row.charge_nano_usd), sort: (row) => row.charge_nano_usd },
    ...(money ? [
      { key: "cost", label: "Cost", num: true, cell: (row) => usd(row.cost_nano_usd), sort: (row) => row.cost_nano_usd },
      { key: "margin", label: "Margin", num: true, cell: (row) => usd(row.charge_nano_usd - row.cost_nano_usd), sort: (row) => row.charge_nano_usd - row.cost_nano_usd },
      { key: "waste", label: "Wasted", num: true, cell: (row) => usd(row.waste_nano_usd), sort: (row) => row.waste_nano_usd },
    ] : []),
  ];
  return html`
    <${Stats}>
      <${Stat} label="Calls" value=${short(sum("calls"))} note=${sum("errors") ? `${percent(sum("errors") / sum("calls"), 1)} ended in errors` : "no errors"} />
      <${Stat} label="Tokens read" value=${short(sum("prompt_tokens"))} note=${`${percent(sum("prompt_tokens") ? sum("cached_tokens") / sum("prompt_tokens") : 0)} from caches`} />
      <${Stat} label="Tokens written" value=${short(sum("completion_tokens"))} />
      <${Stat} label="Charged" value=${usd(sum("charge_nano_usd"))} />
      ${money && html`<${Stat} label="Cost" value=${usd(sum("cost_nano_usd"))} note=${`of it wasted: ${usd(sum("waste_nano_usd"))}`} />`}
      ${money && html`<${Stat} label="Margin" value=${usd(sum("charge_nano_usd") - sum("cost_nano_usd"))} tone=${sum("charge_nano_usd") < sum("cost_nano_usd") ? "bad" : ""} />`}
    <//>
    <${Card} title=${`${word} by ${bucket}`} id="over-time" actions=${html`
      <${Choice} label="Measure" options=${measures.map((each) => [each, MEASURES[each][0]])} value=${measure} set=${setMeasure} />
      <select aria-label="By" value=${by} onChange=${(event) => setBy(event.target.value)}>${groups.map(([key, text]) => html`<option key=${key} value=${key}>by ${text.toLowerCase()}</option>`)}</select>`}>
      ${totals.length ? html`<${Bars} label=${`${word} by ${bucket} and ${value.by}; the table below has the sums`} times=${times} series=${series} shown=${shown} timeShown=${timeShown} />` : html`<${Empty} title="Nothing was used in this span" />`}
    <//>
    ${totals.length > 0 && html`<${Card} flush><${Table} label="Sums" columns=${columns} rows=${totals} id=${name} start=${{ key: "charge", down: true }} /><//>`}`;
}
