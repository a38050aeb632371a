// What bounds calls, and what is left of limits and budgets.
import { When, ask, count, html, query, span, usd, useLoad } from "../base.js";
import { Card, Chip, Empty, Loaded, Meter } from "../ui.js";

const WORDS = { requests_per_min: "Requests a minute", tokens_per_min: "Tokens a minute", concurrency: "Calls at once" };
const whose = (subject) => subject.replace(/^tenant:.*/, "tenant").replace(/^project:[^/]*\/(.*)/, "project $1").replace(/^key:(.*)/, "key $1");

/** What a policy says, of a tenant, a project or a key. */
const bounds = (policy) =>
  !policy
    ? []
    : [
        policy.requests_per_min && `${count(policy.requests_per_min)} requests/min`,
        policy.tokens_per_min && `${count(policy.tokens_per_min)} tokens/min`,
        policy.concurrency && `${count(policy.concurrency)} at once`,
        ...Object.entries(policy.budgets || {}).map(([period, amount]) => `$${amount} ${period === "total" ? "in all" : `a ${period}`}`),
        policy.models && `models: ${policy.models.join(", ")}`,
        policy.tiers && `tiers: ${policy.tiers.join(", ")}`,
        policy.least_trust && `trust: ${policy.least_trust}`,
        ...Object.entries(policy.max_price || {}).map(([side, amount]) => `${side}: at most $${amount} per million`),
        policy.apis && `APIs: ${policy.apis.join(", ")}`,
        policy.regions && `regions: ${policy.regions.join(", ")}`,
        policy.networks && `from ${policy.networks.join(", ")}`,
      ].filter(Boolean);

export const Bounds = ({ policy }) => {
  const words = bounds(policy);
  return words.length ? words.map((each) => html`<${Chip} key=${each}>${each}<//> `) : html`<span class="soft">none</span>`;
};

export const Limits = ({ tenant }) => {
  const limits = useLoad(() => ask(query("/admin/left", { tenant })), [tenant], 5000);
  return html`<${Card} title="What is left" id="left"><${Loaded} of=${limits}>${(left) => html`<${Left} left=${left} />`}<//><//>`;
};

export const nothing = (left) => !left.limits.length && !left.budgets.length && left.balance_nano_usd == null;

export function Left({ left }) {
  if (nothing(left)) return html`<${Empty} title="Nothing bounds it">No limits, no budgets, nothing paid in advance.<//>`;
  return html`
    ${left.balance_nano_usd != null && html`<p>Paid in and not spent: <b class=${left.balance_nano_usd <= 0 ? "bad" : ""}>${usd(left.balance_nano_usd)}</b></p>`}
    <div class="left">
      ${left.budgets.map((each) => html`<div key=${each.subject + each.period} class="bound">
        <div class="bound-head"><span>Budget ${each.period === "total" ? "in all" : `this ${each.period}`} <span class="soft">· ${whose(each.subject)}</span></span><b>${usd(each.left_nano_usd)} left</b></div>
        <${Meter} share=${(each.used_nano_usd + each.held_nano_usd) / (each.limit_nano_usd || 1)} label="Used" />
        <small class="soft">${usd(each.used_nano_usd)} of ${usd(each.limit_nano_usd)} used${each.held_nano_usd > 0 ? `, ${usd(each.held_nano_usd)} held by calls under way` : ""}${each.resets ? html`; anew <${When} at=${each.resets} />` : ""}</small></div>`)}
      ${left.limits.map((each) => html`<div key=${each.subject + each.name} class="bound">
        <div class="bound-head"><span>${WORDS[each.name] || each.name} <span class="soft">· ${whose(each.subject)}</span></span><b>${each.left == null ? "unknown" : `${count(each.left)} left`}</b></div>
        <${Meter} share=${(each.used || 0) / (each.limit || 1)} label="Used" />
        <small class="soft">${each.used == null ? "The store of limits is away" : `${count(each.used)} of ${count(each.limit)}`}${each.resets_in_s > 0 ? `; all of it back in ${span(each.resets_in_s * 1000)}` : ""}</small></div>`)}
    </div>`;
}
