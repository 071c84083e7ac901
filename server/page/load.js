// What the server is doing, asked every two seconds while the page is seen: state, model, load.

import { getJson } from "./api.js";
import { svg } from "./dom.js";

const INTERVAL = 2000; // milliseconds
const HISTORY = 60; // points of the curve
const WORDS = {
  ready: "ready",
  starting: "the model is being loaded",
  restarting: "the engine is being restarted",
  draining: "the server is shutting down",
  stopped: "the engine has stopped",
  offline: "the server cannot be reached",
};

const part = (name) => document.getElementById(`load-${name}`);
const rates = Array(HISTORY).fill(0);
let state = null;

/** Watch the server; `onstate(load)` is called when its state changes. */
export function watch(onstate) {
  const tick = async () => {
    if (!document.hidden) {
      const load = await read();
      document.documentElement.dataset.server = load.status;
      part("state").textContent = WORDS[load.status] ?? load.status;
      show(load);
      if (load.status !== state) onstate(load);
      state = load.status;
    }
    setTimeout(tick, INTERVAL);
  };
  tick();
}

async function read() {
  try {
    return await getJson("load");
  } catch {
    return { status: "offline" };
  }
}

function show(load) {
  const { generation_tokens_per_second: out = 0, prompt_tokens_per_second: read = 0, prefix_cache_hit_rate: hits } = load;
  rates.push(out);
  rates.shift();
  part("out").textContent = figure(out);
  part("in").textContent = figure(read);
  part("running").textContent = load.max_batch_size ? `${figure(load.running)} / ${figure(load.max_batch_size)}` : figure(load.running);
  part("waiting").textContent = figure(load.waiting);
  const usage = (load.kv_cache_usage ?? 0) * 100;
  part("kv").textContent = `${usage.toFixed(usage < 10 ? 1 : 0)} %`;
  part("kv-bar").style.setProperty("--share", usage / 100);
  part("hits").textContent = hits === null || hits === undefined ? "–" : `${(hits * 100).toFixed(0)} %`;
  drawCurve();
}

const figure = (value) => (value ?? 0).toLocaleString("en", { maximumFractionDigits: value < 10 && value % 1 ? 1 : 0 });

function drawCurve() {
  const top = Math.max(10, ...rates);
  const points = rates.map((rate, index) => `${((index / (HISTORY - 1)) * 100).toFixed(1)},${(30 - (rate / top) * 28).toFixed(1)}`);
  part("curve").replaceChildren(
    svg("polygon", { class: "area", points: `0,32 ${points.join(" ")} 100,32` }),
    svg("polyline", { class: "line", points: points.join(" ") }),
  );
}

/** The names of the models that are served. */
export async function readModels() {
  return (await getJson("v1/models")).data.map((model) => model.id);
}
