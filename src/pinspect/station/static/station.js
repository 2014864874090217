// Additions to the plain forms: uploads file by file, keyboard shortcuts, clicks on pins. All texts are in the page.
"use strict";

const find = (selector, within = document) => within.querySelector(selector);
const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const page = async (response) => new DOMParser().parseFromString(await response.text(), "text/html");
const SENT_AT_ONCE = 4;
const MOST_IN_ADDRESS = 16;
const MOST_TRIES = 30;

document.documentElement.classList.add("js");

// ---- uploads ----

const upload = find("#upload");
const queue = find("#queue");
const pending = [];
const total = { files: 0, finished: 0, sending: 0 };

function add(files) {
  queue.hidden = false;
  find("#latest")?.remove();
  const fields = findAll("[name=shape], [name=serial], [name=lot]", upload)
    .filter((field) => field.value)
    .map((field) => [field.name, field.value]);
  find("[name=serial]", upload).value = ""; // the next connector has another one
  for (const file of files) {
    const line = find("ol", queue).appendChild(document.createElement("li"));
    line.append(Object.assign(document.createElement("b"), { textContent: file.name }), document.createElement("span"));
    const place = find("#results").appendChild(document.createElement("div"));
    pending.push({ file, line, place, key: key(), fields });
    setState(line, "waiting");
    total.files += 1;
  }
  while (total.sending < SENT_AT_ONCE && pending.length) sendNext();
  progress();
}

async function sendNext() {
  const item = pending.shift();
  total.sending += 1;
  try {
    await send(item);
  } finally {
    total.sending -= 1;
    total.finished += 1;
    progress();
    if (pending.length) sendNext();
  }
}

async function send({ file, line, place, key, fields }) {
  setState(line, "sending");
  try {
    const id = (await inspected(file, line, key, fields)).results[0].id;
    const article = find("article", await page(await fetch(`/?id=${encodeURIComponent(id)}`)));
    place.replaceWith(article);
    prepare(article);
    setState(line, "done");
    remember();
    if (total.files === 1) article.focus();
  } catch (error) {
    place.remove();
    const unreachable = error instanceof TypeError;
    setState(line, "failed", unreachable ? queue.dataset.unreachable : error.message.replace(`${file.name}: `, ""));
  }
}

async function inspected(file, line, key, fields) {
  const form = new FormData();
  form.append("images", file);
  for (const [name, value] of fields) form.append(name, value);
  for (let tries = 1; ; tries += 1) {
    setState(line, tries === 1 ? "inspecting" : "waiting");
    const response = await fetch("/inspect", { method: "POST", body: form, headers: { "Idempotency-Key": key } });
    if (response.ok) return response.json();
    const again = response.headers.get("Retry-After");
    if (!again || tries === MOST_TRIES) throw new Error((await response.json()).detail);
    await wait(Number(again));
  }
}

function setState(line, state, reason = "") {
  line.className = state;
  line.lastChild.textContent = queue.dataset[state].replace("{reason}", reason);
}

function progress() {
  find("progress", queue).value = total.finished / total.files;
}

function key() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remember() {
  const ids = findAll("article.result").slice(0, MOST_IN_ADDRESS).map((article) => ["id", article.dataset.result]);
  history.replaceState(null, "", `/?${new URLSearchParams(ids)}`);
}

if (upload) {
  const images = find("#images");
  images.addEventListener("change", () => {
    add(images.files);
    images.value = "";
  });
  upload.addEventListener("submit", (event) => event.preventDefault());
  for (const kind of ["dragover", "dragenter"]) {
    window.addEventListener(kind, (event) => {
      event.preventDefault();
      upload.classList.add("over");
    });
  }
  window.addEventListener("dragleave", (event) => event.relatedTarget || upload.classList.remove("over"));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    upload.classList.remove("over");
    add(event.dataTransfer.files);
  });
}

// ---- confirm and correct ----

function prepare(article) {
  for (const form of findAll("form", article)) form.addEventListener("submit", judge);
  const form = find("form.correction", article);
  if (!form) return;
  form.addEventListener("change", () => show(article));
  for (const label of findAll(".hits label", article)) {
    label.addEventListener("click", (event) => {
      event.preventDefault();
      find("details.correct", article).open = true;
      choose(form, "judgement", "defective");
      choosePin(article, document.getElementById(label.htmlFor));
    });
  }
  show(article);
}

