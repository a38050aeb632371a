// Calls as they happen: the plan of each, its attempts, and what became of it. What was said in them is nowhere.
import { When, ask, askAll, count, html, query, span, usd, useEvents, useLoad, useMemo, useState } from "../base.js";
import { Badge, Card, Empty, Loaded, Page, Stat, Stats, Table, Icon } from "../ui.js";
import { Live } from "./fleet.js";
import { Plan } from "./plan.js";

const KEPT = 400;
const tone = (call) =>
  call.state && call.state !== "ended" ? "accent live" : call.outcome === "ok" ? "good" : call.outcome === "client_left" ? "" : "bad";
const words = (call) => (call.state && call.state !== "ended" ? { planning: "planned", asked: "waits for its first token", answering: "is answered" }[call.state] || call.state : call.outcome.replaceAll("_", " "));
const failed = (call) => call.outcome && call.outcome !== "ok" && call.outcome !== "client_left";

export function Calls() {
  const [calls, setCalls] = useState(new Map());
  const [paused, setPaused] = useState(false);
  const [search, setSearch] = useState("");
  const [onlyFailed, setOnlyFailed] = useState(false);
  const [opened, setOpened] = useState(null);
  const [tick, setTick] = useState(null);
  const merge = (found) =>
    setCalls((before) => {
      const all = new Map(before);
      for (const call of found) all.set(call.id, { ...all.get(call.id), ...call, attempts: Array.isArray(call.attempts) ? call.attempts : all.get(call.id)?.attempts ?? call.attempts });
      const latest = [...all.values()].sort((a, b) => b.time_ms - a.time_ms || (a.id < b.id ? 1 : -1));
      return new Map(latest.slice(0, KEPT).map((call) => [call.id, call]));
    });
  // What other replicas have served is seen here, once it is in the database.
  const ended = useLoad(async () => {
    const page = await ask(query("/admin/calls", { most: 100, failed: onlyFailed }));
    if (!paused) merge(page.data);
    return page;
  }, [onlyFailed, paused], 5000);
  const keys = useLoad(() => askAll("/admin/keys"), []);
  const names = useMemo(() => new Map((keys.value || []).map((key) => [key.id, key.name])), [keys.value]);
  const state = useEvents({ calls: true }, {
    calls: (found) => merge(found),
    tick: (about) => {
      setTick(about);
      const written = about.written || {};
      setCalls((before) => new Map([...before].map(([id, call]) => [id, id in written ? { ...call, completion_tokens: written[id] } : call])));
    },
  }, !paused);
  const wanted = search.trim().toLowerCase();
  const rows = [...calls.values()].filter(
    (call) =>
      (!onlyFailed || failed(call)) &&
      (!wanted || [call.id, call.request_id, call.tenant, call.key, call.key_name, call.model, call.endpoint, call.outcome, call.tier, call.project].some((each) => each && String(each).toLowerCase().includes(wanted))),
  );
  const columns = [
    { key: "time", label: "Began", cell: (call) => html`<${When} at=${call.time_ms} as="clock" />` },
    { key: "state", label: "Outcome", cell: (call) => html`<${Badge} tone=${tone(call)}>${words(call)}<//>` },
    { key: "who", label: "Tenant", cell: (call) => html`${call.tenant}<span class="sub">${call.key_name || names.get(call.key) || call.key}</span>` },
    { key: "model", label: "Model", cell: (call) => html`${call.model}<span class="sub">${[call.tier, call.api === "chat" ? "" : call.api, call.stream ? "stream" : ""].filter(Boolean).join(" · ")}</span>` },
    { key: "endpoint", label: "Endpoint", cell: (call) => html`${call.endpoint || html`<span class="soft">–</span>`}${attemptsOf(call) > 1 && html`<span class="sub">${attemptsOf(call)} attempts</span>`}` },
    { key: "ttft", label: "First token", num: true, cell: (call) => span(call.ttft_ms ?? firstOf(call)) },
    { key: "took", label: "Took", num: true, cell: (call) => span(call.duration_ms) },
    { key: "tokens", label: "Tokens", num: true, cell: (call) => html`${count(call.prompt_tokens)} → ${count(call.completion_tokens)}${call.cached_tokens > 0 && html`<span class="sub">${count(call.cached_tokens)} cached</span>`}` },
    { key: "charge", label: "Charged", num: true, cell: (call) => (call.outcome ? usd(call.charge_nano_usd) : "–") },
  ];
  const running = rows.filter((call) => call.state && call.state !== "ended").length;
  return html`
    <${Page} title="Calls" about="As they happen at this gateway, in all its processes, and those that others have served a few seconds later. No prompt and no answer is kept."
      actions=${html`<${Live} state=${state} /><button onClick=${() => setPaused(!paused)}><${Icon} name=${paused ? "play" : "pause"} />${paused ? "Go on" : "Pause"}</button>`}>
      <${Loaded} of=${ended} rows=${8}>${() => html`
        <${Totals} calls=${[...calls.values()]} tick=${tick} running=${running} />
        <div class="filters"><input type="search" aria-label="Search calls" placeholder="Tenant, key, model, endpoint, id" value=${search} onInput=${(event) => setSearch(event.target.value)} />
          <label class="check"><input type="checkbox" checked=${onlyFailed} onChange=${(event) => setOnlyFailed(event.target.checked)} /> Only those that failed</label>
          ${tick?.unseen > 0 && html`<span class="soft">${count(tick.unseen)} more than can be followed live; they are listed once they have ended.</span>`}</div>
        <${Card} flush><${Table} label="Calls" columns=${columns} rows=${rows.slice(0, 200)} id=${(call) => call.id}
          open=${(call) => setOpened(opened === call.id ? null : call.id)} opened=${opened} detail=${(call) => html`<${Detail} call=${call} />`}
          empty=${html`<${Empty} title=${calls.size ? "None is like that" : "No calls yet"}>${calls.size ? "Search for something else." : "They appear here the moment they come in."}<//>`} /><//>`}
      <//>
    <//>`;
}

