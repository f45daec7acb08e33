// One's own text: whoever served this page reads it. The last script of the page, and only of one that is served.

const live = { asked: "", isAsking: false, answer: null, timer: 0 };
// After the last key, in milliseconds.
const PAUSE = 400;
// Rows of a table of the latents that fire at a token.
const MOST_ROWS = 256;

// ---------------------------------------------------------------- asking

// One question at a time; what was typed meanwhile is asked next.
async function askLive() {
  clearTimeout(live.timer);
  if (live.isAsking) return;
  live.isAsking = true;
  while (live.field.value !== live.asked) {
    live.asked = live.field.value;
    if (live.asked.trim() === "") {
      showLive(null, "");
      continue;
    }
    live.status.textContent = "Reading…";
    let answer, status;
    try {
      const response = await fetch("latents", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ text: live.asked }),
      });
      const found = await response.json();
      if (response.ok) answer = found;
      else status = found.error;
    } catch {
      status = "There is no answer. Does bae-lens serve still run?";
      // So that the same text can be asked again.
      live.asked = null;
    }
    showLive(answer ?? null, status ?? whatWasRead(answer));
    if (live.asked === null) break;
  }
  live.isAsking = false;
}

const whatWasRead = ({ tokens, nTokens }) =>
  nTokens > tokens.length
    ? `The first ${plural(tokens.length, "token")} of ${whole.format(nTokens)}: no more are read.`
    : plural(tokens.length, "token");

// ---------------------------------------------------------------- the answer

// Of a latent the tokens at which it fires, with what it has there: of bits the margin.
function livePlaces() {
  const places = new Map();
  live.answer.codes.forEach((codes, t) => {
    for (const [j, strength, margin] of codes) {
      if (!places.has(j)) places.set(j, new Map());
      places.get(j).set(t, margin ?? strength);
    }
  });
  return places;
}

// The text shaded by a latent, as the windows of its examples are.
function liveShaded(j) {
  const values = live.places.get(j) || new Map();
  const strengths = (latents[j].windows || []).slice(0, 2).concat([...values.values()]);
  const text = shadedText(live.answer.tokens, -1, values, strengths);
  return el("div", { class: "shaded", onclick: toggleValue }, text, firesAt(live.answer.tokens, values));
}

// The strongest and the weakest of what fires at a token, which may be thousands.
const ends = (codes) => (codes.length ? [codes[0][1], codes.at(-1)[1]] : []);

function showLive(answer, status) {
  live.answer = answer;
  live.status.textContent = status;
  live.result.replaceChildren();
  if (!answer) return;
  live.places = livePlaces();
  const strengths = answer.codes.flatMap(ends);
  live.shaded = el("div", {});
  live.codes = el("div", { class: "codes", role: "status" });
  live.buttons = answer.tokens.map((string, t) =>
    el(
      "button",
      { type: "button", class: "tok", "aria-pressed": "false", onclick: () => pickLiveToken(t) },
      alone(string),
      el("span", { class: "code" }, answer.codes[t].length ? `${answer.codes[t][0][0]}` : "–"),
      bar(answer.codes[t].length ? fullness(answer.codes[t][0][1], strengths) : 0),
    ),
  );
  live.result.append(
    live.shaded,
    note(
      `Below each token: its ${data.strength === "surprise" ? "rarest" : "strongest"} ${unit}. Pick a token to see which fire there.`,
    ),
    el(
      "div",
      { class: "tokens", role: "group", "aria-label": "Tokens of your text", dir: "auto" },
      live.buttons,
    ),
    live.codes,
    liveLatents(),
  );
  const first = answer.codes.findIndex((codes) => codes.length);
  if (first >= 0) pickLiveToken(first);
}

const shadeButton = (j) =>
  el("button", { type: "button", class: "shade", "data-latent": j, onclick: () => shadeLive(j) }, "Shade");

function shadeLive(j) {
  live.shaded.replaceChildren(note("Shaded by ", link(j), `: ${valueName}.`), liveShaded(j));
  for (const button of live.result.querySelectorAll(".shade"))
    button.setAttribute("aria-pressed", Number(button.dataset.latent) === j);
}

