// Stored sentences with their codes.

const sentences = isReport
  ? data.sentences.map(([packed, codes, label, others]) => ({ packed, codes, label, others }))
  : [];
const textOf = (s) => (sentences[s].text ??= unpack(sentences[s].packed).join(""));
const nCoded = (s) => Math.max(1, sentences[s].codes.filter((token) => token.length).length);
// Whether it is known of every latent whether it fires.
const areAllKnown = data.strength === "nearness" || sentences.every(({ others }) => others);
const amongStrongest = areAllKnown ? "" : " Only the strongest of each token are known.";
const picker = { query: "" };

// What else fires at a token.
const othersAt = (s, t) => (sentences[s].others ? risingIn(sentences[s].others[t]) : []);

// Of each latent of a sentence the tokens that have it.
function placesIn(s) {
  const places = new Map();
  sentences[s].codes.forEach((token, t) => {
    for (const j of token.map(([j]) => j).concat(othersAt(s, t))) {
      if (!places.has(j)) places.set(j, []);
      places.get(j).push(t);
    }
  });
  return places;
}
// Of each latent the sentences that have it, with these tokens.
let inSentences = null;
function sentencesOf(j) {
  if (!inSentences) {
    inSentences = new Map();
    sentences.forEach((_, s) => {
      for (const [j, places] of placesIn(s)) {
        if (!inSentences.has(j)) inSentences.set(j, []);
        inSentences.get(j).push([s, places]);
      }
    });
  }
  return inSentences.get(j);
}

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
  const found = sentencesOf(j);
  if (!found)
    return section(
      title,
      el(
        "p",
        {},
        areAllKnown
          ? `In none of the ${sentences.length} stored sentences.`
          : `Not among the strongest of any token of the ${sentences.length} stored sentences; whether it fires there all the same is not known.`,
      ),
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
  const [search, labeledSearch] = searchField("find-sentence", "sentence-status", label, (query) => {
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
    el("div", { class: "tools", role: "search" }, labeledSearch),
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
      ...moreAt(s, t),
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

function moreAt(s, t) {
  const others = othersAt(s, t);
  if (!others.length) return [];
  return [
    lazyDetails(`and ${plural(others.length, unit)} more`, () =>
      el("p", {}, others.flatMap((j) => [el("a", { href: `#${unit}-${j}` }, `${j}`), " "])),
    ),
  ];
}

function alongSentence(s) {
  // Bits that a latent's firings here say more of it than anywhere: what always fires says little.
  const said = ([j, places]) => places.length * Math.log2(places.length / nCoded(s) / (latents[j].rate || 1e-9));
  const found = [...placesIn(s)].sort((a, b) => said(b) - said(a) || a[1][0] - b[1][0]);
  if (!found.length) return "";
  return section(
    `${Unit}s along the sentence`,
    note("Share of its tokens, and which; those that fire more than elsewhere first.", amongStrongest),
    table({
      heads: sharesHeads(unit),
      rows: found.slice(0, 30).map(([j, places]) => [linkWithGist(j), shareCells(s, places)]),
    }),
    found.length > 30 && note(`${whole.format(found.length - 30)} more are not listed.`),
  );
}
