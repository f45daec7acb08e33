// The quiz: one question at a time, and answers that stay here until the reader saves them.

const { quiz, classes, questions } = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const CANNOT_TELL = -1;
const FILE = "answers.json";
const ways = classes.map((name, i) => ({
  choice: i,
  key: i < 9 ? String(i + 1) : null,
  label: () => isolated(name),
}));
ways.push({ choice: CANNOT_TELL, key: "0", label: () => "Cannot tell" });

// ---------------------------------------------------------------- what the reader did

// place: the question that is on the screen; −1: none of them yet, their number: the end.
const fresh = () => ({
  reader: "",
  choices: questions.map(() => null),
  seconds: questions.map(() => 0),
});
const state = { place: -1, ...fresh() };
const isQuestion = () => state.place >= 0 && state.place < questions.length;
const isUntouched = () => state.place < 0 && state.reader === "" && state.seconds.every((s) => s === 0);
const unanswered = () => questions.map((_, q) => q).filter((q) => state.choices[q] === null);

const answers = () => ({
  quiz,
  reader: state.reader.trim(),
  answers: state.choices
    .map((choice, q) => ({ question: q, choice, seconds: Number(state.seconds[q].toFixed(3)) }))
    .filter(({ choice }) => choice !== null),
});

// A browser may keep nothing for a file on disk, or throw when it is asked to.
const STORED = `bae-lens quiz ${quiz}`;
function keeps(name, content) {
  try {
    localStorage.setItem(name, content);
    return localStorage.getItem(name) === content;
  } catch {
    return false;
  }
}
function store() {
  const { reader, choices, seconds } = state;
  keeps(STORED, JSON.stringify({ reader, choices, seconds }));
}
function recall() {
  try {
    const { reader, choices, seconds } = JSON.parse(localStorage.getItem(STORED));
    const isChoice = (c) => c === null || ways.some(({ choice }) => choice === c);
    const isTime = (s) => Number.isFinite(s) && s >= 0;
    if (
      typeof reader === "string" &&
      choices.length === questions.length &&
      seconds.length === questions.length &&
      choices.every(isChoice) &&
      seconds.every(isTime)
    )
      Object.assign(state, { reader, choices, seconds });
  } catch {
    // Nothing was kept, or nothing of ours.
  }
}

// Only the time counts in which a question can be seen.
let since = null;
function startClock() {
  if (isQuestion() && !document.hidden) since = performance.now();
}
function stopClock() {
  if (since !== null) state.seconds[state.place] += (performance.now() - since) / 1000;
  since = null;
}
// All else is stored as it happens. A page in which nothing was done stores nothing: what the one before it stored may
// still be on its way.
function storeClock() {
  if (since === null) return;
  stopClock();
  store();
}

function go(place) {
  stopClock();
  state.place = Math.max(-1, Math.min(place, questions.length));
  store();
  draw();
  startClock();
}

// ---------------------------------------------------------------- the beginning

const button = (text, onclick, kind) => el("button", { type: "button", class: kind, onclick }, text);
const heading = (...children) => el("h2", { tabindex: -1 }, children);

function beginning() {
  const isKept = keeps("bae-lens quiz", "");
  const hasBegun = unanswered().length < questions.length;
  return [
    heading("Before you begin"),
    el(
      "div",
      { class: "prose" },
      el("p", {}, "A model has read texts and put each into one of these classes:"),
      el(
        "ul",
        {},
        classes.map((name) => el("li", {}, isolated(name))),
      ),
      el(
        "p",
        {},
        "In each text one token, a word or a part of one, mattered most for that, and stands for some concept inside the model. A question shows you this concept, and never the text: words at which the concept is found most often, and places in other texts, where the token at which it is found is ",
        el("mark", {}, "marked"),
        ".",
      ),
      el(
        "p",
        {},
        "Which class did the model predict for the text? Go by what you see. If it tells you nothing, say that you cannot tell: nothing is won by guessing.",
      ),
      el(
        "p",
        {},
        `There are ${plural(questions.length, "question")}. At the end you save your answers as a file, and give it to whoever gave you this page. Nothing else is in it than your answers, how long you looked at each question, and your name if you give one. `,
        isKept
          ? "Until then this browser keeps them, and you can close the page and come back."
          : "This browser does not keep them until then: leave the page open.",
      ),
      el(
        "p",
        { class: "field" },
        el("label", { for: "reader" }, "Your name, if you like"),
        el("input", {
          id: "reader",
          type: "text",
          maxlength: 60,
          autocomplete: "off",
          value: state.reader,
          oninput: (event) => {
            state.reader = event.target.value;
            store();
          },
        }),
      ),
    ),
    el("p", { class: "buttons" }, button(hasBegun ? "Go on" : "Begin", begin, "primary")),
  ];
}

// At the first question that is left, or the end.
function begin() {
  go(unanswered().concat(questions.length)[0]);
}

