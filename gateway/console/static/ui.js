// The parts that pages are made of.
import { html, useEffect, useRef, useState } from "./base.js";

const ICONS = {
  fleet: "M3 5h7v6H3zM14 5h7v6h-7zM3 15h7v4H3zM14 15h7v4h-7z",
  calls: "M4 6h10M4 12h16M4 18h7M18 4l3 2-3 2",
  usage: "M4 20V10M10 20V4M16 20v-7M21 20H3",
  tenants: "M8 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2 20c0-3.5 2.5-6 6-6s6 2.5 6 6M16 4.5a3.5 3.5 0 0 1 0 6.5M18 14.5c2.5.7 4 2.8 4 5.5",
  keys: "M8 15a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 11h9M18 11v4M21 11v3",
  budgets: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7v10M9.5 14.5c0 1 1 1.8 2.5 1.8s2.6-.8 2.6-2-1-1.7-2.6-2.1-2.4-.9-2.4-2 1-1.9 2.4-1.9 2.4.8 2.4 1.8",
  invoices: "M6 3h9l4 4v14H6zM9 12h7M9 16h7M9 8h3",
  payouts: "M3 8h18v11H3zM3 12h18M7 5h10",
  explain: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM9.3 9.2a2.8 2.8 0 1 1 3.9 2.6c-.8.4-1.2.9-1.2 1.9M12 16.8v.2",
  config: "M4 7h9M17 7h3M4 17h3M11 17h9M15 9.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM9 19.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5z",
  audit: "M12 3l8 3v6c0 4.5-3.2 7.7-8 9-4.8-1.3-8-4.5-8-9V6zM9 12l2.2 2.2L15.5 10",
  admins: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20.5c.5-3.9 3.5-6 7.5-6s7 2.1 7.5 6",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  light: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M18.4 5.6L17 7M7 17l-1.4 1.4",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  system: "M3 5h18v11H3zM9 20h6M12 16v4",
  out: "M14 4h5v16h-5M10 8l-4 4 4 4M6 12h9",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  pause: "M8 5v14M16 5v14",
  play: "M7 5l12 7-12 7z",
  more: "M6 9l6 6 6-6",
};

