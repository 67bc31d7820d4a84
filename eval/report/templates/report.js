
"use strict";
// Texts of the model and of the data set reach the page through textContent only.
const data = JSON.parse(document.getElementById("data").textContent);
const STEP = 50;
const byId = (id) => document.getElementById(id);
let found = [], shown = 0;

function make(parent, tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

function free(element) {  // whichever direction the text is written in
  element.dir = "auto";
  return element;
}

function listChoices(parent, choices, gold) {
  const list = make(parent, "ol");
  list.type = "A";
  for (const choice of choices) {
    const item = make(list, "li", undefined, choice === gold ? "gold" : "");
    free(make(item, "bdi", choice));
    if (choice === gold) make(item, "span", " (right choice)");
  }
}

function showAnswer(parent, question, answer) {
  const block = make(parent, "div", undefined, "answer");
  if (question.answers.length > 1) make(block, "div", `Repeat ${answer.repeat}`, "quiet");
  if (answer.order) {
    make(block, "div", "Asked with the choices in this order:", "quiet");
    listChoices(block, answer.order, question.answer);
  }
  if (answer.status !== "ok") make(block, "div", `status: ${answer.status}`, "status");
  if (answer.completion !== null) {
    make(block, "div", "Raw completion", "quiet");
    free(make(block, "pre", answer.completion));
  }
  if (answer.answer !== null) {
    const line = make(block, "div", "Answer taken from it: ", "quiet");
    free(make(line, "bdi", answer.answer));
    const named = answer.chosen === null ? ", which names none of the choices"
      : `, which names choice ${String.fromCharCode(65 + answer.chosen)}`;
    make(line, "span", named);
  }
  data.matchers.forEach((name, index) => {
    const right = answer.verdicts[index];
    make(block, "span", `${right ? "✓ right" : "✗ wrong"} (${name})`, `verdict ${right ? "right" : "wrong"}`);
  });
}

function showQuestion(parent, question) {
  const article = make(parent, "article");
  free(make(article, "h3", question.question));
  const labels = data.labels.map(([key, , values]) => values[question[key]]).filter((label) => label !== undefined);
  const facts = make(article, "div", undefined, "quiet");
  make(facts, "bdi", question.id);
  for (const label of [...labels, ...question.flags]) {
    make(facts, "span", " · ");
    make(facts, "bdi", label);
  }
  const player = make(article, "audio");
  player.controls = true;
  player.preload = "none";
  player.setAttribute("aria-label", `Clip of question ${question.id}`);
  player.addEventListener("error", () => {
    if (!player.dataset.failed) make(article, "div", "This clip cannot be played from here.", "status");
    player.dataset.failed = "1";
  });
  player.src = question.audio;
  listChoices(article, question.choices, question.answer);
  for (const answer of question.answers) showAnswer(article, question, answer);
}

function showMore(count) {
  const part = document.createDocumentFragment();
  for (const question of found.slice(shown, shown + count)) showQuestion(part, question);
  shown = Math.min(found.length, shown + count);
  byId("questions").append(part);
  byId("count").textContent = `${found.length} of ${data.questions.length} questions match, ${shown} shown.`;
  byId("more").hidden = byId("all").hidden = shown === found.length;
}

function isVerdict(question, wanted, matcher) {
  const right = question.answers.filter((answer) => answer.verdicts[matcher]).length;
  if (wanted === "right") return right === question.answers.length;
  if (wanted === "wrong") return right === 0;
  if (wanted === "mixed") return right > 0 && right < question.answers.length;
  return question.answers.some((answer) => new Set(answer.verdicts).size > 1);
}

function search() {
  const text = byId("text").value.toLowerCase();
  const verdict = byId("verdict").value, status = byId("status").value, matcher = Number(byId("matcher").value);
  const wanted = data.labels.map(([key]) => [key, byId(key).value]).filter(([, value]) => value !== "");
  found = data.questions.filter((question) =>
    wanted.every(([key, value]) => question[key] === Number(value)) &&
    (!status || question.answers.some((answer) => answer.status === status)) &&
    (!verdict || isVerdict(question, verdict, matcher)) &&
    (!text || [question.id, question.question, ...question.choices, ...question.answers.map((one) => one.completion ?? "")]
      .some((part) => part.toLowerCase().includes(text))));
  byId("questions").replaceChildren();
  shown = 0;
  showMore(STEP);
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("input", search);
byId("filters").addEventListener("reset", () => setTimeout(search));
byId("more").addEventListener("click", () => showMore(STEP));
byId("all").addEventListener("click", () => showMore(found.length));
search();
