// The list of latents, to search and sort.

const FIRST = 60;
const MORE = 120;
const list = { order: [], shown: 0, sort: "telling", descending: true, query: "", inExamples: false };
const byName = new Intl.Collator("en");
const NOT_SCORED = "not scored";
const quiet = (text) => el("span", { class: "note" }, text);

const firstToken = ({ tokens }) => (tokens.length ? tokens[0] : null);
// What there is in place of a phrase.
function noPhrase({ said }) {
  if (said.length) return said[0].status;
  return Object.keys(data.said).length ? NOT_SCORED : "–";
}
// Of a latent, how often it fires at its most frequent token: the share, and the lower end of its interval
// (Wilson's, 95 %), by which a few firings count little.
const purity = (latent) =>
  firstToken(latent) ? Math.min(1, firstToken(latent)[1] / own.nFirings[latent.j]) : null;
function surePurity(latent) {
  const p = purity(latent);
  if (p === null) return null;
  const n = own.nFirings[latent.j];
  const z = 1.96;
  const middle = p + (z * z) / (2 * n);
  return (middle - z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
}
// What comes first where nobody has said: by score, or by how surely it fires at one token; what is
// dense says little whatever the score, and comes last, and what never fires after it.
const DENSE = 0.1;
const isScored = isReport && data.scores.length > 0;
function telling(latent) {
  if (latent.rate === 0) return null;
  const value = isScored ? data.scores[0].values[latent.j] : surePurity(latent);
  const known = value === null ? (surePurity(latent) ?? 0) - 1e3 : value;
  return latent.rate > DENSE ? known - 1e6 : known;
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
        label: "most frequent tokens",
        about: "Tokens at which it fires most often.",
        isText: true,
        of: (latent) => firstToken(latent) && data.strings[firstToken(latent)[0]].trim(),
        cell: (latent) => (firstToken(latent) ? mostFrequent(latent) : quiet("never fires")),
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
        key: "purity",
        label: "share of 1st token",
        about: "Share of its firings that are at its most frequent token.",
        isNumber: true,
        of: purity,
        show: (value) => (value === null ? quiet("–") : percent(value)),
      },
      {
        key: "rate",
        label: "fires at",
        about: "Share of tokens at which it fires.",
        isNumber: true,
        // One that never fires comes last either way.
        of: ({ rate }) => rate || null,
        show: (rate) => percent(rate ?? 0),
      },
      {
        key: "strongest",
        label: greatest,
        about: aboutGreatest,
        isNumber: true,
        of: ({ peak }) => peak && sizeOf(peak),
        cell: ({ peak }) => number(peak),
      },
      {
        key: "lift",
        label: "lift of 1st token",
        about: "How many times more frequent its most frequent token is where it fires than in all of the text.",
        isNumber: true,
        of: (latent) => firstToken(latent)?.[2] ?? null,
      },
    ].filter(Boolean)
  : [];

// What else can be sorted by, where there is any of it: shown in a column of its own while it is.
const further = [
  {
    key: "window",
    label: "share of its windows",
    about:
      `Of the other tokens${data.strength === "nearness" ? "" : " that count"} around its random examples, the share at ` +
      "which it fires too: low where it is for single tokens, high where for what a text is about.",
    of: ({ windows }) => windows?.[2] ?? null,
    show: percent,
  },
  {
    key: "median",
    label: `median ${countedName}`,
    about: `Half of its firings have at most this ${countedName}, to within 9 %.`,
    of: ({ spread }) => spread?.[0][1] ?? null,
  },
  {
    key: "levels",
    label: "bits of its level",
    about: "What it is worth to know at which level it fires, in bits: 0 where it is always the same one.",
    of: ({ spread }) => spread?.[3] ?? null,
  },
  {
    key: "highest-lift",
    label: "highest lift",
    about: "That of the token at which it fires most out of proportion, among those with 3 firings at least.",
    of: ({ lifts }) => (lifts && lifts.length ? lifts[0][2] : null),
  },
  {
    key: "class",
    label: "share of a class above chance",
    about: "By how much the share of its firings in texts of a class exceeds the class's share of all tokens.",
    of: ({ classes, rate }) =>
      classes && rate ? Math.max(...classes.map((share, i) => share - data.classShares[i])) : null,
    show: percent,
  },
  {
    key: "effect",
    label: "largest logit effect",
    about: "By how much it raises the logit of the token that it raises most, where it fires, by its decoder row.",
    of: ({ effects }) => effects?.[0][0]?.[1] ?? null,
  },
]
  .filter(({ of }) => latents.some((latent) => of(latent) !== null))
  .map((order) => ({ isNumber: true, ...order }));
const columnFor = (key) => further.find((order) => order.key === key);

// What can be sorted by: the columns, more, and the order in which the list comes.
const orders = [
  { key: "telling", label: "most telling first", isNumber: true, of: telling },
  ...columns,
  ...further,
];

// What the numbers of a latent are.
const glossary = (title) =>
  lazyDetails(title, () =>
    table({
      class: "facts",
      rows: orders.filter(({ about }) => about).map(({ label, about }) => [rowHead(label), cell(about)]),
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
  const { of, isText } = orders.find((column) => column.key === list.sort);
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
    columns.concat(columnFor(list.sort) || []).map((column, i) =>
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
  for (const added of [...list.heads.children].slice(columns.length)) added.remove();
  list.heads.append(...[columnFor(list.sort) || []].flat().map(columnHead));
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
  const column = orders.find((c) => c.key === key);
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
    `One row per ${unit}, in the order ${isScored ? `of ${plain(data.scores[0].name)}` : `of the share of their firings at their most frequent token, where few firings count little`}, until you sort them; those that fire at more than ${percent(DENSE)} of tokens come after others, and those that never fire last.`,
    data.scores.length && nScored < latents.length
      ? ` ${whole.format(nScored)} of ${plural(latents.length, unit)} are scored; sorted by a score, the others come last.`
      : null,
  ];
}

const columnHead = (c) =>
  el(
    "th",
    { scope: "col", role: "columnheader", class: c.isNumber ? "n" : null, "data-key": c.key },
    el(
      "button",
      { type: "button", onclick: () => sortBy(c.key, true) },
      c.label,
      el("span", { class: "way", "aria-hidden": "true" }),
    ),
  );

function listView() {
  const label = `Search tokens${data.phrases ? ", phrases" : ""} and numbers`;
  const [search, labeledSearch] = searchField("search", "status", label, (query) => {
    list.query = query;
    refresh();
  });
  list.search = search;
  list.select = el(
    "select",
    { id: "sort", onchange: () => sortBy(list.select.value, false) },
    orders.map((c) => el("option", { value: c.key }, c.label)),
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
  // Roles are said, since on a narrow screen rows are drawn as blocks, which takes them away.
  list.heads = el("tr", { role: "row" }, columns.map(columnHead));
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
      labeledSearch,
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
