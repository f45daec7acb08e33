// What is said of dictionaries as wholes: charts and tables.

// ---------------------------------------------------------------- charts

const hasWhenOff = dictionaries.some((d) => d.whenOff.length);
// Of which dictionary something is said, where there are several.
const ofEach = (series, say) =>
  series.map((s) => (isSeveral ? `${plain(s.name)}: ${say(s)}` : say(s))).join(" ");

function densityChart() {
  const nBins = 30;
  const lowest = -Math.max(1, Math.log10(Math.max(...dictionaries.map((d) => d.nTokens))));
  const edge = (i) => 10 ** (lowest * (1 - i / nBins));
  const binOf = (rate) => Math.floor((1 - Math.log10(rate) / lowest) * nBins);
  const series = dictionaries.map(({ name, nFirings, nTokens, whenOff, unit }) => {
    const off = new Set(whenOff);
    const rates = nFirings
      .map((n, j) => (off.has(j) ? 1 - n / nTokens : n / nTokens))
      .filter((rate) => rate > 0)
      .sort((a, b) => a - b);
    const counts = new Array(nBins).fill(0);
    for (const rate of rates) counts[Math.min(nBins - 1, Math.max(0, binOf(rate)))]++;
    const middle = rates[Math.floor((rates.length - 1) / 2)];
    const never = nFirings.length - rates.length;
    return {
      name,
      bins: rates.length ? counts.map((n, i) => [edge(i), edge(i + 1), n]) : [],
      says: rates.length
        ? `median ${percent(middle)}, highest ${percent(rates[rates.length - 1])}; ${never} never fire.`
        : "none fires.",
      never: `${whole.format(never)} of ${plural(nFirings.length, unit)} never fired.`,
    };
  });
  const never = ofEach(series, (s) => s.never);
  return (
    chart({
      title: "How often each fires",
      about:
        "Histogram of the share of tokens. What stands far right fires nearly always and says little" +
        (hasWhenOff ? "; a mostly-on bit is counted where it is on." : "."),
      x: { label: "share of tokens", log: true },
      y: { label: `${unit}s per bin`, zero: true },
      series,
      extra: never,
    }) || el("p", {}, never)
  );
}

function usageChart() {
  const series = dictionaries.map(({ name, nFirings }) => {
    const counts = nFirings.filter((n) => n > 0).sort((a, b) => b - a);
    const total = counts.reduce((a, b) => a + b, 0);
    const stride = Math.ceil(counts.length / 300);
    const points = [];
    let sum = 0;
    let halfAt = 0;
    counts.forEach((n, i) => {
      sum += n;
      if (!halfAt && sum >= total / 2) halfAt = i + 1;
      if (i % stride === 0 || i === counts.length - 1) points.push([i + 1, sum / total]);
    });
    return { name, points, says: `the ${halfAt} most used have half of all firings.` };
  });
  return chart({
    title: `How evenly ${unit}s are used`,
    about:
      "Share of all firings that the most used have together. A straight line would be even use; a steep start means that few do most of the work." +
      (hasWhenOff ? " A mostly-on bit fires here where it is off." : ""),
    x: { label: `most used ${unit}s` },
    y: { label: "share of firings", zero: true },
    series,
    extra: ofEach(series, (s) => (isSeveral ? s.says : s.says.replace("t", "T"))),
  });
}

function trainingChart() {
  const known = dictionaries.filter((d) => d.training && d.training.points.length);
  const series = known.map(({ name, training: { points } }) => ({
    name,
    points,
    says: `from ${number(points[0][1])} to ${number(points[points.length - 1][1])} bits.`,
  }));
  const isOfCodes = known.some((d) => d.training.isOfCodes);
  const title = "Entropy over training";
  if (!known.length)
    return section(title, note("Not known: no log of training with an entropy was given."));
  return chart({
    title,
    about:
      "Bits per token of a minibatch's code" +
      (isOfCodes ? "; of codebooks, log₂ of the perplexity." : ", if latents were independent."),
    x: { label: "training tokens", zero: true },
    y: { label: "bits per token", zero: true },
    series,
  });
}

// ---------------------------------------------------------------- tables

const below = (...children) => el("span", { class: "note below" }, children);

// Attention sinks and the like, which are not among the tokens read.
const leftOut = ({ outliers }) =>
  outliers
    ? `${plural(outliers.n, "outlier token")}, longer than ${number(outliers.multiple)} × ${number(outliers.reference_norm)}`
    : "no outlier tokens";

