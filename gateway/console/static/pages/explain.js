// Why a call would go where: its plan as it would be made now. Nothing is sent anywhere.
import { ask, askAll, count, html, useLoad, useState } from "../base.js";
import { Card, Choice, Empty, Field, Page, Problem, Stat, Stats } from "../ui.js";
import { Plan } from "./plan.js";

export function Explain({ session }) {
  const [way, setWay] = useState("form");
  const [found, setFound] = useState(null);
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const tenants = useLoad(() => askAll("/admin/tenants"), []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFailure(null);
    try {
      const body = asked(Object.fromEntries(new FormData(event.target)), way);
      setFound(await ask("/admin/explain", { method: "POST", body }));
    } catch (problem) {
      setFailure(problem);
      setFound(null);
    }
    setBusy(false);
  };
  return html`
    <${Page} title="Explain" about="The plan for a call as it would be made now: every estimate and every rejection. Nothing is sent to an endpoint, and nothing is metered.">
      <div class="explain">
        <${Card}><form onSubmit=${submit}>
          <div class="field"><${Choice} label="As" options=${[["form", "Form"], ["json", "JSON"]]} value=${way} set=${setWay} /></div>
          ${way === "form" ? html`
            <${Field} label="Model" name="model" required list="models" value=${session.models[0]} /><datalist id="models">${session.models.map((each) => html`<option key=${each} value=${each} />`)}</datalist>
            <${Field} label="Prompt" name="prompt" rows="4" value="Why are there tides?" hint="Only its length and what caches hold of it matter." />
            <div class="fields"><${Field} label="Tier" name="service_tier">${["auto", "default", "priority", "flex"].map((each) => html`<option key=${each}>${each}</option>`)}<//>
              <${Field} label="Most tokens" name="max_tokens" type="number" min="1" placeholder="not said" /></div>
            <div class="fields"><${Field} label="First token within ms" name="max_ttft_ms" type="number" min="1" placeholder="not asked" /><${Field} label="Least trust" name="trust">${["", "community", "verified", "provider"].map((each) => html`<option key=${each} value=${each}>${each || "any"}</option>`)}<//></div>`
          : html`<${Field} label="Body of the call" name="body" rows="12" required value=${JSON.stringify({ model: session.models[0] || "MODEL", messages: [{ role: "user", content: "Why are there tides?" }] }, null, 2)} />`}
          <div class="fields"><${Field} label="Tenant" name="tenant" list="explain-tenants" placeholder="nobody’s" /><datalist id="explain-tenants">${(tenants.value || []).map((each) => html`<option key=${each.name} value=${each.name} />`)}</datalist>
            <${Field} label="Key id" name="key" placeholder="none" /></div>
          ${failure && html`<${Problem} failure=${failure} />`}
          <button class="primary" disabled=${busy}>Explain</button>
        </form><//>
        <div aria-live="polite">${found ? html`<${Explanation} of=${found} />` : html`<${Card}><${Empty} title="Ask for a plan">It shows who would be tried in which order, and why the others would not.<//><//>`}</div>
      </div>
    <//>`;
}

function asked({ model, prompt, service_tier, max_tokens, max_ttft_ms, trust, body, tenant, key }, way) {
  const request = way === "json" ? JSON.parse(body) : { model, messages: [{ role: "user", content: prompt }] };
  if (way === "form") {
    if (service_tier !== "auto") request.service_tier = service_tier;
    if (max_tokens) request.max_tokens = Number(max_tokens);
    const routing = { ...(max_ttft_ms && { max_ttft_ms: Number(max_ttft_ms) }), ...(trust && { trust }) };
    if (Object.keys(routing).length) request.routing = routing;
  }
  return { request, ...(tenant && { tenant }), ...(key && { key }) };
}

function Explanation({ of }) {
  return html`
    <${Stats}><${Stat} label="Model" value=${of.model} note=${of.tier} /><${Stat} label="Prompt, estimated" value=${count(of.prompt_tokens)} note="tokens" />
      <${Stat} label="Answer, expected" value=${count(of.output_tokens)} note="tokens" /><${Stat} label="First choice" value=${of.candidates[0]?.endpoint || "none"} tone=${of.candidates.length ? "" : "bad"} note=${`${of.candidates.length} can, ${of.rejected.length} cannot`} /><//>
    ${of.held_to && html`<p class="note">Held to: ${of.held_to}</p>`}
    <${Card}><${Plan} plan=${of} />
      ${of.last_resort && html`<p class="note">As a last resort: all of them are out, and a few calls at a time try whether they are back.</p>`}
      ${of.passed_over.length > 0 && html`<p class="soft">Not looked at, of very many: ${of.passed_over.slice(0, 20).join(", ")}${of.passed_over.length > 20 ? ` and ${of.passed_over.length - 20} more` : ""}</p>`}<//>
    ${of.fallbacks.map((each) => html`<h2 key=${each.model}>If nobody serves it: ${each.model}</h2><${Explanation} of=${each} />`)}`;
}