function pickLiveToken(t) {
  const codes = live.answer.codes[t];
  const strengths = ends(codes);
  live.buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === t));
  live.codes.replaceChildren(
    el("h3", {}, "Token ", alone(live.answer.tokens[t])),
    codes.length
      ? table({
          heads: [head(unit), numberHead(strengthUnit), cell(), codes[0].length > 2 && numberHead(valueName), cell()],
          rows: codes.slice(0, MOST_ROWS).map(([j, strength, margin]) => [
            linkWithGist(j),
            numberCell(number(strength)),
            barCell(fullness(strength, strengths)),
            margin !== undefined && numberCell(number(margin)),
            cell(shadeButton(j)),
          ]),
        })
      : el("p", {}, live.answer.counts[t] ? "Nothing fires here." : "This token does not count: it is special, or an outlier."),
    codes.length > MOST_ROWS ? note(`${whole.format(codes.length - MOST_ROWS)} more fire here.`) : "",
  );
  if (codes.length) shadeLive(codes[0][0]);
}

function liveLatents() {
  const n = Math.max(1, live.answer.counts.filter(Boolean).length);
  // As for the stored sentences: what fires here more than elsewhere comes first.
  const said = ([j, values]) => values.size * Math.log2(values.size / n / (latents[j].rate || 1e-9));
  const found = [...live.places].sort((a, b) => said(b) - said(a) || a[0] - b[0]);
  if (!found.length) return "";
  return section(
    `${Unit}s along your text`,
    note("Those that fire more than elsewhere first."),
    table({
      heads: [head(unit), numberHead("tokens"), numberHead("share"), numberHead(`greatest ${valueName}`), cell()],
      rows: found.slice(0, 30).map(([j, values]) => [
        linkWithGist(j),
        numberCell(whole.format(values.size)),
        numberCell(percent(values.size / n)),
        numberCell(number([...values.values()].reduce((a, b) => (sizeOf(b) > sizeOf(a) ? b : a)))),
        cell(shadeButton(j)),
      ]),
    }),
    found.length > 30 && note(`${whole.format(found.length - 30)} more are not listed.`),
  );
}

// ---------------------------------------------------------------- the view

function liveView() {
  live.field = el("textarea", {
    id: "live",
    rows: 3,
    autocomplete: "off",
    spellcheck: "false",
    dir: "auto",
    "aria-describedby": "live-status",
    oninput: () => {
      clearTimeout(live.timer);
      live.timer = setTimeout(askLive, PAUSE);
    },
    // The page's own keys are letters here.
    onkeydown: (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      askLive();
    },
  });
  live.status = el("p", { id: "live-status", role: "status" });
  live.result = el("div", {});
  return [
    el("h2", { tabindex: -1 }, "Your own text"),
    el(
      "div",
      { class: "live" },
      note(
        `The model on this machine reads it when you stop typing, or press Enter: ${plural(data.live.nTokens, "token")} at most.`,
      ),
      el("p", {}, el("label", { for: "live" }, "A sentence"), live.field),
      live.status,
      live.result,
    ),
  ];
}

// On a latent's page, the text that was typed.
function showLiveOnPage() {
  const [, j] = new RegExp(`^#${unit}[-=](\\d{1,9})$`).exec(location.hash) || [];
  if (j === undefined || single.hidden || !live.answer || !latents[j]) return;
  const fires = live.places.has(Number(j));
  single
    .querySelector(".columns")
    .before(
      el(
        "div",
        { class: "live" },
        section(
          "In your own text",
          fires ? liveShaded(Number(j)) : el("p", {}, "It does not fire there."),
          el("p", {}, el("a", { href: "#live" }, "Back to your text")),
        ),
      ),
    );
}

views.live = { title: "Your own text", make: liveView };
document
  .getElementById("nav")
  .append(el("li", {}, el("a", { href: "#live" }, views.live.title)));
document.querySelector("#footer p:last-child").lastChild.textContent =
  "; ␣ is a space. What you type goes to bae-lens serve on this machine, and nowhere else.";
if (views.sentences) {
  const words = `The ${sentences.length} stored sentences with their ${unit}s; a text of your own is read under “Your own text”.`;
  const mend = (nodes) => {
    nodes.find((node) => node.matches(".note")).textContent = words;
    return nodes;
  };
  const make = views.sentences.make;
  views.sentences.make = () => mend(make());
  if (views.sentences.node) mend([...views.sentences.node.children]);
}
addEventListener("hashchange", showLiveOnPage);
if (location.hash === "#live") route(true);
