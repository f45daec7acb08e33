// What pages are made of: elements, text and numbers to read, tables. Text is only ever put into text
// nodes and our own attributes: none of it is read as HTML. Scripts of a page are joined in order
// into one function, so that those that follow have all of this.

// ---------------------------------------------------------------- elements

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// ---------------------------------------------------------------- text

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
// The same where there can be no nodes.
const plain = (text) => text.replace(HIDDEN, (character) => SHORT.get(character) || codePoint(character));
// By itself, whichever way the text around it runs.
const isolated = (text) => el("bdi", {}, shown(text));
const NOTHING = () => el("span", { class: "point" }, "nothing");
// A token by itself, its outer spaces seen.
function alone(text) {
  if (text === "") return NOTHING();
  return el("bdi", { class: "token" }, shown(text.replace(/^ +| +$/g, (s) => "␣".repeat(s.length))));
}
// A token among the text around it; its own space stays outside of the mark.
function inContext(before, token, after) {
  const space = /^ */.exec(token)[0];
  return el(
    "p",
    { class: "text", dir: "auto" },
    shown((before + space).replace(/^ +/, "")),
    el("mark", {}, token === "" ? NOTHING() : shown(token.slice(space.length))),
    shown(after),
  );
}
const note = (...children) => el("p", { class: "note" }, children);
const section = (title, ...children) => el("section", {}, el("h3", {}, title), children);

// ---------------------------------------------------------------- numbers

const format = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 4 });
const short = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en-GB");

function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === true || value === false) return value ? "yes" : "no";
  if (typeof value === "string") return plain(value);
  const isTiny = Math.abs(value) < 1e-4 && value !== 0;
  const text = isTiny ? value.toExponential(2) : (Number.isInteger(value) ? whole : format).format(value);
  return text.replace("-", "−");
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

// ---------------------------------------------------------------- tables

const rowHead = (...children) => el("th", { scope: "row" }, children);
const cell = (...children) => el("td", {}, children);
const numberCell = (...children) => el("td", { class: "n" }, children);
const barCell = (share) => el("td", { class: "bars" }, bar(share));
const head = (label, kind) => el("th", { scope: "col", class: kind }, label);
const numberHead = (label) => head(label, "n");

// Scrolls by itself where it is too wide. rows: cells of each.
function table({ caption, heads, rows, ...attributes }) {
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      attributes,
      caption && el("caption", {}, caption),
      heads && el("thead", {}, el("tr", {}, heads)),
      el(
        "tbody",
        {},
        rows.map((cells) => el("tr", {}, cells)),
      ),
    ),
  );
}

// What is made when it is opened.
function lazyDetails(title, make) {
  const details = el("details", {}, el("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(make());
  });
  return details;
}
