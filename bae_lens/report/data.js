// The data of a report of one dictionary, or of a comparison of several.

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

const unpack = (packed) => numbersIn(packed).map((n) => data.strings[n]);

// Those of a rising list, each but the first as its distance from the one before.
function risingIn(packed) {
  let last = -1;
  return numbersIn(packed).map((n) => (last += n + 1));
}

function numbersIn(packed) {
  const numbers = [];
  let n = 0;
  let step = 1;
  for (let i = 0; i < packed.length; i++) {
    const digit = digits.get(packed.charCodeAt(i));
    n += digit * step;
    if (digit < half) {
      numbers.push(n);
      n = 0;
      step = 1;
    } else step *= half;
  }
  return numbers;
}

// ---------------------------------------------------------------- latents

// Surprise is of the latent, and the same in each of its examples.
function peakOf(strongest, nFirings) {
  if (data.strength === "surprise") return nFirings ? -Math.log2(nFirings / own.nTokens) : null;
  return strongest.length ? strongest[0][2] : null;
}

const rowOf = ([strongest, random, tokens, lemmas, countError, neighbors, classes, lifts, spread, windows]) => ({
  ...{ strongest, random, tokens, lemmas, countError, neighbors, classes, lifts, spread, windows },
});
const whenOff = new Set(own.whenOff);
const latents = isReport
  ? data.latents.map((row, j) => ({
      ...rowOf(row),
      j,
      rate: own.nFirings[j] / own.nTokens,
      peak: peakOf(row[0], own.nFirings[j]),
      phrase: data.phrases ? data.phrases[j] : null,
      // What each seed's judge said.
      said: data.said[j] || [],
      effects: data.effects[j],
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

// How strongly it fires by a value: of activations of either sign the magnitude, and the nearest code has the most.
const sizeOf = (value) => (data.strength === "nearness" ? value : Math.abs(value));
const isSigned =
  isReport &&
  data.strength === "activation" &&
  latents.some(({ strongest, random }) => strongest.concat(random).some(([, , strength]) => strength < 0));

// What is told of each token, and counted of all firings: of codes the distance, which has no sign.
const [valueName, countedName] = {
  activation: ["activation", isSigned ? "magnitude" : "activation"],
  surprise: ["margin", "margin"],
  nearness: ["minus squared distance", "squared distance"],
}[isReport ? data.strength : "activation"];

// How full the bar of a strength is, among the latent's own.
function fullness(strength, strengths) {
  if (data.strength !== "nearness") return sizeOf(strength) / Math.max(...strengths.map(sizeOf), 1e-12);
  const farthest = Math.min(...strengths);
  return farthest < 0 ? 1 - (strength / farthest) * 0.9 : 1;
}

const link = (j) => el("a", { href: `#${unit}-${j}` }, nameOf(j));
const linkWithGist = (j) => rowHead(link(j), el("span", { class: "note below" }, gist(j)));
const mostFrequent = ({ tokens }) => tokens.slice(0, 5).map(([s]) => [alone(data.strings[s]), " "]);
// In words, or by its tokens.
const gist = (j) => (latents[j].phrase === null ? mostFrequent(latents[j]) : isolated(latents[j].phrase));
