// One latent: its examples, tokens, neighbors, classes and scores.

function example([packed, marked, strength, text, position], strengths) {
  const strings = unpack(packed);
  return el(
    "li",
    {},
    inContext(strings.slice(0, marked).join(""), strings[marked] || "", strings.slice(marked + 1).join("")),
    note(
      data.order !== "random" && [
        bar(fullness(strength, strengths)),
        ` ${data.order} ${number(strength)} · `,
      ],
      `text ${whole.format(text)}, token ${whole.format(position)}`,
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

const LIFT = "Lift: its share where this fires, over its share of all tokens.";

function countsTable(title, what, about, counts, error) {
  if (!counts || !counts.length) return null;
  const most = Math.max(...counts.map(([, n]) => n));
  return section(
    title,
    note(
      about,
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

function effectsTable({ effects }) {
  if (!effects) return null;
  const [raised, lowered] = effects;
  return section(
    "Logit effects",
    note(
      `Tokens that the ${unit} raises and lowers by itself: its decoder row through the unembedding. ` +
        "What later layers make of it is left out.",
    ),
    table({
      heads: [head("raises"), numberHead("logit"), head("lowers"), numberHead("logit")],
      rows: raised.map(([s, value], i) => [
        rowHead(alone(data.strings[s])),
        numberCell(number(value)),
        cell(alone(data.strings[lowered[i][0]])),
        numberCell(number(lowered[i][1])),
      ]),
    }),
  );
}

function neighborsTable({ neighbors }) {
  if (!neighbors) return null;
  const title = "Neighbors";
  if (!neighbors.length)
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
      rows: neighbors.map(([j, value, together]) => [
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
  const [first, second, about] = {
    strength: ["Strongest examples", "Random examples", "The marked token is where it fires."],
    margin: [
      "Strongest examples",
      "Random examples",
      "Those with the largest margin: how far the pre-activation is from the threshold. The marked token is where it fires.",
    ],
    random: [
      "Examples",
      "More examples",
      "Order random: these examples were collected without margins. The marked token is where it fires.",
    ],
  }[data.order];
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
        countsTable("Most frequent tokens", "token", LIFT, latent.tokens, latent.countError),
        countsTable(
          "Tokens by lift",
          "token",
          "Those of the highest lift, where it fires 3 times at least.",
          latent.lifts,
          latent.countError,
        ),
        countsTable("Most frequent lemmas", "lemma", LIFT, latent.lemmas, latent.countError),
        classTable(latent),
        effectsTable(latent),
        neighborsTable(latent),
        sentencesTable(j),
      ),
    ),
  ];
}