const attemptsOf = (call) => (Array.isArray(call.attempts) ? call.attempts.length : call.attempts);
const firstOf = (call) => (Array.isArray(call.attempts) ? call.attempts.find((each) => each.first_ms != null)?.first_ms : null);

function Totals({ calls, tick, running }) {
  const recent = calls.filter((call) => call.outcome && (tick?.now_ms || Date.now()) - call.time_ms < 300_000);
  const firsts = recent.map((call) => call.ttft_ms).filter((each) => each != null).sort((a, b) => a - b);
  const at = (share) => (firsts.length ? firsts[Math.min(firsts.length - 1, Math.floor(share * firsts.length))] : null);
  return html`<${Stats}>
    <${Stat} label="Under way" value=${count(tick?.running ?? running)} />
    <${Stat} label="Ended, last 5 minutes" value=${count(recent.length)} note=${recent.length >= 300 ? "of the latest listed here" : ""} />
    <${Stat} label="Failed of those" value=${count(recent.filter(failed).length)} tone=${recent.some(failed) ? "bad" : ""} />
    <${Stat} label="First token, median" value=${span(at(0.5))} note=${`95 of 100 within ${span(at(0.95))}`} />
    <${Stat} label="Charged" value=${usd(recent.reduce((sum, call) => sum + call.charge_nano_usd, 0))} />
  <//>`;
}

function Detail({ call }) {
  const attempts = Array.isArray(call.attempts) ? call.attempts : [];
  const until = Math.max(call.duration_ms || 0, ...attempts.map((each) => each.ended_ms ?? each.first_ms ?? each.at_ms), 1);
  return html`
    ${attempts.length > 0 && html`<h3>Attempts</h3><div class="attempts">${attempts.map((each, i) => html`<${Attempt} key=${i} each=${each} until=${until} />`)}</div>`}
    ${call.shares?.length > 0 && html`<h3>Whose work it was</h3><${Table} label="Shares" id=${(each) => `${each.endpoint}${each.purpose}${each.cost_nano_usd}${each.completion_tokens}`} rows=${call.shares} columns=${[
      { key: "endpoint", label: "Endpoint", cell: (each) => each.endpoint },
      { key: "purpose", label: "For", cell: (each) => each.purpose.replaceAll("_", " ") },
      { key: "tokens", label: "Tokens", num: true, cell: (each) => `${count(each.prompt_tokens)} → ${count(each.completion_tokens)}` },
      { key: "paid", label: "Paid", num: true, cell: (each) => usd(each.cost_nano_usd) },
      { key: "waste", label: "Wasted", num: true, cell: (each) => usd(each.waste_nano_usd) },
    ]} />`}
    ${call.candidates?.length + call.rejected?.length > 0
      ? html`<${Plan} plan=${call} />`
      : html`<p class="soft">Its plan was not watched: nobody looked here when it was made. The decision log keeps a sample.</p>`}
    <h3>Details</h3>
    <dl class="pairs"><dt>Call</dt><dd><code>${call.id}</code></dd><dt>Request</dt><dd><code>${call.request_id}</code></dd>
      <dt>Key</dt><dd>${call.key_name && `${call.key_name} `}<code>${call.key}</code>${call.project && ` of ${call.project}`}</dd>
      ${call.customer && html`<dt>Customer</dt><dd>${call.customer}</dd>`}
      ${call.asked_model && call.asked_model !== call.model && html`<dt>Asked for</dt><dd>${call.asked_model}</dd>`}
      ${call.status && html`<dt>Status</dt><dd>${call.status}${call.estimated ? ", tokens counted here" : ""}</dd>`}
      ${call.queued_ms > 0 && html`<dt>In the queue</dt><dd>${span(call.queued_ms)}</dd>`}
      ${call.outcome && html`<dt>Cost</dt><dd>${usd(call.cost_nano_usd)}${call.waste_nano_usd > 0 && `, work worth ${usd(call.waste_nano_usd)} wasted`}</dd>`}</dl>`;
}

function Attempt({ each, until }) {
  const at = (ms) => `${(Math.min(1, ms / until) * 100).toFixed(2)}%`;
  const end = each.ended_ms ?? until;
  const first = each.first_ms ?? end;
  const wide = (from, to) => ({ left: at(from), width: at(Math.max(to - from, until * 0.006)) });
  const ending = each.state === "failed" ? "failed" : each.state === "left" || each.state === "moved" ? "other" : "write";
  const says = { over: "answered", left: "not needed", failed: each.cause ? `failed: ${each.cause.replaceAll("_", " ")}` : "failed", moved: "moved on", asked: "asked", answering: "answers" }[each.state];
  return html`<div class="attempt"><span>${each.endpoint}</span>
    <span class="lane" role="img" aria-label=${`asked after ${span(each.at_ms)}${each.first_ms == null ? "" : `, first token after ${span(each.first_ms)}`}, over after ${span(end)}`}>
      <span class=${each.first_ms == null && ending !== "write" ? ending : "wait"} style=${wide(each.at_ms, first)}></span>
      ${each.first_ms != null && html`<span class=${ending} style=${wide(first, end)}></span>`}</span>
    <span class="soft">${says}${each.first_ms != null ? `, ${span(each.first_ms)}` : ""}</span></div>`;
}