function factsTable() {
  const abouts = [...new Set(dictionaries.flatMap((d) => Object.keys(d.about)))];
  const facts = [
    ["dictionary", (d) => (d.link ? el("a", { href: d.link }, shown(d.name)) : shown(d.name))],
    ["kind", (d) => shown(d.architecture)],
    ["hook point", (d) => shown(d.hook)],
    ["size", (d) => plural(d.nFirings.length, d.unit)],
    ...abouts.map((name) => [shown(name), (d) => shown(d.about[name] ?? "–")]),
    ["read", (d) => `${plural(d.nTokens, "token")} of ${plural(d.nTexts, "text")}`],
    dictionaries.some((d) => d.outliers) && ["left out", leftOut],
  ];
  return table({
    class: "facts",
    caption: "What this is about",
    rows: facts.filter(Boolean).map(([name, of]) => [rowHead(name), dictionaries.map((d) => cell(of(d)))]),
  });
}

function metricsTable(names, caption) {
  const values = dictionaries.map(
    (d) => new Map(d.metrics.map(([name, value, , , source]) => [name, [value, source]])),
  );
  const words = new Map(
    dictionaries.flatMap((d) => d.metrics.map(([name, , about, label]) => [name, [about, label]])),
  );
  const hasColumn = !isSeveral && !isNarrow();
  return table({
    class: "metrics",
    caption,
    heads: [
      head("metric"),
      dictionaries.map((d) => numberHead(isSeveral ? shown(d.name) : "value")),
      hasColumn && head("what it is"),
    ],
    rows: names.map((name) => {
      const [about, label] = words.get(name);
      return [
        rowHead(shown(label), hasColumn ? null : below(about)),
        values.map((of) => {
          const [value, source] = of.get(name) || [undefined, ""];
          return numberCell(number(value), source ? below(source) : null);
        }),
        hasColumn && cell(about),
      ];
    }),
  });
}

function metrics() {
  const names = [...new Set(dictionaries.flatMap((d) => d.metrics.map(([name]) => name)))];
  const isKnown = (name) =>
    dictionaries.some((d) => d.metrics.some(([own, value]) => own === name && value !== null));
  const heads = data.headlines.filter(isKnown);
  const evaluated =
    "Metrics are of the text of the evaluation, which need not be the text that was read for the examples.";
  return [
    names.length ? null : note("No metrics were given: bae-lens eval measures them."),
    names.length ? note(evaluated) : null,
    heads.length ? metricsTable(heads, "Metrics") : null,
    names.length > heads.length
      ? lazyDetails(`All ${names.length} metrics`, () => metricsTable(names, "All metrics"))
      : null,
  ];
}

const caveat = (text) => el("p", { class: "caveat" }, shown(text));

// What each test found, as its result has it.
function tests() {
  if (!own.tests.length) return null;
  return section(
    "Scores",
    own.tests.map((test) => [
      el("h4", {}, shown(test.title)),
      note(shown(test.about)),
      table({
        class: "tests",
        heads: test.head.length > 0 && test.head.map((label, i) => (i ? numberHead : head)(shown(label))),
        rows: test.rows.map(([name, ...values]) => [
          rowHead(shown(name)),
          values.map((value) => numberCell(shown(value))),
        ]),
      }),
      test.notes.map((text) => note(shown(text))),
      test.caveat && caveat(test.caveat),
    ]),
  );
}

// The same of several: means only, side by side.
function means() {
  const values = dictionaries.map((d) => new Map(d.means.map(([name, ...rest]) => [name, rest])));
  const abouts = new Map(dictionaries.flatMap((d) => d.means.map(([name, , , about]) => [name, about])));
  const names = [...abouts.keys()];
  if (!names.length) return null;
  const caveats = new Set(dictionaries.flatMap((d) => d.tests.map((test) => test.caveat)));
  return section(
    "Scores",
    note("Means over the latents tested, with 95 % intervals. Below each, what it is to be read beside."),
    table({
      class: "tests",
      heads: [head(""), dictionaries.map((d) => numberHead(shown(d.name)))],
      rows: names.map((name) => [
        rowHead(shown(name), abouts.get(name) && below(shown(abouts.get(name)))),
        values.map((of) => {
          const [value, beside] = of.get(name) || ["not scored"];
          return numberCell(shown(value), beside && below(shown(beside)));
        }),
      ]),
    }),
    [...caveats].filter(Boolean).map(caveat),
  );
}

function overview() {
  return [
    el("h2", { tabindex: -1 }, "Overview"),
    factsTable(),
    metrics(),
    isReport ? tests() : means(),
    densityChart(),
    usageChart(),
    trainingChart(),
  ];
}
