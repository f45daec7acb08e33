"use strict";
(() => {
  // Data is only ever put into text nodes, numbers and our own attributes: none of it is read as HTML.
  const data = JSON.parse(document.getElementById("data").textContent);
  const isReport = data.kind === "report";
  const own = data.dictionaries[0];
  const unit = data.dictionaries.every((d) => d.unit === "code") ? "code" : "latent";
  const Unit = unit[0].toUpperCase() + unit.slice(1);
  const main = document.getElementById("main");

  // ---------------------------------------------------------------- elements

  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === "") continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  // Controls, formats (bidirectional ones among them), broken halves of characters, private and
  // unassigned ones, odd spaces and all else that has no look of its own.
  const HIDDEN = /(?! )[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/gu;
  const SHORT = new Map([
    ["\n", "↵"],
    ["\t", "⇥"],
  ]);

  function codePoint(character) {
    const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return "U+" + code;
  }

  // A text as nodes in which every character can be seen.
  function shown(text) {
    const nodes = [];
    let done = 0;
    for (const match of text.matchAll(HIDDEN)) {
      if (match.index > done) nodes.push(document.createTextNode(text.slice(done, match.index)));
      const name = codePoint(match[0]);
      nodes.push(el("span", { class: "point", title: name }, SHORT.get(match[0]) || name));
      done = match.index + match[0].length;
    }
    if (done < text.length) nodes.push(document.createTextNode(text.slice(done)));
    return nodes;
  }
  const plain = (text) => text.replace(HIDDEN, (character) => SHORT.get(character) || codePoint(character));
  // A token by itself, its outer spaces seen.
  function alone(text) {
    if (text === "") return el("span", { class: "point" }, "nothing");
    return el("bdi", { class: "token" }, shown(text.replace(/^ +| +$/g, (s) => "␣".repeat(s.length))));
  }

  // ---------------------------------------------------------------- numbers

  const format = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 4 });
  const short = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 3 });
  const compact = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 3, notation: "compact" });
  const whole = new Intl.NumberFormat("en-GB");
  function number(value) {
    if (value === null || value === undefined) return "–";
    if (value === true || value === false) return value ? "yes" : "no";
    if (typeof value === "string") return plain(value);
    const isTiny = Math.abs(value) < 1e-4 && value !== 0;
    return (
      isTiny ? value.toExponential(2) : (Number.isInteger(value) ? whole : format).format(value)
    ).replace("-", "−");
  }
  const percent = (value) => (value === null || value === undefined ? "–" : short.format(100 * value) + " %");
  const plural = (n, word) => `${whole.format(n)} ${word}${n === 1 ? "" : "s"}`;

  function bar(share) {
    const width = Math.max(0, Math.min(1, share || 0)) * 100;
    return svg(
      "svg",
      { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "bar-all", width: 100, height: 8 }),
      svg("rect", { class: "bar-own", width: width.toFixed(1), height: 8 }),
    );
  }

  // ---------------------------------------------------------------- packed strings

  const digits = new Map();
  if (isReport) [...data.alphabet].forEach((character, i) => digits.set(character.charCodeAt(0), i));
  const half = isReport ? data.alphabet.length / 2 : 0;

  function unpack(packed) {
    const strings = [];
    let n = 0;
    let step = 1;
    for (let i = 0; i < packed.length; i++) {
      const digit = digits.get(packed.charCodeAt(i));
      n += digit * step;
      if (digit < half) {
        strings.push(data.strings[n]);
        n = 0;
        step = 1;
      } else step *= half;
    }
    return strings;
  }

  // ---------------------------------------------------------------- latents

  const rateOf = (j) => own.nFirings[j] / own.nTokens;
  const whenOff = new Set(own.whenOff);
  const latents = isReport
    ? data.latents.map((row, j) => {
        const [strongest, random, tokens, lemmas, countError, neighbours, classes] = row;
        return {
          j,
          strongest,
          random,
          tokens,
          lemmas,
          countError,
          neighbours,
          classes,
          rate: rateOf(j),
          peak: strongest.length ? strongest[0][2] : null,
          phrase: data.phrases ? data.phrases[j] : null,
        };
      })
    : [];
  const nameOf = (j) => `${Unit} ${j}`;
  const inSentences = new Map();
  if (isReport) {
    data.sentences.forEach(([, codes], s) =>
      codes.forEach((token, t) =>
        token.forEach(([j]) => {
          if (!inSentences.has(j)) inSentences.set(j, new Map());
          const places = inSentences.get(j);
          if (!places.has(s)) places.set(s, []);
          places.get(s).push(t);
        }),
      ),
    );
  }

  const STRENGTHS = {
    activation: "activation",
    surprise: "surprise in bits",
    nearness: "minus squared distance to the code",
  };

  // How full the bar of a strength is, among the latent's own.
  function fullness(strength, strengths) {
    if (data.strength !== "nearness") return strength / Math.max(...strengths, 1e-12);
    const farthest = Math.min(...strengths);
    return farthest < 0 ? 1 - (strength / farthest) * 0.9 : 1;
  }

  const link = (j) => el("a", { href: `#${unit}-${j}` }, nameOf(j));
  const linkWithGist = (j) =>
    el("th", { scope: "row" }, link(j), el("span", { class: "note below" }, gist(j)));

  // In words, or by its tokens.
  function gist(j) {
    const { phrase, tokens } = latents[j];
    if (phrase !== null) return el("bdi", {}, shown(phrase));
    return tokens.slice(0, 5).map(([s]) => [alone(data.strings[s]), " "]);
  }

  // ---------------------------------------------------------------- charts

  function ticks(low, high, isLog) {
    const all = [];
    if (isLog) {
      for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e++) all.push(10 ** e);
      if (all.length > 1) return all.length > 7 ? all.filter((_, i) => i % 2 === 0) : all;
    }
    const rough = (high - low) / 5 || 1;
    const unitStep = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * unitStep).find((s) => s >= rough);
    all.length = 0;
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
      all.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return all;
  }

  const tickLabel = (value) =>
    value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e12)
      ? value.toExponential(0).replace("e+", "e")
      : Math.abs(value) >= 1e4
        ? compact.format(value)
        : format.format(value);

  // series: [{name, points: [[x, y]]}]. Lines differ by their dashes, not by colour alone.
  function chart({ title, note, x, y, series, extra }) {
    // Letters keep their size on a narrow screen.
    const left = 64,
      right = 16,
      top = 10,
      bottom = 48,
      width = innerWidth < 720 ? 360 : 640,
      height = 270;
    const points = series.flatMap((s) => s.points);
    if (!points.length) return null;
    const span = (values, axis) => {
      let low = Math.min(...values),
        high = Math.max(...values);
      if (axis.zero) low = Math.min(0, low);
      if (low === high) {
        low = axis.log ? low / 2 : low - 1;
        high = axis.log ? high * 2 : high + 1;
      }
      return [low, high];
    };
    const [x0, x1] = span(
      points.map((p) => p[0]),
      x,
    );
    const [y0, y1] = span(
      points.map((p) => p[1]),
      y,
    );
    const scale = (v, low, high, isLog) =>
      isLog ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
    const px = (v) => left + scale(v, x0, x1, x.log) * (width - left - right);
    const py = (v) => height - bottom - scale(v, y0, y1, y.log) * (height - top - bottom);
    const shapes = [];
    for (const v of ticks(y0, y1, y.log)) {
      shapes.push(
        svg("line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) }),
        svg("text", { class: "tick", x: left - 6, y: py(v) + 4, "text-anchor": "end" }, tickLabel(v)),
      );
    }
    for (const v of ticks(x0, x1, x.log)) {
      shapes.push(
        svg("line", { class: "axis", x1: px(v), x2: px(v), y1: height - bottom, y2: height - bottom + 5 }),
        svg(
          "text",
          { class: "tick", x: px(v), y: height - bottom + 19, "text-anchor": "middle" },
          tickLabel(v),
        ),
      );
    }
    shapes.push(
      svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      svg(
        "text",
        { class: "label", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
        x.label,
      ),
      svg(
        "text",
        {
          class: "label",
          transform: `translate(13 ${(height - bottom) / 2}) rotate(-90)`,
          "text-anchor": "middle",
        },
        y.label,
      ),
    );
    series.forEach((s, i) => {
      if (!s.points.length) return;
      const path = s.points
        .map(([a, b], k) => `${k ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`)
        .join("");
      shapes.push(svg("path", { class: `line s${i % 4}`, d: path }));
      if (s.points.length < 3)
        s.points.forEach(([a, b]) =>
          shapes.push(svg("circle", { class: `dot s${i % 4}`, cx: px(a), cy: py(b), r: 4 })),
        );
    });
    const summary = series.map((s) => `${plain(s.name)}: ${s.says}`).join(" ");
    const picture = svg(
      "svg",
      {
        class: "chart",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${title}. ${summary}`,
      },
      shapes,
    );
    const legend =
      series.length > 1
        ? el(
            "ul",
            { class: "legend" },
            series.map((s, i) =>
              el(
                "li",
                {},
                svg(
                  "svg",
                  { class: "key", viewBox: "0 0 40 8", "aria-hidden": "true" },
                  svg("path", { class: `line s${i % 4}`, d: "M0 4L40 4" }),
                ),
                " ",
                el("bdi", {}, shown(s.name)),
              ),
            ),
          )
        : null;
    return el(
      "figure",
      {},
      el("figcaption", {}, el("h3", {}, title), el("p", { class: "note" }, note)),
      picture,
      legend,
      extra && el("p", {}, extra),
      lazyDetails("The same as numbers", () => numbersOf(series, x, y)),
    );
  }

  function lazyDetails(title, make) {
    const details = el("details", {}, el("summary", {}, title));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(make());
    });
    return details;
  }

  function numbersOf(series, x, y) {
    return el(
      "div",
      { class: "wide" },
      series.map((s) => {
        const stride = Math.ceil(s.points.length / 24);
        return el(
          "table",
          {},
          el("caption", {}, shown(s.name)),
          el(
            "thead",
            {},
            el("tr", {}, el("th", { scope: "col" }, x.label), el("th", { scope: "col" }, y.label)),
          ),
          el(
            "tbody",
            {},
            s.points
              .filter((_, i) => i % stride === 0 || i === s.points.length - 1)
              .map(([a, b]) => el("tr", {}, el("td", {}, number(a)), el("td", {}, number(b)))),
          ),
        );
      }),
    );
  }

  function ratesOf(dictionary) {
    const off = new Set(dictionary.whenOff);
    return dictionary.nFirings.map((n, j) =>
      off.has(j) ? 1 - n / dictionary.nTokens : n / dictionary.nTokens,
    );
  }

  function median(sorted) {
    return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : 0;
  }

  function densityChart() {
    const nBins = 30;
    const lowest = -Math.max(1, Math.log10(Math.max(...data.dictionaries.map((d) => d.nTokens))));
    const nevers = [];
    const series = data.dictionaries.map((dictionary) => {
      const fires = ratesOf(dictionary)
        .filter((rate) => rate > 0)
        .sort((a, b) => a - b);
      const counts = new Array(nBins).fill(0);
      for (const rate of fires)
        counts[Math.min(nBins - 1, Math.max(0, Math.floor((1 - Math.log10(rate) / lowest) * nBins)))]++;
      const edge = (i) => 10 ** (lowest * (1 - i / nBins));
      const points = counts.flatMap((n, i) => [
        [edge(i), n],
        [edge(i + 1), n],
      ]);
      const never = dictionary.nFirings.length - fires.length;
      nevers.push(
        `${data.dictionaries.length > 1 ? plain(dictionary.name) + ": " : ""}${whole.format(never)} of ${plural(dictionary.nFirings.length, dictionary.unit)} never fired.`,
      );
      return {
        name: dictionary.name,
        points: fires.length ? points : [],
        says: fires.length
          ? `median ${percent(median(fires))}, highest ${percent(fires[fires.length - 1])}; ${never} never fire.`
          : "none fires.",
      };
    });
    const figure = chart({
      title: "How often each fires",
      series,
      extra: nevers.join(" "),
      note: "Histogram of the share of tokens. What stands far right fires nearly always and says little; a mostly-on bit is counted where it is on.",
      x: { label: "share of tokens", log: true },
      y: { label: `${unit}s a bin`, zero: true },
    });
    return figure || el("p", {}, nevers.join(" "));
  }

  function usageChart() {
    const series = data.dictionaries.map((dictionary) => {
      const counts = dictionary.nFirings.filter((n) => n > 0).sort((a, b) => b - a);
      const total = counts.reduce((a, b) => a + b, 0);
      const stride = Math.ceil(counts.length / 300);
      const points = [];
      let sum = 0,
        halfAt = 0;
      counts.forEach((n, i) => {
        sum += n;
        if (!halfAt && sum >= total / 2) halfAt = i + 1;
        if (i % stride === 0 || i === counts.length - 1) points.push([i + 1, sum / total]);
      });
      return {
        name: dictionary.name,
        points,
        says: `the ${halfAt} most used have half of all firings.`,
        halfAt,
      };
    });
    return chart({
      title: `How evenly ${unit}s are used`,
      series,
      note: "Share of all firings that the most used have together. A straight line would be even use; a steep start means that few do most of the work.",
      extra: series
        .map((s) => `${series.length > 1 ? plain(s.name) + ": t" : "T"}he ${s.says.slice(4)}`)
        .join(" "),
      x: { label: `most used ${unit}s` },
      y: { label: "share of firings", zero: true },
    });
  }

  function trainingChart() {
    const known = data.dictionaries.filter((d) => d.training && d.training.points.length);
    if (!known.length) return null;
    const series = known.map((d) => ({
      name: d.name,
      points: d.training.points,
      says: `from ${number(d.training.points[0][1])} to ${number(d.training.points[d.training.points.length - 1][1])} bits.`,
    }));
    const isOfCodes = known.some((d) => d.training.isOfCodes);
    return chart({
      title: "Entropy over training",
      series,
      note:
        "Bits per token of a minibatch's code" +
        (isOfCodes ? "; of codebooks, log₂ of the perplexity." : ", if latents were independent."),
      x: { label: "training tokens", zero: true },
      y: { label: "bits per token", zero: true },
    });
  }

  // ---------------------------------------------------------------- overview

  function metricsTable(names, caption) {
    const several = data.dictionaries.length > 1;
    const values = data.dictionaries.map((d) => new Map(d.metrics.map(([name, value]) => [name, value])));
    const words = new Map(data.dictionaries.flatMap((d) => d.metrics.map(([name, , text]) => [name, text])));
    const isNarrow = several || innerWidth < 720;
    const explained = (name) => (isNarrow ? el("span", { class: "note below" }, words.get(name)) : null);
    return el(
      "div",
      { class: "wide" },
      el(
        "table",
        { class: "metrics" },
        el("caption", {}, caption),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "number"),
            data.dictionaries.map((d) =>
              el("th", { scope: "col", class: "n" }, several ? shown(d.name) : "value"),
            ),
            isNarrow ? null : el("th", { scope: "col" }, "what it is"),
          ),
        ),
        el(
          "tbody",
          {},
          names.map((name) =>
            el(
              "tr",
              {},
              el(
                "th",
                { scope: "row" },
                shown(name.replaceAll("_", " ").replace(/^code\//, "")),
                explained(name),
              ),
              values.map((own) => el("td", { class: "n" }, number(own.get(name)))),
              isNarrow ? null : el("td", {}, words.get(name)),
            ),
          ),
        ),
      ),
    );
  }

  function factsTable() {
    const facts = [
      ["dictionary", (d) => (d.link ? el("a", { href: d.link }, shown(d.name)) : shown(d.name))],
      ["kind", (d) => shown(d.architecture)],
      ["hook point", (d) => shown(d.hook)],
      ["size", (d) => plural(d.nFirings.length, d.unit)],
      ["read", (d) => `${plural(d.nTokens, "token")} of ${plural(d.nTexts, "text")}`],
    ];
    return el(
      "div",
      { class: "wide" },
      el(
        "table",
        { class: "facts" },
        el("caption", {}, "What this is about"),
        el(
          "tbody",
          {},
          facts.map(([name, of]) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, name),
              data.dictionaries.map((d) => el("td", {}, of(d))),
            ),
          ),
        ),
      ),
    );
  }

  function overview() {
    const names = [...new Set(data.dictionaries.flatMap((d) => d.metrics.map(([name]) => name)))];
    const heads = data.headlines.filter((name) => names.includes(name));
    return [
      el("h2", { tabindex: -1 }, "Overview"),
      factsTable(),
      names.length ? null : el("p", { class: "note" }, "No metrics were given."),
      heads.length ? metricsTable(heads, "Metrics") : null,
      names.length > heads.length
        ? lazyDetails(`All ${names.length} metrics`, () => metricsTable(names, "All metrics"))
        : null,
      densityChart(),
      usageChart(),
      trainingChart(),
    ];
  }

  // ---------------------------------------------------------------- list of latents

  const FIRST = 60,
    MORE = 120;
  const list = { order: [], shown: 0, sort: "number", descending: false, query: "", inExamples: false };
  const byName = new Intl.Collator("en");

  const columns = isReport
    ? [
        {
          key: "number",
          label: Unit,
          of: (latent) => latent.j,
          cell: ({ j }) => [link(j), whenOff.has(j) ? el("span", { class: "note" }, " (when off)") : null],
        },
        data.phrases && {
          key: "phrase",
          label: "phrase",
          isText: true,
          of: (latent) => latent.phrase,
          cell: ({ phrase }) => (phrase === null ? "–" : el("bdi", {}, shown(phrase))),
        },
        {
          key: "tokens",
          label: "commonest tokens",
          isText: true,
          of: ({ tokens }) => (tokens.length ? data.strings[tokens[0][0]].trim() : null),
          cell: ({ tokens }) =>
            tokens.length
              ? tokens.slice(0, 5).map(([s]) => [alone(data.strings[s]), " "])
              : el("span", { class: "note" }, "never fires"),
        },
        {
          key: "rate",
          label: "fires at",
          isNumber: true,
          of: (latent) => latent.rate,
          cell: ({ rate }) => percent(rate),
        },
        {
          key: "strongest",
          label: "strongest",
          isNumber: true,
          of: (latent) => latent.peak,
          cell: ({ peak }) => number(peak),
        },
        {
          key: "lift",
          label: "lift of 1st token",
          isNumber: true,
          of: ({ tokens }) => (tokens.length ? tokens[0][2] : null),
          cell: ({ tokens }) => (tokens.length ? number(tokens[0][2]) : "–"),
        },
        ...data.scores.map(([name, values], i) => ({
          key: `score-${i}`,
          label: plain(name),
          isNumber: true,
          of: ({ j }) => values[j],
          cell: ({ j }) => number(values[j]),
        })),
      ].filter(Boolean)
    : [];

  function searchable(latent) {
    latent.text ??= [
      nameOf(latent.j),
      latent.phrase || "",
      ...latent.tokens.concat(latent.lemmas || []).map(([s]) => data.strings[s]),
    ]
      .join("\n")
      .toLowerCase();
    if (!list.inExamples) return latent.text;
    latent.examplesText ??= latent.strongest
      .concat(latent.random)
      .map(([packed]) => unpack(packed).join(""))
      .join("\n")
      .toLowerCase();
    return latent.text + "\n" + latent.examplesText;
  }

  function chosen() {
    const query = list.query.toLowerCase().trim();
    const index = /^#?\d+$/.test(query) ? Number(query.replace("#", "")) : null;
    const found =
      query === ""
        ? latents.slice()
        : latents.filter((latent) => latent.j === index || searchable(latent).includes(query));
    const { of, isText } = columns.find((column) => column.key === list.sort);
    const sign = list.descending ? -1 : 1;
    const keyed = found.map((latent) => [of(latent), latent]);
    keyed.sort(([a, one], [b, other]) => {
      // What is not known comes last either way.
      if (a === null || b === null || a === undefined || b === undefined)
        return (a ?? null) === (b ?? null) ? one.j - other.j : (a ?? null) === null ? 1 : -1;
      return sign * (isText ? byName.compare(a, b) : a - b) || one.j - other.j;
    });
    const latentsInOrder = keyed.map(([, latent]) => latent);
    if (index === null) return latentsInOrder;
    // The one that was asked for by its number comes first.
    return latentsInOrder.filter((l) => l.j === index).concat(latentsInOrder.filter((l) => l.j !== index));
  }

  function listRow(latent) {
    return el(
      "tr",
      { role: "row", "data-latent": latent.j },
      columns.map((column, i) =>
        el(
          i ? "td" : "th",
          {
            role: i ? "cell" : "rowheader",
            scope: i ? null : "row",
            class: column.isNumber ? "n" : null,
            "data-label": column.label,
          },
          column.cell(latent),
        ),
      ),
    );
  }

  function showMore(n) {
    const rows = list.order.slice(list.shown, list.shown + n).map(listRow);
    list.body.append(...rows);
    list.shown += rows.length;
    const left = list.order.length - list.shown;
    list.more.hidden = left === 0;
    list.more.textContent = `Show more (${whole.format(left)} left)`;
  }

  function refresh() {
    list.order = chosen();
    list.shown = 0;
    list.body.replaceChildren();
    showMore(FIRST);
    list.status.textContent =
      list.order.length === latents.length
        ? plural(latents.length, unit)
        : `${whole.format(list.order.length)} of ${plural(latents.length, unit)}` +
          (list.order.length ? "" : ": nothing matches. Try a shorter search.");
    for (const head of list.heads.children) {
      const isSorted = head.dataset.key === list.sort;
      head.setAttribute("aria-sort", isSorted ? (list.descending ? "descending" : "ascending") : "none");
      head.querySelector(".way").textContent = isSorted ? (list.descending ? " ▼" : " ▲") : "";
    }
    list.select.value = list.sort;
    list.way.textContent = list.descending ? "▼ descending" : "▲ ascending";
  }

  function sortBy(key, flips) {
    const column = columns.find((c) => c.key === key);
    list.descending = flips && list.sort === key ? !list.descending : Boolean(column.isNumber);
    list.sort = key;
    refresh();
  }

  function listView() {
    list.search = el("input", {
      type: "search",
      id: "search",
      autocomplete: "off",
      spellcheck: "false",
      "aria-describedby": "status",
      oninput: () => {
        list.query = list.search.value;
        refresh();
      },
    });
    list.select = el(
      "select",
      { id: "sort", onchange: () => sortBy(list.select.value, false) },
      columns.map((c) => el("option", { value: c.key }, c.label)),
    );
    list.way = el("button", {
      type: "button",
      "aria-label": "Turn the order round",
      onclick: () => {
        list.descending = !list.descending;
        refresh();
      },
    });
    const inExamples = el("input", {
      type: "checkbox",
      id: "in-examples",
      onchange: () => {
        list.inExamples = inExamples.checked;
        refresh();
      },
    });
    list.status = el("p", { id: "status", role: "status" });
    list.heads = el(
      "tr",
      { role: "row" },
      columns.map((c) =>
        el(
          "th",
          { scope: "col", role: "columnheader", class: c.isNumber ? "n" : null, "data-key": c.key },
          el(
            "button",
            { type: "button", onclick: () => sortBy(c.key, true) },
            c.label,
            el("span", { class: "way", "aria-hidden": "true" }),
          ),
        ),
      ),
    );
    list.body = el("tbody", { role: "rowgroup", onkeydown: moveInList });
    list.more = el("button", { type: "button", class: "more", onclick: () => showMore(MORE) });
    new IntersectionObserver(
      (entries) => {
        if (entries.some((e) => e.isIntersecting) && !list.more.hidden) showMore(MORE);
      },
      { rootMargin: "400px" },
    ).observe(list.more);
    const view = [
      el("h2", { tabindex: -1 }, `${Unit}s`),
      el(
        "div",
        { class: "tools", role: "search" },
        el(
          "p",
          {},
          el("label", { for: "search" }, "Search tokens", data.phrases ? ", phrases" : "", " and numbers"),
          list.search,
        ),
        el("p", { class: "check" }, inExamples, el("label", { for: "in-examples" }, "in examples too")),
        el(
          "p",
          {},
          el("label", { for: "sort" }, "Sort by"),
          el("span", { class: "pair" }, list.select, list.way),
        ),
      ),
      list.status,
      el(
        "div",
        { class: "wide" },
        el(
          "table",
          { class: "list", role: "table" },
          el(
            "caption",
            {},
            `One row a ${unit}; strength is ${STRENGTHS[data.strength]}. Lift: how many times commoner the token is where it fires.`,
          ),
          el("thead", { role: "rowgroup" }, list.heads),
          list.body,
        ),
      ),
      list.more,
    ];
    refresh();
    return view;
  }

  function moveInList(event) {
    const row = event.target.closest("tr");
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    let goal = null;
    if (event.key === "ArrowDown") {
      if (!row.nextElementSibling) showMore(MORE);
      goal = row.nextElementSibling;
    } else if (event.key === "ArrowUp") {
      goal = row.previousElementSibling;
      if (!goal) {
        event.preventDefault();
        list.search.focus();
        return;
      }
    } else if (event.key === "Home") goal = list.body.firstElementChild;
    else if (event.key === "End") {
      showMore(list.order.length);
      goal = list.body.lastElementChild;
    } else return;
    event.preventDefault();
    if (goal) focusRow(goal);
  }

  function focusRow(row) {
    row.querySelector("a").focus();
    row.scrollIntoView({ block: "nearest" });
  }

  function focusLatent(j) {
    const place = list.order.findIndex((latent) => latent.j === j);
    if (place < 0) return false;
    if (place >= list.shown) showMore(place + 1 - list.shown);
    focusRow(list.body.children[place]);
    return true;
  }

  // ---------------------------------------------------------------- one latent

  function example([packed, marked, strength, text, position], strengths) {
    const strings = unpack(packed);
    const token = strings[marked] || "";
    const space = token.slice(0, token.length - token.replace(/^ +/, "").length);
    return el(
      "li",
      {},
      el(
        "p",
        { class: "text", dir: "auto" },
        shown((strings.slice(0, marked).join("") + space).replace(/^ +/, "")),
        el(
          "mark",
          {},
          token === "" ? el("span", { class: "point" }, "nothing") : shown(token.slice(space.length)),
        ),
        shown(strings.slice(marked + 1).join("")),
      ),
      el(
        "p",
        { class: "note" },
        bar(fullness(strength, strengths)),
        ` strength ${number(strength)} · text ${whole.format(text)}, token ${whole.format(position)}`,
      ),
    );
  }

  function examples(title, note, all, strengths) {
    return el(
      "section",
      {},
      el("h3", {}, title),
      el("p", { class: "note" }, note),
      all.length
        ? el(
            "ol",
            { class: "examples" },
            all.map((e) => example(e, strengths)),
          )
        : el("p", {}, "There are none: it never fired."),
    );
  }

  function table(title, note, heads, rows) {
    return el(
      "section",
      {},
      el("h3", {}, title),
      note && el("p", { class: "note" }, note),
      el(
        "div",
        { class: "wide" },
        el(
          "table",
          {},
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              heads.map((h, i) => el("th", { scope: "col", class: i && h && h !== "where" ? "n" : null }, h)),
            ),
          ),
          el("tbody", {}, rows),
        ),
      ),
    );
  }

  function countsTable(title, counts, error) {
    if (!counts || !counts.length) return null;
    const most = counts[0][1];
    return table(
      title,
      `Lift: its share where this fires, over its share of all tokens.${error ? ` Counts may be too low by ${whole.format(error)}.` : ""}`,
      ["", "times", "lift", ""],
      counts.map(([s, n, lift]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, alone(data.strings[s])),
          el("td", { class: "n" }, number(n)),
          el("td", { class: "n" }, number(lift)),
          el("td", { class: "bars" }, bar(n / most)),
        ),
      ),
    );
  }

  function neighboursTable({ neighbours }) {
    if (!neighbours) return null;
    if (!neighbours.length)
      return el(
        "section",
        {},
        el("h3", {}, "Neighbours"),
        el("p", {}, "None fires together with it more often than by chance."),
      );
    const isPhi = data.measure === "phi";
    return table(
      "Neighbours",
      isPhi
        ? "φ: 1 where both fire at the same tokens, 0 where they meet as often as by chance."
        : "Distance in the codebook, the nearest first.",
      isPhi ? ["", "φ", "together"] : ["", "distance"],
      neighbours.map(([j, value, together]) =>
        el(
          "tr",
          {},
          linkWithGist(j),
          el("td", { class: "n" }, number(value)),
          isPhi ? el("td", { class: "n" }, number(together)) : null,
        ),
      ),
    );
  }

  function classTable({ classes, rate }) {
    if (!classes || !rate) return null;
    return table(
      "Classes",
      "Share of its firings that are in texts of the class, beside the class's share of all tokens.",
      ["", "of its firings", "of all tokens", ""],
      data.classes.map((name, i) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, el("bdi", {}, shown(name))),
          el("td", { class: "n" }, percent(classes[i])),
          el("td", { class: "n" }, percent(data.classShares[i])),
          el("td", { class: "bars" }, bar(classes[i])),
        ),
      ),
    );
  }

  // Which tokens of a sentence have a code: a box each, filled where it has.
  function strip(s, places) {
    const n = data.sentences[s][1].length;
    const boxes = svg(
      "svg",
      { class: "strip", viewBox: `0 0 ${n * 4} 10`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("line", { class: "axis", x1: 0, x2: n * 4, y1: 9.5, y2: 9.5 }),
      places.map((t) => svg("rect", { class: "bar-own", x: t * 4 + 0.3, width: 3.4, height: 9 })),
    );
    return el(
      "span",
      {},
      boxes,
      el("span", { class: "unseen" }, `token ${places.map((t) => t + 1).join(", ")} of ${n}`),
    );
  }

  const nCoded = (s) => Math.max(1, data.sentences[s][1].filter((token) => token.length).length);
  const isOneHot = isReport && data.strength === "nearness";
  const amongStrongest = isOneHot ? "" : " Only the strongest of each token are known.";

  function sentencesTable(j) {
    const places = inSentences.get(j);
    if (!data.sentences.length) return null;
    if (!places)
      return el(
        "section",
        {},
        el("h3", {}, "Along the stored sentences"),
        el("p", {}, `In none of the ${data.sentences.length} stored sentences.${amongStrongest}`),
      );
    const rows = [...places]
      .sort((a, b) => b[1].length / nCoded(b[0]) - a[1].length / nCoded(a[0]) || a[0] - b[0])
      .slice(0, 20);
    return table(
      "Along the stored sentences",
      `Share of a sentence's tokens that have it, and which (${places.size} of ${data.sentences.length} sentences).${amongStrongest}`,
      ["", "share", "where"],
      rows.map(([s, at]) =>
        el(
          "tr",
          {},
          el(
            "th",
            { scope: "row" },
            el("a", { href: `#sentence-${s}` }, `Sentence ${s}`),
            el("bdi", { class: "note clip" }, plain(textOf(s))),
          ),
          el("td", { class: "n" }, percent(at.length / nCoded(s))),
          el("td", {}, strip(s, at)),
        ),
      ),
    );
  }

  function latentView(j) {
    const latent = latents[j];
    const strengths = latent.strongest.concat(latent.random).map((e) => e[2]);
    const order = list.order.findIndex((other) => other.j === j);
    const step = (by, words) => {
      const other = list.order[order + by];
      return order >= 0 && other
        ? el("a", { href: `#${unit}-${other.j}`, rel: by < 0 ? "prev" : "next" }, words)
        : null;
    };
    const off = whenOff.has(j);
    return [
      el(
        "p",
        { class: "path" },
        el("a", { href: `#${unit}s` }, `All ${unit}s`),
        step(-1, "← Previous"),
        step(1, "Next →"),
      ),
      el(
        "h2",
        { tabindex: -1 },
        nameOf(j),
        latent.phrase === null ? null : [": ", el("bdi", {}, shown(latent.phrase))],
      ),
      el(
        "dl",
        {},
        [
          ["fires at", `${plural(own.nFirings[j], "token")}, ${percent(latent.rate)}`],
          off ? ["fires", "where its bit is off, since it is mostly on"] : null,
          latent.peak === null ? null : ["strongest", `${number(latent.peak)} (${STRENGTHS[data.strength]})`],
          ...data.scores.map(([name, values]) => [plain(name), number(values[j])]),
        ]
          .filter(Boolean)
          .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
      ),
      el(
        "div",
        { class: "columns" },
        el(
          "div",
          {},
          data.strength === "surprise"
            ? examples(
                "Examples",
                "A random draw: all are equally strong. The marked token is where it fires.",
                latent.strongest,
                strengths,
              )
            : examples(
                "Strongest examples",
                "The marked token is where it fires.",
                latent.strongest,
                strengths,
              ),
          examples(
            data.strength === "surprise" ? "More examples" : "Random examples",
            "Drawn evenly from all of its firings: what it usually means.",
            latent.random,
            strengths,
          ),
        ),
        el(
          "div",
          {},
          countsTable("Commonest tokens", latent.tokens, latent.countError),
          countsTable("Commonest lemmas", latent.lemmas, latent.countError),
          classTable(latent),
          neighboursTable(latent),
          sentencesTable(j),
        ),
      ),
    ];
  }

  // ---------------------------------------------------------------- sentences

  const texts = [];
  const textOf = (s) => (texts[s] ??= unpack(data.sentences[s][0]).join(""));
  const picker = { query: "" };

  function sentencesView() {
    picker.search = el("input", {
      type: "search",
      id: "find-sentence",
      autocomplete: "off",
      spellcheck: "false",
      "aria-describedby": "sentence-status",
      oninput: () => {
        picker.query = picker.search.value;
        refreshSentences();
      },
    });
    picker.status = el("p", { id: "sentence-status", role: "status" });
    picker.list = el("ol", { class: "sentences", onkeydown: moveInSentences });
    picker.detail = el("section", { class: "detail", "aria-label": "The sentence and its codes" });
    refreshSentences();
    return [
      el("h2", { tabindex: -1 }, "Sentences"),
      el(
        "p",
        { class: "note" },
        `The ${data.sentences.length} stored sentences with their ${unit}s. This page has no model in it, so what you type finds stored sentences; for codes of a new text, run the report again with it among the texts.`,
      ),
      el(
        "div",
        { class: "tools", role: "search" },
        el("p", {}, el("label", { for: "find-sentence" }, "Type words of a sentence"), picker.search),
      ),
      picker.status,
      el("div", { class: "columns picker" }, picker.list, picker.detail),
    ];
  }

  function refreshSentences() {
    const words = picker.query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.sentences
      .map((_, s) => s)
      .filter((s) => words.every((word) => textOf(s).toLowerCase().includes(word)));
    picker.list.replaceChildren(
      ...found.map((s) =>
        el(
          "li",
          {},
          el(
            "a",
            {
              href: `#sentence-${s}`,
              "data-sentence": s,
              "aria-current": s === picker.chosen ? "true" : null,
            },
            el("span", { class: "note" }, `${s} `),
            el("bdi", {}, plain(textOf(s))),
          ),
        ),
      ),
    );
    picker.status.textContent = found.length
      ? plural(found.length, "sentence")
      : "No stored sentence has these words.";
  }

  function moveInSentences(event) {
    const links = [...picker.list.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    const goal = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
    if (goal === undefined || at < 0) return;
    event.preventDefault();
    if (goal < 0) picker.search.focus();
    else if (goal < links.length) links[goal].focus();
  }

  function showSentence(s) {
    picker.chosen = s;
    for (const item of picker.list.querySelectorAll("a")) {
      if (Number(item.dataset.sentence) === s) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
    const [packed, codes, label] = data.sentences[s];
    const strings = unpack(packed);
    const codesOf = el(
      "div",
      { class: "codes", role: "status" },
      el("p", {}, "Pick a token to see what fires there."),
    );
    const all = codes.flat().map((c) => c[1]);
    const buttons = strings.map((string, t) =>
      el(
        "button",
        {
          type: "button",
          class: "tok",
          tabindex: t ? -1 : 0,
          "aria-pressed": "false",
          onclick: () => pick(t),
          onfocus: () => rove(t),
        },
        el("span", { class: "word" }, alone(string)),
        el("span", { class: "code" }, codes[t].length ? codes[t][0][0] : "–"),
        bar(codes[t].length ? fullness(codes[t][0][1], all) : 0),
      ),
    );
    const rove = (t) => buttons.forEach((b, i) => b.setAttribute("tabindex", i === t ? 0 : -1));
    const pick = (t) => {
      buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === t ? "true" : "false"));
      codesOf.replaceChildren(
        el("h4", {}, "Token ", alone(strings[t])),
        codes[t].length
          ? el(
              "div",
              { class: "wide" },
              el(
                "table",
                {},
                el(
                  "thead",
                  {},
                  el(
                    "tr",
                    {},
                    [unit, "strength", ""].map((h, i) =>
                      el("th", { scope: "col", class: i === 1 ? "n" : null }, h),
                    ),
                  ),
                ),
                el(
                  "tbody",
                  {},
                  codes[t].map(([j, value]) =>
                    el(
                      "tr",
                      {},
                      linkWithGist(j),
                      el("td", { class: "n" }, number(value)),
                      el("td", { class: "bars" }, bar(fullness(value, all))),
                    ),
                  ),
                ),
              ),
            )
          : el("p", {}, "Nothing fires here, or the token does not count."),
      );
    };
    const line = el(
      "div",
      {
        class: "tokens",
        role: "group",
        "aria-label": "Tokens of the sentence; arrow keys move between them",
        dir: "auto",
        onkeydown: (event) => {
          const at = buttons.indexOf(document.activeElement);
          const goal = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
          if (goal === undefined || !buttons[goal]) return;
          event.preventDefault();
          buttons[goal].focus();
          pick(goal);
        },
      },
      buttons,
    );
    const shares = new Map();
    codes.forEach((token, t) => token.forEach(([j]) => shares.set(j, (shares.get(j) || []).concat(t))));
    const rows = [...shares].sort((a, b) => b[1].length - a[1].length || a[1][0] - b[1][0]);
    picker.detail.replaceChildren(
      el("h3", {}, `Sentence ${s}`, label === null ? null : [" · class ", el("bdi", {}, shown(label))]),
      el("p", { class: "note" }, `Below each token: its strongest ${unit}, and a bar for how strong.`),
      line,
      codesOf,
      rows.length
        ? table(
            `${Unit}s along the sentence`,
            `Share of its tokens, and which.${amongStrongest}`,
            ["", "share", "where"],
            rows
              .slice(0, 30)
              .map(([j, at]) =>
                el(
                  "tr",
                  {},
                  linkWithGist(j),
                  el("td", { class: "n" }, percent(at.length / nCoded(s))),
                  el("td", {}, strip(s, at)),
                ),
              ),
          )
        : "",
      rows.length > 30 ? el("p", { class: "note" }, `${rows.length - 30} more are at fewer tokens.`) : "",
    );
  }

  // ---------------------------------------------------------------- views

  const views = { overview: { title: "Overview", make: overview } };
  if (isReport) {
    views[`${unit}s`] = { title: `${Unit}s`, make: listView };
    if (data.sentences.length) views.sentences = { title: "Sentences", make: sentencesView };
  }
  const single = isReport ? el("section", { hidden: true, id: "view-one" }) : null;
  let last = null;

  function open(name) {
    for (const [other, view] of Object.entries(views)) if (view.node) view.node.hidden = other !== name;
    if (single) single.hidden = name !== "one";
    const view = views[name];
    if (view && !view.node) main.append((view.node = el("section", { id: `view-${name}` }, view.make())));
  }

  function route(isFirst) {
    const [, name, index] = /^#([a-z]+)(?:-(\d{1,9}))?$/.exec(location.hash) || [null, "overview"];
    const i = index === undefined ? null : Number(index);
    let place = "overview",
      focus = null;
    if (isReport && name === unit && i !== null && i < latents.length) {
      if (!list.order.length && !views[`${unit}s`].node) list.order = latents.slice();
      single.replaceChildren(...el("div", {}, latentView(i)).childNodes);
      open("one");
      place = `${unit}s`;
      focus = single.querySelector("h2");
    } else if (
      views.sentences &&
      (name === "sentences" || (name === "sentence" && i !== null && i < data.sentences.length))
    ) {
      open("sentences");
      if (i !== null || picker.chosen === undefined) showSentence(i === null ? 0 : i);
      place = "sentences";
      focus = i === null ? views.sentences.node.querySelector("h2") : picker.detail.querySelector(".tok");
    } else {
      place = Object.hasOwn(views, name) ? name : "overview";
      open(place);
      focus = views[place].node.querySelector("h2");
    }
    for (const item of document.querySelectorAll("#nav a")) {
      if (item.hash === `#${place}`) item.setAttribute("aria-current", "page");
      else item.removeAttribute("aria-current");
    }
    const here = { latent: name === unit ? i : null };
    if (!isFirst) {
      const back = last && last.latent !== null && place === `${unit}s` && here.latent === null;
      if (!(back && focusLatent(last.latent)) && focus) {
        focus.focus({ preventScroll: true });
        if (!(name === "sentence" && innerWidth > 720))
          focus.scrollIntoView({ block: name === "sentence" ? "center" : "start" });
      }
    }
    last = here;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target instanceof HTMLInputElement && event.target.type === "search";
    const isIn = (name) => views[name] && views[name].node && !views[name].node.hidden;
    const field = isIn("sentences") ? picker.search : list.search;
    if (event.key === "/" && isReport && !isTyping) {
      event.preventDefault();
      if (!isIn("sentences") && !isIn(`${unit}s`)) {
        open(`${unit}s`);
        history.pushState(null, "", `#${unit}s`);
        route(true);
      }
      (isIn("sentences") ? picker.search : list.search).focus();
    } else if (event.key === "ArrowDown" && isTyping) {
      const first = isIn("sentences") ? picker.list.querySelector("a") : list.body.querySelector("a");
      if (first) {
        event.preventDefault();
        first.focus();
      }
    } else if (event.key === "Escape") {
      if (isTyping && field.value !== "") {
        event.preventDefault();
        field.value = "";
        field.dispatchEvent(new Event("input"));
      } else if (isTyping) field.blur();
      else if (isReport && !single.hidden) location.hash = `#${unit}s`;
      else if (
        isIn("sentences") &&
        document.activeElement &&
        picker.detail.contains(document.activeElement)
      ) {
        const item = picker.list.querySelector("[aria-current]");
        if (item) item.focus();
      } else if (!isIn("overview")) location.hash = "#overview";
    }
  }

  document.title = plain(data.title);
  document.getElementById("title").append(...shown(data.title));
  document
    .getElementById("nav")
    .append(
      ...Object.entries(views).map(([name, view]) => el("li", {}, el("a", { href: `#${name}` }, view.title))),
    );
  document.getElementById("footer").append(
    isReport
      ? el(
          "p",
          {},
          "Keys: ",
          [
            ["/", "search"],
            ["↑ ↓", "move in a list"],
            ["Enter", "open"],
            ["← →", "tokens of a sentence"],
            ["Esc", "back"],
          ].map(([key, what]) => [el("kbd", {}, key), ` ${what}  `]),
        )
      : "",
    el(
      "p",
      {},
      "Characters that cannot be seen are written out, as ",
      el("span", { class: "point" }, "U+202E"),
      "; ␣ is a space. Nothing on this page leaves it.",
    ),
  );
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  if (single) main.append(single);
  addEventListener("hashchange", () => route(false));
  addEventListener("keydown", onKey);
  // On paper nothing is loaded later.
  addEventListener("beforeprint", () => {
    if (list.body && !views[`${unit}s`].node.hidden) showMore(list.order.length);
  });
  route(true);
  document.documentElement.dataset.ready = "true";
})();
