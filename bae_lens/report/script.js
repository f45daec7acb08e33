// A report of one dictionary, or a comparison of several: views of the data, and the ways between them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const isReport = data.kind === "report";
  const dictionaries = data.dictionaries;
  const isSeveral = dictionaries.length > 1;
  const own = dictionaries[0];
  const unit = dictionaries.every((d) => d.unit === "code") ? "code" : "latent";
  const Unit = unit[0].toUpperCase() + unit.slice(1);
  const main = document.getElementById("main");
  const isNarrow = () => innerWidth < 720;

  // ---------------------------------------------------------------- packed strings

  const digits = new Map();
  if (isReport) [...data.alphabet].forEach((character, i) => digits.set(character.charCodeAt(0), i));
  const half = digits.size / 2;

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

  const whenOff = new Set(own.whenOff);
  const latents = isReport
    ? data.latents.map(([strongest, random, tokens, lemmas, countError, neighbours, classes], j) => ({
        ...{ j, strongest, random, tokens, lemmas, countError, neighbours, classes },
        rate: own.nFirings[j] / own.nTokens,
        peak: strongest.length ? strongest[0][2] : null,
        phrase: data.phrases ? data.phrases[j] : null,
        // What each seed's judge said.
        said: data.said[j] || [],
      }))
    : [];
  const nameOf = (j) => `${Unit} ${j}`;

  // Of each kind: what stands behind the number, what a latent's greatest is called, and that in a
  // sentence.
  const [strengthUnit, greatest, aboutGreatest] = {
    activation: ["activation", "strongest", "Its activation where it fires most strongly."],
    surprise: [
      "bits",
      "surprise",
      "Bits of surprise that it fires: −log₂ of how often it does. All of its firings have the same.",
    ],
    nearness: [
      "minus squared distance",
      "nearest",
      "Minus the squared distance to the code of the token that is nearest to it; 0 would be the code itself.",
    ],
  }[isReport ? data.strength : "activation"];

  // How full the bar of a strength is, among the latent's own.
  function fullness(strength, strengths) {
    if (data.strength !== "nearness") return strength / Math.max(...strengths, 1e-12);
    const farthest = Math.min(...strengths);
    return farthest < 0 ? 1 - (strength / farthest) * 0.9 : 1;
  }

  const link = (j) => el("a", { href: `#${unit}-${j}` }, nameOf(j));
  const linkWithGist = (j) => rowHead(link(j), el("span", { class: "note below" }, gist(j)));
  const commonest = ({ tokens }) => tokens.slice(0, 5).map(([s]) => [alone(data.strings[s]), " "]);
  // In words, or by its tokens.
  const gist = (j) => (latents[j].phrase === null ? commonest(latents[j]) : isolated(latents[j].phrase));

  // ---------------------------------------------------------------- overview: charts

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
        points: rates.length
          ? counts.flatMap((n, i) => [
              [edge(i), n],
              [edge(i + 1), n],
            ])
          : [],
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

  // ---------------------------------------------------------------- overview: tables

  const below = (...children) => el("span", { class: "note below" }, children);

  function factsTable() {
    const abouts = [...new Set(dictionaries.flatMap((d) => Object.keys(d.about)))];
    const facts = [
      ["dictionary", (d) => (d.link ? el("a", { href: d.link }, shown(d.name)) : shown(d.name))],
      ["kind", (d) => shown(d.architecture)],
      ["hook point", (d) => shown(d.hook)],
      ["size", (d) => plural(d.nFirings.length, d.unit)],
      ...abouts.map((name) => [shown(name), (d) => shown(d.about[name] ?? "–")]),
      ["read", (d) => `${plural(d.nTokens, "token")} of ${plural(d.nTexts, "text")}`],
    ];
    return table({
      class: "facts",
      caption: "What this is about",
      rows: facts.map(([name, of]) => [rowHead(name), dictionaries.map((d) => cell(of(d)))]),
    });
  }

  function metricsTable(names, caption) {
    const values = dictionaries.map((d) => new Map(d.metrics.map(([name, value]) => [name, value])));
    const words = new Map(
      dictionaries.flatMap((d) => d.metrics.map(([name, , ...about]) => [name, about])),
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
          values.map((of) => numberCell(number(of.get(name)))),
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
      names.length ? null : note("No metrics were given."),
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

  // ---------------------------------------------------------------- list of latents

  const FIRST = 60;
  const MORE = 120;
  const list = { order: [], shown: 0, sort: "number", descending: false, query: "", inExamples: false };
  const byName = new Intl.Collator("en");
  const NOT_SCORED = "not scored";
  const quiet = (text) => el("span", { class: "note" }, text);

  const firstToken = ({ tokens }) => (tokens.length ? tokens[0] : null);
  // What there is in place of a phrase.
  function noPhrase({ said }) {
    if (said.length) return said[0].status;
    return Object.keys(data.said).length ? NOT_SCORED : "–";
  }
  // key, label, about: what it is; of: what is sorted by, null where it is not known; cell: what is shown.
  const columns = isReport
    ? [
        {
          key: "number",
          label: Unit,
          of: ({ j }) => j,
          cell: ({ j }) => [link(j), whenOff.has(j) && quiet(" (when off)")],
        },
        data.phrases && {
          key: "phrase",
          label: "phrase",
          about: `What the ${unit} stands for, in words.`,
          isText: true,
          of: ({ phrase }) => phrase,
          cell: (latent) => (latent.phrase === null ? quiet(noPhrase(latent)) : isolated(latent.phrase)),
        },
        {
          key: "tokens",
          label: "commonest tokens",
          about: "Tokens at which it fires most often.",
          isText: true,
          of: (latent) => firstToken(latent) && data.strings[firstToken(latent)[0]].trim(),
          cell: (latent) => (firstToken(latent) ? commonest(latent) : quiet("never fires")),
        },
        ...data.scores.map(({ name, values, about }, i) => ({
          key: `score-${i}`,
          label: plain(name),
          about: plain(about),
          isNumber: true,
          of: ({ j }) => values[j],
          show: (value) => (value === null ? quiet(NOT_SCORED) : number(value)),
        })),
        {
          key: "rate",
          label: "fires at",
          about: "Share of tokens at which it fires.",
          isNumber: true,
          of: ({ rate }) => rate,
          show: percent,
        },
        {
          key: "strongest",
          label: greatest,
          about: aboutGreatest,
          isNumber: true,
          of: ({ peak }) => peak,
        },
        {
          key: "lift",
          label: "lift of 1st token",
          about: "How many times commoner its commonest token is where it fires than in all of the text.",
          isNumber: true,
          of: (latent) => firstToken(latent)?.[2] ?? null,
        },
      ].filter(Boolean)
    : [];

  // What the numbers of a latent are.
  const glossary = (title) =>
    lazyDetails(title, () =>
      table({
        class: "facts",
        rows: columns.filter(({ about }) => about).map(({ label, about }) => [rowHead(label), cell(about)]),
      }),
    );

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
    const found = latents.filter(
      (latent) => query === "" || latent.j === index || searchable(latent).includes(query),
    );
    const { of, isText } = columns.find((column) => column.key === list.sort);
    const sign = list.descending ? -1 : 1;
    const order = found
      .map((latent) => [of(latent), latent])
      .sort(([a, one], [b, other]) => {
        // What is not known comes last either way.
        if (a === null || b === null) return (a === null) - (b === null) || one.j - other.j;
        return sign * (isText ? byName.compare(a, b) : a - b) || one.j - other.j;
      })
      .map(([, latent]) => latent);
    if (index === null) return order;
    // The one that was asked for by its number comes first.
    return order.filter(({ j }) => j === index).concat(order.filter(({ j }) => j !== index));
  }

  function listRow(latent) {
    const shownIn = ({ of, show = number, cell }) => (cell ? cell(latent) : show(of(latent)));
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
          i ? el("div", {}, shownIn(column)) : shownIn(column),
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
      head.querySelector(".way").textContent = isSorted ? (list.descending ? "\u00a0▼" : "\u00a0▲") : "";
    }
    list.select.value = list.sort;
    list.way.textContent = list.descending ? "▼ descending" : "▲ ascending";
    list.way.setAttribute("aria-label", `${list.way.textContent}: turn the order round`);
  }

  function sortBy(key, flips) {
    const column = columns.find((c) => c.key === key);
    list.descending = flips && list.sort === key ? !list.descending : Boolean(column.isNumber);
    list.sort = key;
    refresh();
  }

  // A field to search by, with its label.
  function searchField(id, statusId, label, search) {
    const field = el("input", {
      type: "search",
      id,
      autocomplete: "off",
      spellcheck: "false",
      "aria-describedby": statusId,
      oninput: () => search(field.value),
    });
    return [field, el("p", {}, el("label", { for: id }, label), field)];
  }

  function listCaption() {
    const nScored = latents.filter(({ j }) => data.scores.some(({ values }) => values[j] !== null)).length;
    return [
      `One row per ${unit}.`,
      data.scores.length && nScored < latents.length
        ? ` ${whole.format(nScored)} of ${plural(latents.length, unit)} are scored; sorted by a score, the others come last.`
        : null,
    ];
  }

  function listView() {
    const label = `Search tokens${data.phrases ? ", phrases" : ""} and numbers`;
    const [search, labelledSearch] = searchField("search", "status", label, (query) => {
      list.query = query;
      refresh();
    });
    list.search = search;
    list.select = el(
      "select",
      { id: "sort", onchange: () => sortBy(list.select.value, false) },
      columns.map((c) => el("option", { value: c.key }, c.label)),
    );
    list.way = el("button", {
      type: "button",
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
    const sortButton = (c) =>
      el(
        "button",
        { type: "button", onclick: () => sortBy(c.key, true) },
        c.label,
        el("span", { class: "way", "aria-hidden": "true" }),
      );
    // Roles are said, since on a narrow screen rows are drawn as blocks, which takes them away.
    list.heads = el(
      "tr",
      { role: "row" },
      columns.map((c) =>
        el(
          "th",
          { scope: "col", role: "columnheader", class: c.isNumber ? "n" : null, "data-key": c.key },
          sortButton(c),
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
    refresh();
    return [
      el("h2", { tabindex: -1 }, `${Unit}s`),
      el(
        "div",
        { class: "tools", role: "search" },
        labelledSearch,
        el("p", { class: "check" }, inExamples, el("label", { for: "in-examples" }, "in examples too")),
        el(
          "p",
          {},
          el("label", { for: "sort" }, "Sort by"),
          el("span", { class: "pair" }, list.select, list.way),
        ),
      ),
      list.status,
      glossary("What the columns are"),
      el(
        "div",
        { class: "wide" },
        el(
          "table",
          { class: "list", role: "table" },
          el("caption", {}, listCaption()),
          el("thead", { role: "rowgroup" }, list.heads),
          list.body,
        ),
      ),
      list.more,
    ];
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
    const space = /^ */.exec(token)[0];
    return el(
      "li",
      {},
      el(
        "p",
        { class: "text", dir: "auto" },
        shown((strings.slice(0, marked).join("") + space).replace(/^ +/, "")),
        el("mark", {}, token === "" ? NOTHING() : shown(token.slice(space.length))),
        shown(strings.slice(marked + 1).join("")),
      ),
      note(
        bar(fullness(strength, strengths)),
        ` strength ${number(strength)} · text ${whole.format(text)}, token ${whole.format(position)}`,
      ),
    );
  }

  const examples = (title, about, all, strengths) =>
    section(
      title,
      note(about),
      all.length
        ? el(
            "ol",
            { class: "examples" },
            all.map((e) => example(e, strengths)),
          )
        : el("p", {}, "There are none: it never fired."),
    );

  function countsTable(what, counts, error) {
    if (!counts || !counts.length) return null;
    const most = counts[0][1];
    return section(
      `Commonest ${what}s`,
      note(
        "Lift: its share where this fires, over its share of all tokens.",
        error ? ` Counts may be too low by ${whole.format(error)}.` : null,
      ),
      table({
        heads: [head(what), numberHead("times"), numberHead("lift"), cell()],
        rows: counts.map(([s, n, lift]) => [
          rowHead(alone(data.strings[s])),
          numberCell(number(n)),
          numberCell(number(lift)),
          barCell(n / most),
        ]),
      }),
    );
  }

  function neighboursTable({ neighbours }) {
    if (!neighbours) return null;
    const title = "Neighbours";
    if (!neighbours.length)
      return section(title, el("p", {}, "None fires together with it more often than by chance."));
    const isPhi = data.measure === "phi";
    return section(
      title,
      note(
        isPhi
          ? "φ: 1 where both fire at the same tokens, 0 where they meet as often as by chance."
          : "Distance in the codebook, the nearest first.",
      ),
      table({
        heads: [head(unit), numberHead(isPhi ? "φ" : "distance"), isPhi && numberHead("together")],
        rows: neighbours.map(([j, value, together]) => [
          linkWithGist(j),
          numberCell(number(value)),
          isPhi && numberCell(number(together)),
        ]),
      }),
    );
  }

  function classTable({ classes, rate }) {
    if (!classes || !rate) return null;
    return section(
      "Classes",
      note("Share of its firings that are in texts of the class, beside the class's share of all tokens."),
      table({
        heads: [head("class"), numberHead("of its firings"), numberHead("of all tokens"), cell()],
        rows: data.classes.map((name, i) => [
          rowHead(isolated(name)),
          numberCell(percent(classes[i])),
          numberCell(percent(data.classShares[i])),
          barCell(classes[i]),
        ]),
      }),
    );
  }

  function phrasesTable({ said }) {
    if (!said.length) return null;
    return section(
      "Phrases",
      note("What the judge said, each time of other examples, and how well it held for still others."),
      table({
        heads: [head("phrase"), head("run"), numberHead("score")],
        rows: said.map(({ phrase, status, run, score }) => [
          rowHead(phrase === null ? quiet(status) : isolated(phrase)),
          cell(run),
          numberCell(number(score)),
        ]),
      }),
    );
  }

  // With its interval, and what it is to be read beside.
  function scoreOf(j, { values, bounds, beside }) {
    if (values[j] === null) return NOT_SCORED;
    return [
      number(values[j]),
      bounds && ` [${bounds[j].map(number).join(", ")}]`,
      beside && below(shown(beside)),
    ];
  }

  function facts(latent) {
    const { j, rate, peak } = latent;
    const all = [
      ["fires at", `${plural(own.nFirings[j], "token")}, ${percent(rate)}`],
      whenOff.has(j) && ["fires", "where its bit is off, since it is mostly on"],
      peak !== null && [greatest, [number(peak), below(strengthUnit)]],
      ...data.scores.map((score) => [plain(score.name), scoreOf(j, score)]),
    ];
    return el(
      "dl",
      {},
      all.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    );
  }

  function latentView(j) {
    const latent = latents[j];
    const strengths = latent.strongest.concat(latent.random).map((e) => e[2]);
    const order = list.order.indexOf(latent);
    const step = (by, words) => {
      const other = order >= 0 && list.order[order + by];
      return other && el("a", { href: `#${unit}-${other.j}`, rel: by < 0 ? "prev" : "next" }, words);
    };
    const [first, second, about] =
      data.strength === "surprise"
        ? [
            "Examples",
            "More examples",
            "A random draw: all are equally strong. The marked token is where it fires.",
          ]
        : ["Strongest examples", "Random examples", "The marked token is where it fires."];
    return [
      el(
        "p",
        { class: "path" },
        el("a", { href: `#${unit}s` }, `All ${unit}s`),
        step(-1, "← Previous"),
        step(1, "Next →"),
      ),
      el("h2", { tabindex: -1 }, nameOf(j), latent.phrase !== null && [": ", isolated(latent.phrase)]),
      facts(latent),
      glossary("What these numbers are"),
      el(
        "div",
        { class: "columns" },
        el(
          "div",
          {},
          examples(first, about, latent.strongest, strengths),
          examples(
            second,
            "Drawn evenly from all of its firings: what it usually means.",
            latent.random,
            strengths,
          ),
        ),
        el(
          "div",
          {},
          phrasesTable(latent),
          countsTable("token", latent.tokens, latent.countError),
          countsTable("lemma", latent.lemmas, latent.countError),
          classTable(latent),
          neighboursTable(latent),
          sentencesTable(j),
        ),
      ),
    ];
  }

  // ---------------------------------------------------------------- sentences

  const sentences = isReport
    ? data.sentences.map(([packed, codes, label]) => ({ packed, codes, label }))
    : [];
  const textOf = (s) => (sentences[s].text ??= unpack(sentences[s].packed).join(""));
  const nCoded = (s) => Math.max(1, sentences[s].codes.filter((token) => token.length).length);
  const amongStrongest = data.strength === "nearness" ? "" : " Only the strongest of each token are known.";
  const picker = { query: "" };

  // Of each latent of a sentence the tokens that have it.
  function placesIn(s) {
    const places = new Map();
    sentences[s].codes.forEach((token, t) => {
      for (const [j] of token) {
        if (!places.has(j)) places.set(j, []);
        places.get(j).push(t);
      }
    });
    return places;
  }
  // Of each latent the sentences that have it, with these tokens.
  const inSentences = new Map();
  sentences.forEach((_, s) => {
    for (const [j, places] of placesIn(s))
      inSentences.set(j, (inSentences.get(j) || []).concat([[s, places]]));
  });

  // Which tokens of a sentence have a code: a box each, filled where it has.
  function strip(s, places) {
    const n = sentences[s].codes.length;
    return el(
      "span",
      {},
      svg(
        "svg",
        { class: "strip", viewBox: `0 0 ${n * 4} 10`, preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("line", { class: "axis", x1: 0, x2: n * 4, y1: 9.5, y2: 9.5 }),
        places.map((t) => svg("rect", { class: "bar-own", x: t * 4 + 0.3, width: 3.4, height: 9 })),
      ),
      el("span", { class: "unseen" }, `token ${places.map((t) => t + 1).join(", ")} of ${n}`),
    );
  }

  const sharesHeads = (what) => [head(what), numberHead("share"), head("where")];
  const shareCells = (s, places) => [numberCell(percent(places.length / nCoded(s))), cell(strip(s, places))];

  function sentencesTable(j) {
    if (!sentences.length) return null;
    const title = "Along the stored sentences";
    const found = inSentences.get(j);
    if (!found)
      return section(
        title,
        el("p", {}, `In none of the ${sentences.length} stored sentences.${amongStrongest}`),
      );
    const share = ([s, places]) => places.length / nCoded(s);
    return section(
      title,
      note(
        `Share of a sentence's tokens that have it, and which (${found.length} of ${sentences.length} sentences).`,
        amongStrongest,
      ),
      table({
        heads: sharesHeads("sentence"),
        rows: [...found]
          .sort((a, b) => share(b) - share(a) || a[0] - b[0])
          .slice(0, 20)
          .map(([s, places]) => [
            rowHead(
              el("a", { href: `#sentence-${s}` }, `Sentence ${s}`),
              el("bdi", { class: "note clip" }, plain(textOf(s))),
            ),
            shareCells(s, places),
          ]),
      }),
    );
  }

  function sentencesView() {
    const label = "Type words of a sentence";
    const [search, labelledSearch] = searchField("find-sentence", "sentence-status", label, (query) => {
      picker.query = query;
      refreshSentences();
    });
    picker.search = search;
    picker.status = el("p", { id: "sentence-status", role: "status" });
    picker.list = el("ol", { class: "sentences", onkeydown: moveInSentences });
    picker.detail = el("section", { class: "detail", "aria-label": "The sentence and its codes" });
    refreshSentences();
    return [
      el("h2", { tabindex: -1 }, "Sentences"),
      el(
        "p",
        { class: "note screen" },
        `The ${sentences.length} stored sentences with their ${unit}s. This page has no model in it, so what you type finds stored sentences; for ${unit}s of a new text, run the report again with it among the texts.`,
      ),
      el("div", { class: "tools", role: "search" }, labelledSearch),
      picker.status,
      el("div", { class: "columns picker" }, picker.list, picker.detail),
    ];
  }

  function refreshSentences() {
    const words = picker.query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [...sentences.keys()].filter((s) =>
      words.every((word) => textOf(s).toLowerCase().includes(word)),
    );
    const item = (s) =>
      el(
        "a",
        { href: `#sentence-${s}`, "data-sentence": s, "aria-current": s === picker.chosen ? "true" : null },
        quiet(`${s} `),
        el("bdi", {}, plain(textOf(s))),
      );
    picker.list.replaceChildren(...found.map((s) => el("li", {}, item(s))));
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

  // Within the list only: the page stays where it is.
  function showChosen() {
    const item = picker.list.querySelector("[aria-current]");
    if (!item) return;
    const [own, seen] = [item, picker.list].map((node) => node.getBoundingClientRect());
    if (own.top < seen.top) picker.list.scrollTop -= seen.top - own.top;
    else if (own.bottom > seen.bottom) picker.list.scrollTop += own.bottom - seen.bottom;
  }

  function showSentence(s) {
    picker.chosen = s;
    for (const item of picker.list.querySelectorAll("a")) {
      if (Number(item.dataset.sentence) === s) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
    showChosen();
    const { packed, codes, label } = sentences[s];
    const strings = unpack(packed);
    const strengths = codes.flat().map(([, value]) => value);
    const codesOf = el(
      "div",
      { class: "codes", role: "status" },
      el("p", { class: "screen" }, "Pick a token to see what fires there."),
    );
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
        bar(codes[t].length ? fullness(codes[t][0][1], strengths) : 0),
      ),
    );
    const rove = (t) => buttons.forEach((b, i) => b.setAttribute("tabindex", i === t ? 0 : -1));
    const pick = (t) => {
      buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === t ? "true" : "false"));
      codesOf.replaceChildren(
        el("h4", {}, "Token ", alone(strings[t])),
        codes[t].length
          ? table({
              heads: [head(unit), numberHead("strength"), cell()],
              rows: codes[t].map(([j, value]) => [
                linkWithGist(j),
                numberCell(number(value)),
                barCell(fullness(value, strengths)),
              ]),
            })
          : el("p", {}, "Nothing fires here, or the token does not count."),
      );
    };
    const move = (event) => {
      const at = buttons.indexOf(document.activeElement);
      const goal = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (goal === undefined || !buttons[goal]) return;
      event.preventDefault();
      buttons[goal].focus();
      pick(goal);
    };
    picker.detail.replaceChildren(
      el("h3", {}, `Sentence ${s}`, label !== null && [" · class ", isolated(label)]),
      note(
        `Below each token: ${{ activation: "its strongest latent", surprise: "its rarest latent", nearness: "its code" }[data.strength]}, and a bar for how ${data.strength === "nearness" ? "near" : "strong"}.`,
      ),
      el(
        "div",
        {
          class: "tokens",
          role: "group",
          "aria-label": "Tokens of the sentence; arrow keys move between them",
          dir: "auto",
          onkeydown: move,
        },
        buttons,
      ),
      codesOf,
      alongSentence(s),
    );
  }

  function alongSentence(s) {
    const found = [...placesIn(s)].sort((a, b) => b[1].length - a[1].length || a[1][0] - b[1][0]);
    if (!found.length) return "";
    return section(
      `${Unit}s along the sentence`,
      note("Share of its tokens, and which.", amongStrongest),
      table({
        heads: sharesHeads(unit),
        rows: found.slice(0, 30).map(([j, places]) => [linkWithGist(j), shareCells(s, places)]),
      }),
      found.length > 30 && note(`${found.length - 30} more are at fewer tokens.`),
    );
  }

  // ---------------------------------------------------------------- views

  const LIST = `${unit}s`;
  const views = { overview: { title: "Overview", make: overview } };
  if (isReport) {
    views[LIST] = { title: `${Unit}s`, make: listView };
    if (sentences.length) views.sentences = { title: "Sentences", make: sentencesView };
  }
  // Of the latent that is looked at; made anew each time.
  const single = isReport ? el("section", { hidden: true, id: "view-one" }) : null;
  const isOpen = (name) => Boolean(views[name] && views[name].node && !views[name].node.hidden);
  let last = null;

  // A view, made when it is first opened; "one": that of a latent.
  function open(name) {
    for (const [other, view] of Object.entries(views)) if (view.node) view.node.hidden = other !== name;
    if (single) single.hidden = name !== "one";
    const view = views[name];
    if (view && !view.node) main.append((view.node = el("section", { id: `view-${name}` }, view.make())));
  }

  function route(isFirst) {
    const [, name, index] = /^#([a-z]+)(?:-(\d{1,9}))?$/.exec(location.hash) || [null, "overview"];
    const i = index === undefined ? null : Number(index);
    let place, focus;
    if (isReport && name === unit && i !== null && i < latents.length) {
      if (!views[LIST].node) list.order = latents.slice();
      single.replaceChildren(...el("div", {}, latentView(i)).childNodes);
      open("one");
      place = LIST;
      focus = single.querySelector("h2");
    } else if (
      views.sentences &&
      (name === "sentences" || (name === "sentence" && i !== null && i < sentences.length))
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
    const latent = name === unit ? i : null;
    if (!isFirst) {
      // Back in the list, at the latent that was looked at.
      const isBack = last !== null && place === LIST && latent === null;
      if (!(isBack && focusLatent(last)) && focus) {
        focus.focus({ preventScroll: true });
        if (name !== "sentence" || isNarrow())
          focus.scrollIntoView({ block: name === "sentence" ? "center" : "start" });
      }
    }
    last = latent;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target instanceof HTMLInputElement && event.target.type === "search";
    if (event.key === "/" && isReport && !isTyping) {
      event.preventDefault();
      if (!isOpen("sentences") && !isOpen(LIST)) {
        open(LIST);
        history.pushState(null, "", `#${LIST}`);
        route(true);
      }
      (isOpen("sentences") ? picker.search : list.search).focus();
    } else if (event.key === "ArrowDown" && isTyping) {
      const first = (isOpen("sentences") ? picker.list : list.body).querySelector("a");
      if (first) {
        event.preventDefault();
        first.focus();
      }
    } else if (["ArrowLeft", "ArrowRight"].includes(event.key) && isReport && !single.hidden) {
      // What scrolls sideways has these keys first.
      if (event.target.closest(".wide, details")) return;
      const way = event.key === "ArrowLeft" ? "prev" : "next";
      const other = single.querySelector(`[rel=${way}]`);
      if (other) {
        event.preventDefault();
        location.hash = other.hash;
      }
    } else if (event.key === "Escape" && isTyping) {
      if (event.target.value === "") event.target.blur();
      else {
        event.preventDefault();
        event.target.value = "";
        event.target.dispatchEvent(new Event("input"));
      }
    } else if (event.key === "Escape") {
      if (isReport && !single.hidden) location.hash = `#${LIST}`;
      else if (isOpen("sentences") && picker.detail.contains(document.activeElement)) {
        const item = picker.list.querySelector("[aria-current]");
        if (item) item.focus();
      } else if (!isOpen("overview")) location.hash = "#overview";
    }
  }

  // ---------------------------------------------------------------- the page

  const KEYS = [
    ["/", "search"],
    ["↑ ↓", "move in a list"],
    ["Enter", "open"],
    ["← →", `previous and next ${unit}, or token of a sentence`],
    ["Esc", "back"],
  ];
  document.title = plain(data.title);
  document.getElementById("title").append(...shown(data.title));
  document
    .getElementById("nav")
    .append(
      ...Object.entries(views).map(([name, view]) => el("li", {}, el("a", { href: `#${name}` }, view.title))),
    );
  fill(document.getElementById("footer"), {}, [
    isReport &&
      el(
        "p",
        { class: "keys" },
        "Keys: ",
        KEYS.map(([key, what]) => [el("kbd", {}, key), ` ${what}  `]),
      ),
    el(
      "p",
      {},
      "Characters that cannot be seen are written out, as ",
      el("span", { class: "point" }, "U+202E"),
      "; ␣ is a space. Nothing on this page leaves it.",
    ),
  ]);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  if (single) main.append(single);
  addEventListener("hashchange", () => route(false));
  addEventListener("keydown", onKey);
  // On paper nothing is loaded later.
  addEventListener("beforeprint", () => {
    if (isOpen(LIST)) showMore(list.order.length);
  });
  route(true);
  document.documentElement.dataset.ready = "true";
})();
