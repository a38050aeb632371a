// A plan: who would be tried in which order, what is expected of each, and who was rejected and why.
import { count, html, span, usd } from "../base.js";
import { Badge, Meter, Table } from "../ui.js";

export function Plan({ plan }) {
  const most = Math.max(...plan.candidates.map((each) => each.score_nano_usd), 1);
  const columns = [
    { key: "endpoint", label: "Tried in this order", cell: (each) => each.endpoint },
    { key: "time", label: "First token", num: true, cell: (each) => span(each.ttft_s * 1000) },
    { key: "pace", label: "A token", num: true, cell: (each) => span(each.ms_per_token) },
    { key: "imposed", label: "Delays others", num: true, cell: (each) => span(each.imposed_s * 1000) },
    { key: "cached", label: "In its cache", num: true, cell: (each) => count(each.cached_tokens) },
    { key: "cost", label: "Cost", num: true, cell: (each) => usd(each.cost_nano_usd) },
    { key: "score", label: "Cost and waiting", num: true, cell: (each) => html`${usd(Math.round(each.score_nano_usd))}<${Meter} share=${each.score_nano_usd / most} label="Of the dearest" tone="calm" />` },
    { key: "time_ok", label: "In time", cell: (each) => html`<${Badge} tone=${each.on_time ? "good" : "warn"}>${each.on_time ? "yes" : "no"}<//>` },
  ];
  return html`
    ${plan.candidates.length > 0 && html`<h3>Plan</h3><div class="plan"><${Table} label="Candidates" columns=${columns} rows=${plan.candidates} id=${(each) => each.endpoint} /></div>`}
    ${plan.rejected.length > 0 && html`<h3>Rejected</h3><div class="plan"><${Table} label="Rejected endpoints" rows=${plan.rejected} id=${(each) => each.endpoint} columns=${[
      { key: "endpoint", label: "Endpoint", cell: (each) => each.endpoint },
      { key: "filter", label: "By", cell: (each) => each.filter },
      { key: "reason", label: "Reason", wide: true, cell: (each) => each.reason },
      { key: "retry", label: "May be back", num: true, cell: (each) => (each.retry_after_s == null ? "–" : `in ${span(each.retry_after_s * 1000)}`) },
    ]} /></div>`}
    ${plan.more > 0 && html`<p class="soft">and ${plan.more} more</p>`}`;
}