export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${ICONS[name]} /></svg>`;

export function Page({ title, about, actions, children }) {
  useEffect(() => {
    document.title = `${title} · Tidegate`;
  }, [title]);
  return html`
    <header class="page-head">
      <div><h1>${title}</h1>${about && html`<p class="about">${about}</p>`}</div>
      ${actions && html`<div class="actions">${actions}</div>`}
    </header>
    ${children}`;
}

export const Card = ({ title, actions, children, flush, id }) => html`
  <section class=${`card${flush ? " flush" : ""}`} aria-labelledby=${id}>
    ${title && html`<header><h2 id=${id}>${title}</h2>${actions && html`<div class="actions">${actions}</div>`}</header>`}
    ${children}
  </section>`;

export const Stat = ({ label, value, note, tone }) => html`
  <div class="stat"><dt>${label}</dt><dd class=${tone || ""}>${value}</dd>${note && html`<dd class="note">${note}</dd>`}</div>`;

export const Stats = ({ children }) => html`<dl class="stats">${children}</dl>`;

export const Badge = ({ tone = "", children, title }) =>
  html`<span class=${`badge ${tone}`} title=${title}><i aria-hidden="true"></i>${children}</span>`;

export const Chip = ({ children, title }) => html`<span class="chip" title=${title}>${children}</span>`;

/** How much of something is taken: 0 to 1. */
export const Meter = ({ share, label, tone }) => {
  const width = Math.max(0, Math.min(1, share || 0));
  const colour = tone || (width >= 0.95 ? "bad" : width >= 0.8 ? "warn" : "");
  return html`<span class=${`meter ${colour}`} role="img" aria-label=${`${label}: ${Math.round(width * 100)} %`}>
    <span style=${{ width: `${width * 100}%` }}></span></span>`;
};

export const Empty = ({ title, children }) => html`
  <div class="empty"><svg viewBox="0 0 64 24" aria-hidden="true"><path d="M2 9c7.500 0 7.500 6 15 6s7.500-6 15-6 7.500 6 15 6 7.500-6 15-6" /></svg>
    <strong>${title}</strong>${children && html`<p>${children}</p>`}</div>`;

export const Loading = ({ rows = 4 }) => html`
  <div class="loading" role="status"><span class="hidden">Loading</span>${Array.from({ length: rows }, (_, i) => html`<span key=${i}></span>`)}</div>`;

export const Problem = ({ failure, again }) => html`
  <div class="problem" role="alert"><strong>${failure.message}</strong>
    <span class="soft">${[failure.code, failure.param].filter(Boolean).join(" · ")}</span>
    ${again && html`<button class="small" onClick=${again}>Try again</button>`}</div>`;

/** What was loaded, or how that stands. */
export function Loaded({ of, rows, children }) {
  if (of.value === undefined) return of.failure ? html`<${Problem} failure=${of.failure} again=${of.again} />` : html`<${Loading} rows=${rows} />`;
  return html`${of.failure && html`<${Problem} failure=${of.failure} again=${of.again} />`}${children(of.value)}`;
}

/** columns: {key, label, cell(row), num, wide, sort(row)}; a row that opens has `open(row)`. */
export function Table({ label, columns, rows, id, empty, open, opened, detail, start }) {
  const [order, setOrder] = useState(start || null);
  if (!rows.length) return empty || html`<${Empty} title="Nothing here yet" />`;
  const column = order && columns.find((each) => each.key === order.key);
  const sorted = column ? [...rows].sort((a, b) => compare(column.sort(a), column.sort(b)) * (order.down ? -1 : 1)) : rows;
  const sortBy = (each) =>
    setOrder((before) => (before?.key === each.key ? { key: each.key, down: !before.down } : { key: each.key, down: Boolean(each.num) }));
  return html`
    <div class="table" role="region" aria-label=${label} tabindex="0">
      <table>
        <thead><tr>${columns.map(
          (each) => html`<th key=${each.key} scope="col" class=${each.num ? "num" : ""}
            aria-sort=${order?.key === each.key ? (order.down ? "descending" : "ascending") : undefined}>
            ${each.sort
              ? html`<button class="sort" onClick=${() => sortBy(each)}>${each.label}<span aria-hidden="true">${order?.key === each.key ? (order.down ? "↓" : "↑") : ""}</span></button>`
              : each.label}</th>`,
        )}</tr></thead>
        <tbody>${sorted.map((row) => {
          const key = id(row);
          const isOpen = opened === key;
          return html`
            <tr key=${key} class=${`${open ? "opens" : ""}${isOpen ? " open" : ""}`} onClick=${open && ((event) => event.target.closest("button, a") || open(row))}>
              ${columns.map((each, index) => html`<td key=${each.key} data-label=${each.label} class=${`${each.num ? "num" : ""}${each.wide ? " wide" : ""}`}>
                ${index === 0 && open
                  ? html`<button class="opener" aria-expanded=${detail ? isOpen : undefined} onClick=${() => open(row)}>${each.cell(row)}</button>`
                  : each.cell(row)}</td>`)}
            </tr>
            ${isOpen && detail && html`<tr key=${`${key}+`} class="detail"><td colspan=${columns.length}>${detail(row)}</td></tr>`}`;
        })}</tbody>
      </table>
    </div>`;
}

const compare = (a, b) => (a == null ? 1 : b == null ? -1 : a < b ? -1 : a > b ? 1 : 0);

/** A dialog that is there as long as it is drawn. */
export function Dialog({ title, close, children, wide }) {
  const box = useRef(null);
  useEffect(() => {
    const back = document.activeElement;
    box.current.showModal();
    return () => back?.isConnected && back.focus();
  }, []);
  return html`
    <dialog ref=${box} class=${wide ? "wide" : ""} aria-label=${title} onCancel=${(event) => { event.preventDefault(); close(); }}
      onClick=${(event) => event.target === box.current && close()}>
      <div class="dialog"><header><h2>${title}</h2><button class="plain" aria-label="Close" onClick=${close}><${Icon} name="close" /></button></header>
        ${children}</div>
    </dialog>`;
}

/** A form in a dialog: `send` gets its values by name, and what it gives goes to `done`. */
export function FormDialog({ title, close, send, done, label = "Save", tone, children }) {
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFailure(null);
    try {
      done(await send(Object.fromEntries(new FormData(event.target))));
    } catch (problem) {
      setFailure(problem);
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title=${title} close=${close}>
      <form onSubmit=${submit}>
        ${children}
        ${failure && html`<${Problem} failure=${failure} />`}
        <footer><button type="button" onClick=${close}>Cancel</button><button class=${tone || "primary"} disabled=${busy}>${label}</button></footer>
      </form>
    <//>`;
}

let fields = 0;

export function Field({ label, hint, children, name, ...rest }) {
  const [id] = useState(() => `field-${++fields}`);
  const control = children
    ? html`<select id=${id} name=${name} aria-describedby=${hint && `${id}-hint`} ...${rest}>${children}</select>`
    : rest.rows
      ? html`<textarea id=${id} name=${name} aria-describedby=${hint && `${id}-hint`} spellcheck="false" ...${rest}></textarea>`
      : html`<input id=${id} name=${name} aria-describedby=${hint && `${id}-hint`} autocomplete="off" ...${rest} />`;
  return html`<div class="field"><label for=${id}>${label}</label>${control}${hint && html`<small id=${`${id}-hint`}>${hint}</small>`}</div>`;
}

/** One of a few, side by side. */
export const Choice = ({ label, options, value, set }) => html`
  <div class="choice" role="group" aria-label=${label}>${options.map(
    ([key, text]) => html`<button key=${key} aria-pressed=${value === key} onClick=${() => set(key)}>${text}</button>`,
  )}</div>`;

export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button class="small" onClick=${copy}><${Icon} name="copy" /> <span aria-live="polite">${done ? "Copied" : label}</span></button>`;
}

/** A secret that is shown this once. */
export const Secret = ({ title, secret, close, children }) => html`
  <${Dialog} title=${title} close=${close}>
    <p>Copy it now: it is shown this once, and nobody has it afterwards.</p>
    <div class="secret"><code>${secret}</code>${navigator.clipboard && html`<${Copy} text=${secret} />`}</div>
    ${children}
    <footer><button class="primary" onClick=${close}>I have it</button></footer>
  <//>`;
