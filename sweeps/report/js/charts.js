// Charts of the picked cell.

const CHART = { fontFamily: "inherit", fontSize: "11px", background: "none", color: "var(--ink)", overflow: "visible" };
const SYMBOLS = ["circle", "square", "triangle", "diamond"];
const MANY_IMAGES = 500; // beyond which dots would only hide one another

function chart(label, options) {
  const svg = Plot.plot({ style: CHART, ariaLabel: label, ...options });
  // The picture has one name; those of its parts say nothing more.
  for (const part of svg.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
  svg.setAttribute("role", "img");
  return svg;
}

const percentTick = (ratio) => signed(`${ratio > 0 ? "+" : ""}${Number(fromLog(ratio).toPrecision(2)).toLocaleString("en", { maximumSignificantDigits: 3 })}%`);

// Of a log axis, tick values that are round numbers of percent.
function percentTicks([low, high]) {
  const span = fromLog(high) - fromLog(low);
  return Number.isFinite(span) && span < 1e4 ? d3.ticks(fromLog(low), fromLog(high), 5).filter((value) => value > -100).map(logOf) : d3.ticks(low, high, 4);
}

function spanOf(values, least = 0.02) {
  let [low, high] = d3.extent(values.filter(Number.isFinite));
  if (low === undefined) [low, high] = [0, 0];
  const room = Math.max(least - (high - low), (high - low) * 0.06, 1e-6) / 2;
  return [low - room, high + room];
}

// Dots beside one another on a strip of so many pixels: piled up where they are close, and piles too high for the
// strip pressed together.
function piled(values, domain, width, height, radius) {
  const place = d3.scaleLinear(domain, [0, width]);
  const apart = 2 * radius + 0.4;
  const piles = Array.from(d3.group(values, ({ ratio }) => Math.round(place(ratio) / apart)).values());
  const step = Math.min(apart, (height - 2 * radius) / Math.max(1, d3.max(piles, (pile) => pile.length) - 1));
  return piles.flatMap((pile) => pile.map((value, row) => ({ ...value, up: (row - (pile.length - 1) / 2) * step })));
}

const stripLabel = (few) => `ablated against baseline${few ? ", an image a dot" : ", images counted"}`;

// A dot an image: percent change, with the mean and its interval.
function imageStrip(values, effect, width) {
  const known = effect && [effect.low, effect.high].every(Number.isFinite);
  const [low, high] = known ? [effect.low, effect.high].map(logOf) : [NaN, NaN];
  const domain = spanOf([0, ...values.map((value) => value.ratio), low, high]);
  const few = values.length <= MANY_IMAGES, height = 80, side = 12, r = values.length > 120 ? 2 : 2.8;
  const dots = few
    ? [Plot.dot(piled(values, domain, width - 2 * side, height, r), { x: "ratio", y: "up", r, fill: "var(--accent)", fillOpacity: 0.65 })]
    : [Plot.rectY(values, Plot.binX({ y: "count" }, { x: "ratio", fill: "var(--accent)", fillOpacity: 0.5, thresholds: 60 }))];
  return chart(`Change on each of ${values.length} images, from ${percentText(fromLog(d3.min(values, (v) => v.ratio)))} to ${percentText(fromLog(d3.max(values, (v) => v.ratio)))}`, {
    width, height: height + 38, marginTop: 4, marginBottom: 34, marginLeft: side, marginRight: side,
    x: { domain, ticks: percentTicks(domain), tickFormat: percentTick, label: stripLabel(few), labelAnchor: "center", labelArrow: "none", labelOffset: 32 },
    y: few ? { axis: null, domain: [-height / 2, height / 2] } : { axis: null },
    marks: [
      known ? Plot.rectX([{ low, high }], { x1: "low", x2: "high", fill: "var(--band)" }) : null,
      Plot.ruleX([0], { stroke: "var(--hatch)" }),
      ...dots,
      effect && Number.isFinite(effect.mean) ? Plot.ruleX([effect.mean], { stroke: "var(--ink)", strokeWidth: 1.8 }) : null,
    ],
  });
}

// Baseline against ablated, an image a dot; above the diagonal the ablation hurts.
function pairedScatter(values, metric, width) {
  const known = values.filter((value) => Number.isFinite(value.baseline) && Number.isFinite(value.ablated));
  if (!known.length) return null;
  const positive = known.every((value) => value.baseline > 0 && value.ablated > 0);
  const all = known.flatMap((value) => [value.baseline, value.ablated]);
  let [low, high] = d3.extent(all);
  if (low === high) [low, high] = positive ? [low / 1.1, high * 1.1] : [low - 1, high + 1];
  const scale = positive ? { type: "log", domain: [low * 0.94, high * 1.06] } : { domain: [low, high] };
  const ticks = positive && high / low < 20 ? d3.ticks(low, high, 4) : 4;
  const axis = { ...scale, ticks, tickFormat: (value) => valueText(value), labelArrow: "none", grid: true };
  return chart(`Baseline against ablated ${metric} of ${known.length} images; ${known.filter((value) => value.ratio > 0).length} lie above the diagonal`, {
    width, height: Math.min(250, Math.round(width * 0.68)), marginLeft: 52, marginBottom: 36, marginTop: 14, marginRight: 12,
    x: { ...axis, label: `baseline ${metric}`, labelAnchor: "center", labelOffset: 32 },
    y: { ...axis, label: "ablated" },
    marks: [
      Plot.line([[low, low], [high, high]], { stroke: "var(--hatch)" }),
      Plot.dot(known, { x: "baseline", y: "ablated", r: known.length > 120 ? 2 : 2.6, fill: "var(--accent)", fillOpacity: known.length > 200 ? 0.45 : 0.65 }),
    ],
  });
}

// Two runs, one above the other, a dot an image. values: {ratio, side}; means: {side, mean, low, high}.
function twoStrips(values, means, width) {
  const known = values.filter((value) => Number.isFinite(value.ratio));
  const domain = spanOf([0, ...known.map((value) => value.ratio), ...means.flatMap(({ low, high }) => [low, high])]);
  const few = known.length <= 2 * MANY_IMAGES, height = 66, left = 22, right = 12, r = known.length > 240 ? 2 : 2.6;
  const dots = ["a", "b"].flatMap((side) => piled(known.filter((value) => value.side === side), domain, width - left - right, height, r));
  const each = means.map(({ side, mean }) => `${side}: ${known.filter((value) => value.side === side).length} images, mean ${percentText(fromLog(mean))}`).join("; ");
  return chart(`Change on each image in both runs. ${each}`, {
    width, height: 190, marginTop: 4, marginBottom: 34, marginLeft: left, marginRight: right,
    fy: { domain: ["a", "b"], label: null, padding: 0.08 },
    x: { domain, ticks: percentTicks(domain), tickFormat: percentTick, label: stripLabel(few), labelAnchor: "center", labelArrow: "none", labelOffset: 32 },
    y: few ? { axis: null, domain: [-height / 2, height / 2] } : { axis: null },
    marks: [
      Plot.rectX(means.filter(({ low, high }) => Number.isFinite(low) && Number.isFinite(high)), { fy: "side", x1: "low", x2: "high", fill: "var(--band)" }),
      Plot.ruleX([0], { stroke: "var(--hatch)" }),
      few
        ? Plot.dot(dots, { fy: "side", x: "ratio", y: "up", r, fill: (value) => `var(--data-${value.side === "a" ? 1 : 2})`, fillOpacity: 0.7 })
        : Plot.rectY(known, Plot.binX({ y: "count" }, { fy: "side", x: "ratio", thresholds: 60, fill: "var(--accent)", fillOpacity: 0.5 })),
      Plot.ruleX(means.filter(({ mean }) => Number.isFinite(mean)), { fy: "side", x: "mean", stroke: "var(--ink)", strokeWidth: 1.8 }),
    ],
  });
}

// The same image in both runs. pairs: {a, b}, log ratios.
function ratioScatter(pairs, width) {
  const known = pairs.filter(({ a, b }) => Number.isFinite(a) && Number.isFinite(b));
  const domain = spanOf([0, ...known.flatMap(({ a, b }) => [a, b])]);
  const axis = { domain, ticks: percentTicks(domain), tickFormat: percentTick, labelArrow: "none", grid: true };
  return chart(`The same ${known.length} images in a and in b; ${known.filter(({ a, b }) => b > a).length} are hurt more in b`, {
    width, height: Math.min(260, Math.round(width * 0.68)), marginLeft: 52, marginBottom: 36, marginTop: 14, marginRight: 12,
    x: { ...axis, label: "in a", labelAnchor: "center", labelOffset: 32 },
    y: { ...axis, label: "in b" },
    marks: [
      Plot.line([[domain[0], domain[0]], [domain[1], domain[1]]], { stroke: "var(--hatch)" }),
      Plot.dot(known, { x: "a", y: "b", r: 2.6, fill: "var(--accent)", fillOpacity: 0.65 }),
    ],
  });
}

const middle = (trial) => (trial.start + trial.end) / 2;

// Effects of one ablation over windows, a line a series; `points`: {t, percent, low, high, series, picked, id}.
function overWindows(points, series, width, label = "timestep, noise on the left") {
  const shown = points.filter((point) => Number.isFinite(point.percent));
  if (!shown.length) return null;
  const clipped = (value) => Math.max(-99.9, Math.min(1e6, value));
  const domain = spanOf([0, ...shown.flatMap((point) => [point.percent, point.low, point.high]).filter(Number.isFinite).map(clipped)], 2);
  const times = d3.extent(shown, (point) => point.t);
  const room = Math.max((times[1] - times[0]) * 0.06, 20);
  const style = (name) => `var(--data-${(series.indexOf(name) % 4) + 1})`;
  const at = { x: "t", y: (point) => clipped(point.percent) };
  return chart(`Percent degradation over windows: ${shown.map((point) => `${point.series}, t ${point.t}: ${percentText(point.percent)}`).join("; ")}`, {
    width, height: 190, marginLeft: 48, marginBottom: 36, marginTop: 12, marginRight: 10,
    x: { domain: [times[1] + room, times[0] - room], label, labelAnchor: "center", labelArrow: "none", labelOffset: 32, ticks: Array.from(new Set(shown.map((p) => p.t))).slice(0, 8), tickFormat: (t) => String(Math.round(t)) },
    y: { domain, grid: true, tickFormat: (value) => signed(`${value > 0 ? "+" : ""}${value}%`), label: null, ticks: 5 },
    marks: [
      Plot.ruleY([0], { stroke: "var(--hatch)" }),
      ...series.flatMap((name) => {
        const part = shown.filter((point) => point.series === name);
        const shift = (series.indexOf(name) - (series.length - 1) / 2) * 4;
        return [
          Plot.link(part.filter((p) => Number.isFinite(p.low) && Number.isFinite(p.high)), { x: "t", y1: (p) => clipped(p.low), y2: (p) => clipped(p.high), stroke: style(name), strokeWidth: 1.4, strokeOpacity: 0.75, dx: shift }),
          Plot.line(part, { ...at, stroke: style(name), strokeWidth: 1.6, dx: shift, sort: "t" }),
          Plot.dot(part, { ...at, fill: (p) => (p.called ? style(name) : "var(--paper)"), stroke: style(name), strokeWidth: 1.4, symbol: SYMBOLS[series.indexOf(name) % 4], r: 3.6, dx: shift }),
          Plot.dot(part.filter((p) => p.picked), { ...at, r: 7.5, stroke: "var(--ink)", strokeWidth: 1.4, dx: shift }),
        ];
      }),
    ],
  });
}

function seriesKey(series) {
  if (series.length < 2) return null;
  return element("p", { class: "series" }, series.map((name, place) =>
    element("span", {}, element("span", { class: `series-mark symbol-${place % 4}`, style: `color: var(--data-${(place % 4) + 1})`, "aria-hidden": "true" }, "●■▲◆"[place % 4]), ` ${name}`)));
}

// Entropy of a head's attention over timesteps; the dashed line is uniform attention.
function entropyProfile(points, keys, width) {
  const shown = points.filter((point) => Number.isFinite(point.nats));
  if (!shown.length) return null;
  const most = keys > 1 ? Math.log(keys) : d3.max(shown, (point) => point.nats);
  const times = d3.extent(shown, (point) => point.t);
  return chart(`Entropy of attention from ${valueText(shown[0].nats)} nats at t ${shown[0].t} to ${valueText(shown[shown.length - 1].nats)} at t ${shown[shown.length - 1].t}; uniform attention has ${valueText(most)}`, {
    width, height: 130, marginLeft: 36, marginBottom: 36, marginTop: 12, marginRight: 10,
    x: { domain: [times[1] + 20, times[0] - 20], label: "timestep, noise on the left", labelAnchor: "center", labelArrow: "none", labelOffset: 32, ticks: 5, tickFormat: String },
    y: { domain: [0, most * 1.08], label: "nats", labelArrow: "none", grid: true, ticks: 4 },
    marks: [
      Plot.ruleY([most], { stroke: "var(--muted)", strokeDasharray: "4 3" }),
      Plot.line(shown, { x: "t", y: "nats", stroke: "var(--accent)", strokeWidth: 1.8 }),
      Plot.dot(shown, { x: "t", y: "nats", fill: "var(--accent)", r: 2.6 }),
    ],
  });
}

// Where attention goes, as a picture: the darkest place has none.
function attentionPicture(values, map, ring, label) {
  const most = d3.max(values) || 1;
  const side = 72;
  const cells = Array.from(values, (value, place) =>
    drawn("rect", {
      x: place % map.columns, y: Math.floor(place / map.columns), width: 1.02, height: 1.02,
      style: `fill: ${d3.interpolateInferno(Number.isFinite(value) ? Math.max(0, value / most) : 0)}`,
    }));
  const mark = ring
    ? drawn("circle", { cx: map.query[1] + 0.5, cy: map.query[0] + 0.5, r: 0.42, class: "query" })
    : null;
  return drawn("svg", { width: side, height: Math.round((side * map.rows) / map.columns), viewBox: `0 0 ${map.columns} ${map.rows}`, role: "img", "aria-label": label }, cells, mark);
}
