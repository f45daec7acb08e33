// Line charts with words and numbers for those who do not see them.

const compact = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 3, notation: "compact" });

function ticks(low, high, isLog) {
  if (isLog) {
    const powers = [];
    for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e++) powers.push(10 ** e);
    if (powers.length > 1) return powers.length > 7 ? powers.filter((_, i) => i % 2 === 0) : powers;
  }
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const all = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
    all.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return all;
}

function tickLabel(value) {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e12)) return value.toExponential(0).replace("e+", "e");
  return (size >= 1e4 ? compact : format).format(value);
}

// Least and greatest of an axis, never the same. axis: {label, log, zero}.
function range(values, axis) {
  const low = Math.min(...values, ...(axis.zero ? [0] : []));
  const high = Math.max(...values);
  if (low < high) return [low, high];
  return axis.log ? [low / 2, high * 2] : [low - 1, high + 1];
}

// From values of an axis to places between begin and end.
function scale([low, high], axis, begin, end) {
  const share = axis.log ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
  return (v) => begin + share(v) * (end - begin);
}

// Of a histogram's bins, each as wide as it is: a line along their tops.
const pointsOf = ({ points, bins }) =>
  points ||
  bins.flatMap(([begin, end, n]) => [
    [begin, n],
    [end, n],
  ]);

// series: [{name, points: [[x, y]], says}], of a histogram bins: [[begin, end, y]] in place of points. Lines differ by
// their dashes, not by color alone.
function chart({ title, about, x, y, series, extra }) {
  const points = series.flatMap(pointsOf);
  if (!points.length) return null;
  // Letters keep their size on a narrow screen.
  const width = innerWidth < 720 ? 360 : 640;
  const height = 270;
  const left = 64;
  const right = width - 16;
  const top = 10;
  const bottom = height - 48;
  const [xs, ys] = [0, 1].map((i) => points.map((p) => p[i]));
  const [xRange, yRange] = [range(xs, x), range(ys, y)];
  const px = scale(xRange, x, left, right);
  const py = scale(yRange, y, bottom, top);
  const text = (kind, attributes, label) => svg("text", { class: kind, ...attributes }, label);
  const middle = { "text-anchor": "middle" };
  const summary = series.map((s) => `${plain(s.name)}: ${s.says}`).join(" ");
  return el(
    "figure",
    {},
    el("figcaption", {}, el("h3", {}, title), note(about)),
    svg(
      "svg",
      {
        class: "chart",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${title}. ${summary}`,
      },
      ticks(...yRange, y.log).map((v) => [
        svg("line", { class: "grid", x1: left, x2: right, y1: py(v), y2: py(v) }),
        text("tick", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, tickLabel(v)),
      ]),
      ticks(...xRange, x.log).map((v) => [
        svg("line", { class: "axis", x1: px(v), x2: px(v), y1: bottom, y2: bottom + 5 }),
        text("tick", { x: px(v), y: bottom + 19, ...middle }, tickLabel(v)),
      ]),
      svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
      text("label", { x: (left + right) / 2, y: height - 6, ...middle }, x.label),
      text("label", { transform: `translate(13 ${bottom / 2}) rotate(-90)`, ...middle }, y.label),
      series.map((s, i) => drawn(pointsOf(s), i, px, py)),
    ),
    series.length > 1 ? legend(series) : null,
    extra && el("p", {}, extra),
    lazyDetails("The same as numbers", () => numbersOf(series, x, y)),
  );
}

// A line; of one or two points, these as well.
function drawn(points, i, px, py) {
  if (!points.length) return null;
  const path = points.map(([a, b], k) => `${k ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`);
  const dot = ([a, b]) => svg("circle", { class: `dot s${i % 4}`, cx: px(a), cy: py(b), r: 4 });
  return [
    svg("path", { class: `line s${i % 4}`, d: path.join("") }),
    points.length < 3 ? points.map(dot) : null,
  ];
}

function legend(series) {
  const key = (i) =>
    svg(
      "svg",
      { class: "key", viewBox: "0 0 40 8", "aria-hidden": "true" },
      svg("path", { class: `line s${i % 4}`, d: "M0 4L40 4" }),
    );
  return el(
    "ul",
    { class: "legend" },
    series.map((s, i) => el("li", {}, key(i), " ", isolated(s.name))),
  );
}

// Some of the points, and of a histogram every bin, once.
function numbersOf(series, x, y) {
  const row = (at, value) => [cell(at), cell(number(value))];
  const rowsOf = ({ points, bins }) => {
    if (bins) return bins.map(([begin, end, n]) => row(`${number(begin)} to ${number(end)}`, n));
    const stride = Math.ceil(points.length / 24);
    return points
      .filter((_, i) => i % stride === 0 || i === points.length - 1)
      .map(([at, value]) => row(number(at), value));
  };
  return el(
    "div",
    {},
    series.map((s) =>
      table({ caption: shown(s.name), heads: [head(x.label), head(y.label)], rows: rowsOf(s) }),
    ),
  );
}
