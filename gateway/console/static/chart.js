// Bars over time, stacked by whatever is asked for; drawn as SVG, and told as a table to those who do not see it.
import { html, useEffect, useRef, useState } from "./base.js";

const HEIGHT = 220;
const LEAST = 260;
const LEFT = 68;
const BOTTOM = 22;
const SERIES = 7;

/** times: labels by column; series: [{name, values}], the largest first; shown: a number in words. */
export function Bars({ label, times, series, shown, timeShown }) {
  const [at, setAt] = useState(null);
  const [width, setWidth] = useState(960);
  const box = useRef(null);
  useEffect(() => {
    const seen = new ResizeObserver(([entry]) => setWidth(Math.max(LEAST, Math.round(entry.contentRect.width))));
    seen.observe(box.current);
    return () => seen.disconnect();
  }, []);
  const top = niceTop(Math.max(...times.map((_, i) => series.reduce((sum, each) => sum + (each.values[i] || 0), 0)), 0));
  const plot = { width: width - LEFT - 8, height: HEIGHT - BOTTOM - 10 };
  const step = plot.width / Math.max(1, times.length);
  const y = (value) => 10 + plot.height * (1 - value / (top || 1));
  const marks = [0, 0.25, 0.5, 0.75, 1].map((share) => share * top);
  const labelled = Math.max(1, Math.ceil((times.length * 110) / plot.width)); // so wide is a label, at the most
  return html`
    <figure class="chart" ref=${box}>
      <svg viewBox=${`0 0 ${width} ${HEIGHT}`} role="img" aria-label=${label} onMouseLeave=${() => setAt(null)}>
        ${marks.map((value) => html`<g key=${value}><line class="grid" x1=${LEFT} x2=${width - 8} y1=${y(value)} y2=${y(value)} />
          <text x=${LEFT - 8} y=${y(value) + 4} text-anchor="end">${shown(value)}</text></g>`)}
        ${times.map((time, i) => {
          let sum = 0;
          return html`<g key=${time} class=${at === i ? "at" : ""}>
            ${series.map((each, s) => {
              const value = each.values[i] || 0;
              if (!value) return null;
              const from = sum;
              sum += value;
              return html`<rect key=${each.name} class=${`s${s % SERIES}`} x=${LEFT + i * step + step * 0.12} width=${Math.max(1, step * 0.76)} y=${y(sum)} height=${Math.max(0.5, y(from) - y(sum))} rx="1.500" />`;
            })}
            ${i % labelled === 0 && html`<text x=${LEFT + (i + 0.5) * step} y=${HEIGHT - 4} text-anchor="middle">${timeShown(time)}</text>`}
            <rect class="catch" x=${LEFT + i * step} y="0" width=${step} height=${HEIGHT - BOTTOM} onMouseEnter=${() => setAt(i)} />
          </g>`;
        })}
      </svg>
      <figcaption>
        <span class="legend-time">${at === null ? "All of it" : timeShown(times[at])}</span>
        ${series.map((each, s) => html`<span key=${each.name} class="legend"><i class=${`s${s % SERIES}`}></i>${each.name}
          <b>${shown(at === null ? each.values.reduce((a, b) => a + (b || 0), 0) : each.values[at] || 0)}</b></span>`)}
      </figcaption>
    </figure>`;
}

function niceTop(value) {
  if (!value) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10].map((each) => each * unit).find((each) => each >= value);
}

/** The last values of something, small. */
export function Spark({ values, label }) {
  if (values.length < 2) return html`<svg class="spark" viewBox="0 0 100 24" aria-hidden="true"></svg>`;
  const top = Math.max(...values, 1);
  const points = values.map((value, i) => `${((i / (values.length - 1)) * 100).toFixed(1)},${(22 - (value / top) * 20).toFixed(1)}`);
  return html`<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label=${label}>
    <polygon points=${`0,24 ${points.join(" ")} 100,24`} /><polyline points=${points.join(" ")} /></svg>`;
}
