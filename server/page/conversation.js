// What can be done to the conversation: send, ask again, edit, continue, answer calls, begin anew, undo.

import { draftText, focusDraft, write } from "./composer.js";
import { say } from "./dom.js";
import { generate, isRunning, requestOf, stop } from "./generate.js";
import { showPanel } from "./panel.js";
import { conversation, newAnswer, saveConversation, settings, turns } from "./state.js";
import { toast } from "./toast.js";
import * as list from "./turn_list.js";

let live = null; // the answer that is being written

/** While an answer is being written, the verbs that ask for another do nothing. */
const idle = (verb) => (...details) => (isRunning() ? undefined : verb(...details));

/** What the buttons of a turn do. */
const actions = {
  isLive: (turn) => turn === live,
  isLast: (turn) => turns().at(-1) === turn,
  changed: saveConversation,
  openSettings: () => showPanel(true),
  renew: startAnew,
  regenerate: idle((turn) => ask(turn)),
  retry: idle((turn) => {
    if (!turn.versions[turn.active].text) turn.versions.splice(turn.active, 1);
    ask(turn);
  }),
  resume: idle((turn) => ask(turn, true)),
  edit: idle((turn, text) => {
    remember("The message was changed.");
    turns().splice(turns().indexOf(turn), Infinity, { kind: "user", text });
    askNext();
  }),
  editPrompt(turn) {
    write(turn.prompt);
    focusDraft();
  },
  answerCalls: idle((turn, results) => {
    turns().push(...results);
    askNext();
  }),
  shorten: idle((turn) => {
    remember("The oldest turns were left out.");
    const before = turns().slice(0, turns().indexOf(turn));
    const users = before.filter((each) => each.kind === "user");
    turns().splice(0, users.length > 1 ? before.indexOf(users[Math.ceil(users.length / 2)]) : 0);
    actions.retry(turn);
  }),
};

export function render() {
  list.render(actions);
}

/** Send what is written. */
export function send() {
  const text = draftText();
  if (isRunning() || !text.trim()) return;
  write("");
  if (settings.mode === "chat") {
    turns().push({ kind: "user", text: text.trim() });
    askNext();
  } else {
    const turn = newAnswer("completion", text);
    turns().push(turn);
    ask(turn);
  }
}

function askNext() {
  const answer = newAnswer("answer");
  turns().push(answer);
  ask(answer);
}

/** Ask for another version of an answer, or for more of the one that is shown; what follows it is no longer true. */
async function ask(answer, isMore = false) {
  const all = turns();
  const at = all.indexOf(answer);
  if (at + 1 < all.length && answer.kind === "answer") {
    remember("Later turns were removed.");
    all.splice(at + 1);
  }
  setLive(answer);
  say("The model is answering.");
  const done = generate(answer, all.slice(0, at), isMore, () => list.schedule(answer));
  saveConversation();
  render();
  if (at === all.length - 1) list.toEnd();
  await done;
  setLive(null);
  list.keepEnd(render);
  saveConversation();
  say(outcome(answer.versions[answer.active]));
}

function setLive(answer) {
  live = answer;
  document.documentElement.classList.toggle("running", live !== null);
  document.getElementById("transcript").setAttribute("aria-busy", live !== null);
}

function outcome({ problem, finish, text }) {
  if (problem) return problem.title;
  return finish === "stopped" ? "Stopped." : `The answer is complete: ${text.slice(0, 2000)}`;
}

export function startAnew() {
  stop();
  if (turns().length > 0) remember("A new conversation.");
  conversation[settings.mode] = [];
  saveConversation();
  render();
  focusDraft();
}

/** Offer to undo what is about to be done to the turns. */
function remember(text) {
  const [mode, before] = [settings.mode, structuredClone(turns())];
  toast(text, () => {
    stop();
    conversation[mode] = before;
    saveConversation();
    render();
  });
}

/** The request that would be sent next. */
export function nextRequest() {
  const [text, last] = [draftText(), turns().at(-1)];
  const isChat = settings.mode === "chat";
  const answer = newAnswer(isChat ? "answer" : "completion", text || (!isChat && last?.prompt) || "Hello");
  const before = isChat && !text && last ? turns().slice(0, -1) : [...turns(), { kind: "user", text: text || "Hello" }];
  const { path, body } = requestOf(answer, before);
  return { path, body: { ...body, stream: true } };
}
