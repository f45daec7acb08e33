// The views, and the ways between them.

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
  const [, name, index] = /^#([a-z]+)(?:[-=](\d{1,9}))?$/.exec(location.hash) || [null, "overview"];
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
  const latent = place === LIST && name === unit ? i : null;
  document.title = plain(latent === null ? data.title : `${nameOf(latent)} – ${data.title}`);
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
