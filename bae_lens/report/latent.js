// One latent: its examples, tokens, neighbors, classes and scores.

// The address of this latent, to be shared.
function linkButton(j) {
  const button = el("button", { type: "button", onclick: copy }, "Copy link");
  const said = el("span", { role: "status" });
  async function copy() {
    const address = location.href.replace(/#.*$/, "") + `#${unit}-${j}`;
    try {
      await navigator.clipboard.writeText(address);
      said.replaceChildren("Copied.");
    } catch {
      // Not every browser lets a page from disk: then it is there to be copied by hand.
      const field = el("input", { type: "text", readonly: true, value: address, "aria-label": "link" });
      said.replaceChildren(field);
      field.select();
    }
  }
  return [button, said];
}

// Bins of a histogram, several as one where there are too many for a chart: where each begins, and counts.
function binsOf([first, packed]) {
  const counts = numbersIn(packed);
  let width = 1;
  while (counts.length / width > 24) width *= 2;
  const bins = [];
  counts.forEach((n, k) => {
    const at = Math.floor((first + k) / width);
    if (!bins.length || bins[bins.length - 1][0] !== at) bins.push([at, 0]);
    bins[bins.length - 1][1] += n;
  });
  const edge = (at) => 2 ** ((at * width) / 8);
  return bins.map(([at, n]) => [edge(at), edge(at + 1), n]);
}

function strengthSection({ spread }) {
  if (!spread) return null;
  const [[low, middle, high], histogram, levels, entropy] = spread;
  const title = "How strongly it fires";
  const about =
    `5 % of its firings have ${countedName === "activation" ? "an" : "a"} ${countedName} of at most ` +
    `${number(low)}, half of at most ${number(middle)}, 95 % of at most ${number(high)}` +
    (levels ? "." : ", to within 9 %.") +
    (isSigned ? " Activations of either sign count by their magnitude." : "");
  if (levels) {
    const [values, counts] = levels;
    const n = counts.reduce((a, b) => a + b);
    return section(
      title,
      note(
        about,
        ` Its level is worth ${number(entropy)} bits, of ${number(Math.log2(values.length))} at most.`,
      ),
      table({
        heads: [head("level"), numberHead("activation"), numberHead("share"), cell()],
        rows: counts.map((k, i) => [
          rowHead(i + 1),
          numberCell(number(values[i])),
          numberCell(percent(k / n)),
          barCell(k / n),
        ]),
      }),
    );
  }
  return chart({
    title,
    about,
    x: { label: countedName, log: true },
    y: { label: "firings", zero: true },
    series: [{ name: unit, bins: binsOf(histogram), says: about }],
  });
}

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

function effectsTable({ j, effects }) {
  if (!effects) return null;
  const [raised, lowered] = effects;
  return section(
    "Logit effects",
    note(
      `Tokens that the ${unit} raises and lowers by itself where it fires: its decoder row` +
        (whenOff.has(j) ? ", which is taken away where its bit is off," : "") +
        " through the unembedding. What later layers make of it is left out." +
        (isSigned ? " Where its activation is negative, it is the other way round." : ""),
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
  const hasWindows = latent.windows !== null;
  const shades = hasWindows
    ? " Shades are by how strongly it fires there; point at a token, or tap it, for the value."
    : "";
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
      linkButton(j),
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
        hasWindows && el("p", { class: "screen" }, valuesButton()),
        examples(latent, first, about + shades, latent.strongest, strengths),
        examples(
          latent,
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
        strengthSection(latent),
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
