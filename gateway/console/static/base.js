// What every page stands on: the view library, the way to the gateway, numbers and times in words.
import { Fragment, h, render } from "./vendor/preact.mjs";
import { useCallback, useEffect, useMemo, useRef, useState } from "./vendor/hooks.mjs";
import htm from "./vendor/htm.mjs";

export const html = htm.bind(h);
export { Fragment, render, useCallback, useEffect, useMemo, useRef, useState };

// The gateway

let token = "";
let onOver = () => {};

/** `send` the session's token with changes; call `over` when the session has ended. */
export function withSession(session, over) {
  token = session.token || "";
  onOver = over;
}

export class Failure extends Error {
  constructor(status, error) {
    super(error.message || `The gateway answered ${status}.`);
    this.status = status;
    this.code = error.code || "";
    this.param = error.param || "";
  }
}

/** JSON from the gateway. Raises Failure. */
export async function ask(path, { method = "GET", body, quiet = false, signal } = {}) {
  const headers = {};
  if (method !== "GET") headers["x-console-token"] = token;
  if (body !== undefined) headers["content-type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { message: "The gateway cannot be reached.", code: "unreachable" });
  }
  const text = await reply.text();
  let found = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    throw new Failure(reply.status, { message: "The answer is no JSON." });
  }
  if (!reply.ok) {
    const failure = new Failure(reply.status, (found && found.error) || {});
    if (reply.status === 401 && !quiet) onOver(failure);
    throw failure;
  }
  return found;
}

export const query = (path, values) => {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value != null && value !== false);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
};

/** All pages of a list that goes on with `after`. */
export async function askAll(path, most = 5000) {
  const data = [];
  let after = "";
  do {
    const page = await ask(query(path, { after, most: 1000 }));
    data.push(...page.data);
    after = page.after;
  } while (after && data.length < most);
  return data;
}

/** What `load` gives: {value, failure, loading, again}. Loaded anew when `on` changes, and every so many ms. */
export function useLoad(load, on = [], every = 0) {
  const [state, setState] = useState({ value: undefined, failure: null, loading: true });
  const turn = useRef(0);
  const again = useCallback(async () => {
    const mine = ++turn.current;
    setState((before) => ({ ...before, loading: true }));
    try {
      const value = await load();
      if (mine === turn.current) setState({ value, failure: null, loading: false });
    } catch (failure) {
      if (mine === turn.current) setState((before) => ({ ...before, failure, loading: false }));
    }
  }, on);
  useEffect(() => {
    again();
    const timer = every ? setInterval(() => document.hidden || again(), every) : 0;
    return () => {
      turn.current++;
      clearInterval(timer);
    };
  }, [again]);
  return { ...state, again };
}

/** Events of the gateway as long as the page shows: what = {fleet: fn, calls: fn, tick: fn}. Returns live, late or off. */
export function useEvents(wants, handlers, on = true) {
  const [state, setState] = useState("late");
  const latest = useRef(handlers);
  latest.current = handlers;
  useEffect(() => {
    if (!on) {
      setState("off");
      return undefined;
    }
    const source = new EventSource(query("/console/events", wants));
    source.onopen = () => setState("live");
    source.onerror = () => setState("late");
    for (const name of ["fleet", "calls", "tick"]) {
      source.addEventListener(name, (event) => {
        setState("live");
        latest.current[name]?.(JSON.parse(event.data));
      });
    }
    source.addEventListener("over", (event) => {
      source.close();
      onOver(new Failure(401, JSON.parse(event.data).error));
    });
    return () => source.close();
  }, [on]);
  return state;
}

// Words for numbers

const group = new Intl.NumberFormat("en-US");
export const count = (value) => (value == null ? "–" : group.format(Math.round(value)));

export function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size < 1000) return String(size < 10 && value % 1 ? value.toFixed(1) : Math.round(value));
  const [unit, letter] = size < 999_500 ? [1e3, "k"] : size < 999_500_000 ? [1e6, "M"] : [1e9, "G"];
  const scaled = value / unit;
  return `${scaled.toFixed(Math.abs(scaled) < 10 ? 1 : 0)}${letter}`;
}

/** Nano-USD as dollars, with as many decimals as it takes to see something. */
export function usd(nano, digits) {
  if (nano == null) return "–";
  const value = nano / 1e9;
  const size = Math.abs(value);
  const places = digits ?? (size === 0 || size >= 1 ? 2 : Math.min(9, 2 - Math.floor(Math.log10(size))));
  const text = size.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: places });
  return `${value < 0 ? "−" : ""}$${text}`;
}

export const percent = (share, digits = 0) => (share == null ? "–" : `${(share * 100).toFixed(digits)} %`);

export function span(ms) {
  if (ms == null) return "–";
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return `${(s / 86_400).toFixed(1)} d`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const minute = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const moment = new Intl.DateTimeFormat(undefined, minute);
const afar = new Intl.DateTimeFormat(undefined, { year: "numeric", ...minute });

/** A time as it is here, with UTC where one points at it. */
export function When({ at, as = "moment" }) {
  if (at == null) return html`<span class="soft">–</span>`;
  const time = new Date(at);
  if (Number.isNaN(+time)) return String(at);
  const shape = { clock, day, moment: time.getFullYear() === new Date().getFullYear() ? moment : afar }[as];
  return html`<time datetime=${time.toISOString()} title=${time.toISOString().replace("T", " ").replace(".000Z", " UTC").replace("Z", " UTC")}>${shape.format(time)}</time>`;
}