// A passed capture has neither mode nor position.
function show(article) {
  const form = find("form.correction", article);
  const passed = find("[name=judgement]:checked", form)?.value === "passed";
  for (const part of findAll(".modes, .positions", form)) part.disabled = passed;
  const pin = passed ? null : find(".positions :checked", form);
  for (const label of findAll(".hits label", article)) label.classList.toggle("picked", label.htmlFor === pin?.id);
}

function choose(form, name, value) {
  const input = find(`[name=${name}][value="${value}"]`, form);
  input.checked = true;
  show(form.closest("article"));
  return input;
}

function choosePin(article, input) {
  input.checked = true;
  show(article);
  input.focus({ preventScroll: true });
}

async function judge(event) {
  event.preventDefault();
  const form = event.target;
  const article = form.closest("article");
  for (const button of findAll("button", article)) button.disabled = true;
  let updated;
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.action, { method: "POST", body, redirect: "manual" });
    updated = await page(answer.type === "opaqueredirect" ? await fetch(ownAddress(article)) : answer);
  } catch {
    form.submit(); // the browser then shows the connection error
    return;
  }
  const renewed = find("article", updated);
  article.replaceWith(renewed);
  find(".bar .state").replaceWith(find(".bar .state", updated));
  prepare(renewed);
  (find(".failure", renewed) ? find("form.correction [name=by]", renewed) : renewed).focus();
}

function ownAddress(article) {
  return upload ? `/?id=${encodeURIComponent(article.dataset.result)}` : location.href;
}

findAll("article.result").forEach(prepare);

// ---- keyboard ----

const switchedOn = find("#shortcuts-on");

if (switchedOn) {
  switchedOn.checked = localStorage.getItem("shortcuts") !== "off";
  switchedOn.addEventListener("change", () => localStorage.setItem("shortcuts", switchedOn.checked ? "on" : "off"));
}

const current = () => document.activeElement?.closest("article.result") ?? find("article.result");

const shortcuts = {
  c: () => {
    const form = current() && find("form.confirm", current());
    if (!form) return;
    find("details.correct", current()).open = false;
    const name = find("[name=by]", form);
    if (name.value) form.requestSubmit();
    else name.focus();
  },
  x: () => {
    const form = current() && find("form.correction", current());
    if (!form) return;
    find("details.correct", current()).open = true;
    (find(".modes:enabled :checked", form) ?? find(".modes:enabled input", form) ?? find(":checked", form)).focus();
  },
  n: () => step(1),
  p: () => step(-1),
  u: () => (upload ? find("#images").click() : location.assign("/")),
  i: () => find("[data-go=inspect]")?.click(),
  h: () => find("[data-go=history]")?.click(),
  f: () => find("[data-go=figures]")?.click(),
  "?": () => {
    const help = find("#shortcuts");
    help.open = !help.open;
    find("summary", help).focus();
  },
};

function step(by) {
  const articles = findAll("article.result");
  const here = articles.indexOf(document.activeElement?.closest("article.result"));
  articles[Math.min(Math.max(here + by, 0), articles.length - 1)]?.focus();
}

function chooseMode(number) {
  const form = current() && find("details.correct[open] form.correction", current());
  if (!form) return;
  if (number === 1) {
    choose(form, "judgement", "passed");
    find(".save", form).focus();
    return;
  }
  const mode = findAll(".modes input", form)[number - 2];
  if (!mode) return;
  choose(form, "judgement", "defective");
  choose(form, "defect_mode", mode.value);
  choosePin(current(), find(".positions :checked", form) ?? find(".positions input", form));
}

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function movePin(input, [down, right]) {
  const rows = findAll("tbody tr", input.closest("table")).map((row) => findAll("input", row));
  const row = rows.findIndex((inputs) => inputs.includes(input));
  const target = rows[row + down]?.[rows[row].indexOf(input) + right];
  if (target) choosePin(input.closest("article"), target);
}

document.addEventListener("keydown", (event) => {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key in ARROWS && at.matches(".positions input")) {
    event.preventDefault();
    movePin(at, ARROWS[event.key]);
  } else if (event.key === "Escape" && at.closest("details.correct[open]")) {
    const details = at.closest("details.correct");
    details.open = false;
    find("summary", details).focus();
  } else if (switchedOn?.checked && !at.matches("select, textarea, input:not([type=radio], [type=checkbox], [type=file])")) {
    const act = /^[1-9]$/.test(event.key) ? () => chooseMode(Number(event.key)) : shortcuts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
});
