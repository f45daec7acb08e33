// The windows of a latent's examples, each token shaded by how strongly the latent fires there.

// Of a latent's example, at which tokens of the window it fires, and how strongly.
function firedIn(latent, [, marked, strength, , , packed]) {
  const values = new Map();
  if (!packed) return values;
  const [least, greatest] = latent.windows;
  const step = (greatest - least) / data.nSteps;
  // No digits that packing has not left.
  const digits = Math.min(12, Math.max(0, Math.floor(-Math.log10(step || 1e-12))));
  const rounded = (value) => Number(value.toFixed(digits)) || Number(value.toPrecision(1));
  const numbers = numbersIn(packed);
  let k = -1;
  for (let i = 0; i < numbers.length; i += 2) {
    k += numbers[i] + 1;
    values.set(k, k === marked ? strength : rounded(least + step * numbers[i + 1]));
  }
  return values;
}

// Ten shades, and the value where it is pointed at, or asked for by a click or for all tokens at once.
const N_SHADES = 10;
let showsValues = false;

function shadedToken(tag, token, value, strengths) {
  const text = token === "" ? NOTHING() : shown(/^ +$/.test(token) ? "␣".repeat(token.length) : token);
  if (value === undefined) return el(tag, {}, text);
  const shade = Math.max(1, Math.min(N_SHADES, Math.round(fullness(value, strengths) * N_SHADES)));
  const attributes = { title: `${valueName} ${number(value)}`, "data-value": number(value) };
  return el(tag, { class: `act a${shade}`, ...attributes }, text);
}

// A window: the marked token, and all others at which it fires, shaded by how strongly.
function shadedText(strings, marked, values, strengths) {
  const nodes = [];
  let between = "";
  const flush = () => {
    nodes.push(shown(nodes.length ? between : between.replace(/^ +/, "")));
    between = "";
  };
  strings.forEach((token, k) => {
    if (k !== marked && !values.has(k)) {
      between += token;
      return;
    }
    // Its own space stays outside, unless it is nothing else.
    const space = /^ *(?=[^ ])/.exec(token)?.[0] || "";
    between += space;
    flush();
    const tag = k === marked ? "mark" : "span";
    nodes.push(shadedToken(tag, token.slice(space.length), values.get(k), strengths));
  });
  flush();
  return el("p", { class: "text", dir: "auto" }, nodes);
}

// For those who do not see shades.
function firesAt(strings, values) {
  const said = [...values].map(([k, value]) => `${plain(strings[k].trim()) || "a space"} ${number(value)}`);
  return said.length > 0 && el("span", { class: "unseen" }, ` Fires at: ${said.join("; ")}.`);
}

function example(latent, own, strengths) {
  const [packed, marked, strength, text, position] = own;
  const strings = unpack(packed);
  const values = firedIn(latent, own);
  return el(
    "li",
    {},
    shadedText(strings, marked, values, strengths),
    note(
      data.order !== "random" && [
        bar(fullness(strength, strengths)),
        ` ${data.order} ${number(strength)} · `,
      ],
      `text ${whole.format(text)}, token ${whole.format(position)}`,
      firesAt(strings, values),
    ),
  );
}

const toggleValue = ({ target }) => target.closest(".act")?.classList.toggle("open");
const examples = (latent, title, about, all, strengths) =>
  section(
    title,
    note(about),
    all.length
      ? el(
          "ol",
          { class: "examples", onclick: toggleValue },
          all.map((e) => example(latent, e, strengths)),
        )
      : el("p", {}, "There are none: it never fired."),
  );

// Values at every token: for a keyboard, a phone and paper.
function valuesButton() {
  const button = el("button", {
    type: "button",
    onclick: () => {
      showsValues = !showsValues;
      show();
    },
  });
  function show() {
    single.classList.toggle("values", showsValues);
    button.setAttribute("aria-pressed", showsValues);
    button.textContent = `${valueName === "margin" ? "Margins" : "Values"} at every token`;
  }
  show();
  return button;
}