// ---------------------------------------------------------------- a question

function question() {
  const [words, contexts] = questions[state.place];
  const isAnswered = () => state.choices[state.place] !== null;
  const forward = button("", () => go(state.place + 1), "primary");
  const label = () => forward.replaceChildren(isAnswered() ? "Next" : "Skip");
  label();
  return [
    heading(`Question ${state.place + 1} of ${questions.length}`),
    el("progress", {
      max: questions.length,
      value: questions.length - unanswered().length,
      "aria-label": "Questions that you have answered",
    }),
    words.length + contexts.length
      ? null
      : el("p", {}, "Of this concept nothing was seen: there is nothing to show."),
    words.length
      ? section(
          "Words",
          el(
            "ul",
            { class: "words" },
            words.map((word) => el("li", {}, alone(word))),
          ),
        )
      : null,
    contexts.length
      ? section("In other texts", el("ol", { class: "examples" }, contexts.map((context) => el("li", {}, inContext(...context)))))
      : null,
    el(
      "fieldset",
      {
        onchange: (event) => {
          state.choices[state.place] = Number(event.target.value);
          store();
          label();
        },
      },
      el("legend", {}, "Which class did the model predict?"),
      ways.map((way) =>
        el(
          "label",
          { class: "choice" },
          el("input", {
            type: "radio",
            name: "choice",
            value: way.choice,
            "data-key": way.key,
            checked: state.choices[state.place] === way.choice,
          }),
          way.label(),
          way.key && el("kbd", { "aria-hidden": "true" }, way.key),
        ),
      ),
    ),
    el(
      "p",
      { class: "buttons" },
      button("Back", () => go(state.place - 1)),
      forward,
      button("Finish", () => go(questions.length), "last"),
    ),
    el(
      "p",
      { class: "note keys" },
      "Keys: a number chooses, ",
      el("kbd", {}, "Enter"),
      " goes on, ",
      el("kbd", {}, "Backspace"),
      " goes back.",
    ),
  ];
}

function onKey(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  // What the element itself does with a key comes first.
  if (target instanceof HTMLTextAreaElement) return;
  if (target instanceof HTMLButtonElement && key === "Enter") return;
  if (target.id === "reader") {
    if (key === "Enter") begin();
    return;
  }
  const own = ways.find((way) => way.key === key);
  if (key === "Enter" && (!isQuestion() || state.choices[state.place] !== null))
    main.querySelector("button.primary").click();
  else if (key === "Backspace" && state.place >= 0) go(state.place - 1);
  else if (own && isQuestion()) {
    const input = main.querySelector(`[data-key="${own.key}"]`);
    input.focus();
    input.click();
  } else return;
  event.preventDefault();
}

// ---------------------------------------------------------------- the end

function end() {
  const text = JSON.stringify(answers(), null, 1) + "\n";
  const left = unanswered();
  const status = el("p", { role: "status" });
  const save = () => {
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    el("a", { href: url, download: FILE }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    status.replaceChildren(`Your browser was asked to save ${FILE} among your downloads.`);
  };
  return [
    heading("Save your answers"),
    el(
      "div",
      { class: "prose" },
      el(
        "p",
        {},
        `You answered ${questions.length - left.length} of ${plural(questions.length, "question")}.`,
        left.length ? " These are left:" : null,
      ),
      left.length
        ? el(
            "p",
            { class: "buttons" },
            left.map((q) =>
              el(
                "button",
                { type: "button", "aria-label": `Question ${q + 1}`, onclick: () => go(q) },
                q + 1,
              ),
            ),
          )
        : null,
      el("p", { class: "buttons" }, button("Save my answers", save, "primary")),
      status,
      el(
        "p",
        {},
        el("label", { for: "answers" }, `Or copy this into a file named ${FILE}:`),
        el("textarea", { id: "answers", readonly: true, spellcheck: "false" }, text),
      ),
      el(
        "p",
        { class: "buttons" },
        button("Back", () => go(state.place - 1)),
        button("Forget all and begin again", forget, "last"),
      ),
    ),
  ];
}

function forget() {
  if (!confirm("All of your answers will be lost. Are they saved?")) return;
  Object.assign(state, fresh());
  go(-1);
}

// ---------------------------------------------------------------- all of it

function draw() {
  const view = isQuestion() ? question : state.place < 0 ? beginning : end;
  main.replaceChildren(...view().filter(Boolean));
  main.querySelector("h2").focus({ preventScroll: true });
  scrollTo(0, 0);
}

addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => {
  storeClock();
  startClock();
});
addEventListener("pagehide", storeClock);
// A browser that reloads a page in another process may tell it afterwards what the old one stored.
addEventListener("storage", ({ key }) => {
  if (key !== STORED || !isUntouched()) return;
  recall();
  draw();
});
recall();
draw();
document.documentElement.dataset.ready = "true";
