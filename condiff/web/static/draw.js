// Samples as elements: pictures, text, curves and points.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The element of one sample, which `fill` may be called on again with the same sample at another step.
export function cell(kind, name) {
  if (kind === "picture") return make("img", { alt: `sample ${name}`, draggable: false });
  if (kind === "text") return make("pre", {});
  return svg("svg", { viewBox: "0 0 240 120", role: "img", "aria-label": `sample ${name}` });
}

export function fill(element, kind, item, { mask, range } = {}) {
  if (kind === "picture") element.src = item;
  else if (kind === "text") fillText(element, item, mask);
  else fillCurve(element, item, range);
}

function fillText(element, text, mask) {
  const parts = [];
  for (const run of text.match(new RegExp(`${mask}+|[^${mask}]+`, "gu")) ?? [])
    parts.push(run.startsWith(mask) ? make("span", { class: "mask" }, run) : run);
  element.replaceChildren(...parts);
}

function fillCurve(element, channels, [low, high]) {
  const lines = channels.map((values, channel) => {
    const points = values.map((value, i) => {
      const x = 6 + (228 * i) / Math.max(1, values.length - 1);
      return `${x.toFixed(1)},${(112 - (104 * (value - low)) / (high - low || 1)).toFixed(1)}`;
    });
    return svg("polyline", { points: points.join(" "), class: `line c${channel % COLOURS}` });
  });
  const ticks = [
    [13, high],
    [109, low],
  ].map(([y, value]) => svg("text", { x: 234, y, "text-anchor": "end", class: "tick small" }, shortNumber(value)));
  element.replaceChildren(svg("line", { x1: 6, x2: 234, y1: 112, y2: 112, class: "axis" }), ...lines, ...ticks);
}

// Smallest and largest number of all samples, so that they share an axis.
export function rangeOf(items) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of items.flat(3)) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low < high ? [low, high] : [low - 1, low + 1];
}

export function shortNumber(value) {
  return Number(value.toPrecision(3)).toString();
}

// One figure of all samples that are pairs of numbers; colours by name.
export function scatter(points, names, bounds) {
  const colour = colours(names);
  const [[left, right], [bottom, top]] = bounds;
  const across = (x) => 38 + (312 * (x - left)) / (right - left);
  const up = (y) => 332 - (316 * (y - bottom)) / (top - bottom);
  const dots = points.map(([x, y], i) => {
    const dot = svg("circle", { cx: across(x), cy: up(y), r: 3.5, class: `dot c${colour(names[i])}` });
    dot.append(svg("title", {}, `${names[i]}: ${shortNumber(x)}, ${shortNumber(y)}`));
    return dot;
  });
  const words = [
    [38, 345, "start", left],
    [350, 345, "end", right],
    [34, 332, "end", bottom],
    [34, 23, "end", top],
  ].map(([x, y, anchor, value]) => svg("text", { x, y, "text-anchor": anchor, class: "tick" }, shortNumber(value)));
  const frame = svg("rect", { x: 38, y: 16, width: 312, height: 316, class: "frame" });
  return svg("svg", { viewBox: "0 0 366 356", role: "img", "aria-label": `${points.length} points` }, frame, ...dots, ...words);
}

// One colour where every sample has a name of its own, else one for each name.
function colours(names) {
  const known = [...new Set(names)];
  return (name) => (known.length === names.length ? 0 : known.indexOf(name) % COLOURS);
}

export function legend(names) {
  const known = [...new Set(names)];
  if (known.length === names.length || known.length > COLOURS) return [];
  const colour = colours(names);
  return [make("p", { class: "legend" }, ...known.map((name) => make("span", { class: `c${colour(name)}` }, name)))];
}

export function boundsOf(frames) {
  const all = frames.flat().filter(Boolean);
  return [0, 1].map((axis) => {
    const [low, high] = rangeOf(all.map((point) => point[axis]));
    const spare = 0.06 * (high - low);
    return [low - spare, high + spare];
  });
}
