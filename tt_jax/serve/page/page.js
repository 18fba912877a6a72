// The page: what is asked of the server, and what it says.

import { Curve } from "./curve.js";
import { Player, unpack } from "./player.js";

const $ = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LARGEST = 1024; // pixels of a start picture's longer side, more than any model takes
const SOME = 4; // frames between two reports of what was shown

const SWITCHES = {
  none: "keep seeing the past",
  flush: "forget all but the newest frames",
  cut: "forget them, and cut to a new scene",
  recache: "see the past under the new prompt",
};

let offer = null;
let state = "connecting"; // ready, queued, preparing, playing, stopping, closed
let prompt = ""; // the one that is shown
let picture = null;
let branchable = false;
let interventions = 0;
let reported = 0;

const curve = new Curve($("curve"), colour);
const player = new Player($("video"), $("map"), {
  colour,
  shown(frame) {
    const seen = frame + 1;
    const last = player.waiting === 0;
    if (seen % SOME === 0 || last) send({ type: "shown", frames: seen });
    reported = seen;
    if (state === "preparing") become("playing");
    if (seen % SOME === 0 || last) tell();
  },
  begun(chunk) {
    const acted = chunk.triggered && chunk.trim;
    interventions += acted ? 1 : 0;
    if (chunk.prompt) prompt = chunk.prompt;
    curve.add({ ...chunk, drift: null, dropped: null, acted });
    $("video").setAttribute("aria-label", `Video of: ${prompt}`);
  },
});

const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : player.push(unpack(data)));
socket.onclose = ({ reason }) => become("closed", reason || "The connection is lost: reload the page to go on.");

function send(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function hear(message) {
  switch (message.type) {
    case "hello":
      greet(message);
      break;
    case "queue":
      become("queued", `Waiting for the device: place ${message.place} of ${message.waiting}.`);
      break;
    case "started":
      if (message.seed !== null) player.then(() => showBranch(message));
      become("preparing");
      player.then(() => link(message.take));
      break;
    case "stopped":
      branchable = message.branch;
      player.then(() => {
        become("ready", message.reason ?? `Stopped after ${seconds(message.frames)} s.`);
        if (message.reason) complain(message.reason);
      });
      break;
    case "error":
      complain(message.message);
      break;
  }
}

function greet(message) {
  offer = message;
  const [height, width] = offer.size;
  player.fps = offer.fps;
  $("model").textContent = `${offer.model} · ${width}×${height} · ${offer.fps} frames/s`;
  $("now").style.setProperty("--shape", width / height);
  document.body.classList.toggle("small", Math.min(width, height) < 256);
  [$("video").width, $("video").height] = [width, height];
  for (const [id, values] of [["p", offer.shares], ["cache", offer.caches]]) {
    $(id).replaceChildren(...values.map((value) => new Option(value)));
  }
  $("cache-field").hidden = offer.caches.length < 2;
  showSwitches();
  $("lam").value = offer.lam;
  $("prompt").value ||= offer.prompt;
  showLam();
  become("ready");
}

function showSwitches() {
  const known = offer.switches[$("cache").value];
  $("switch").replaceChildren(...known.map((name) => new Option(SWITCHES[name], name)));
  $("switch-field").hidden = known.length < 2;
}

const SAID = {
  ready: "Ready.", preparing: "Preparing the first chunk …", playing: "Playing.", stopping: "Stopping …",
};

function become(next, said) {
  if (state === "closed") return;
  state = next;
  const running = ["queued", "preparing", "playing", "stopping"].includes(state);
  $("status").dataset.state = state;
  $("status").textContent = said ?? SAID[state];
  $("go").textContent = running ? "Apply prompt" : "Start";
  $("go").disabled = state === "closed" || state === "stopping";
  $("stop").disabled = !running || state === "stopping";
  $("branch").disabled = state === "closed" || !(state === "playing" || (state === "ready" && branchable));
  $("prompt-help").textContent = running ? "A new prompt takes effect at the next chunk." : "";
  $("controls").classList.toggle("locked", running);
  for (const input of document.querySelectorAll(".fixed :is(input, select, button)")) input.disabled = running;
  if (state === "preparing") $("hint").hidden = true;
}

function tell() {
  const acts = `${interventions} intervention${interventions === 1 ? "" : "s"}`;
  $("numbers").textContent = `${seconds(reported)} s · ${player.rate.toFixed(1)} frames/s · ${acts}`;
}

function seconds(frames) {
  return (frames / (offer?.fps ?? 16)).toFixed(1);
}

function complain(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = false;
}

function link(take) {
  for (const kind of ["mp4", "json"]) {
    $(kind).href = `takes/${take}.${kind}`;
    $(kind).removeAttribute("aria-disabled");
  }
}

function showBranch({ frame, seed }) {
  const [from, to] = [$("video"), $("parent")];
  [to.width, to.height] = [from.width, from.height];
  to.getContext("2d").drawImage(from, 0, 0);
  $("before-caption").textContent = `Branched at ${seconds(frame)} s with seed ${seed}.`;
  $("before").hidden = false;
  curve.branch();
}

function steering() {
  return { trim: $("trim").checked, lam: Number($("lam").value), switch: $("switch").value };
}

function steer() {
  if (["queued", "preparing", "playing"].includes(state)) send({ type: "steer", prompt, ...steering() });
}

function showLam() {
  $("lam-value").textContent = Number($("lam").value).toFixed(1);
  $("lam").disabled = !$("trim").checked;
}

$("controls").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("error").hidden = true;
  const wanted = $("prompt").value.trim();
  if (!wanted) return complain("The prompt is empty: say what the video should show.");
  prompt = wanted;
  if (state !== "ready") return steer();
  player.clear();
  curve.clear();
  $("before").hidden = true;
  [interventions, reported] = [0, 0];
  if (picture) socket.send(picture);
  become("preparing");
  send({
    type: "start", prompt, seed: Number($("seed").value), p: Number($("p").value),
    cache: $("cache").value, picture: picture !== null, ...steering(),
  });
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("controls").requestSubmit();
});
$("stop").addEventListener("click", () => {
  become("stopping");
  send({ type: "stop" });
});
$("branch").addEventListener("click", () => {
  if (!$("branch-seed").reportValidity()) return;
  $("error").hidden = true;
  send({ type: "branch", seed: Number($("branch-seed").value) });
  $("branch-seed").value = Number($("branch-seed").value) + 1;
});
$("trim").addEventListener("change", () => {
  showLam();
  steer();
});
$("lam").addEventListener("input", showLam);
$("lam").addEventListener("change", steer);
$("cache").addEventListener("change", showSwitches);
$("overlay").addEventListener("change", () => {
  player.overlay = $("overlay").checked;
  player.drawMap();
});
new ResizeObserver(() => player.drawMap()).observe($("map"));

async function take(file) {
  if (!file || !["ready", "connecting"].includes(state)) return;
  $("error").hidden = true;
  try {
    const image = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST / Math.max(image.width, image.height));
    const canvas = new OffscreenCanvas(Math.ceil(scale * image.width), Math.ceil(scale * image.height));
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    picture = await canvas.convertToBlob({ type: "image/png" });
  } catch {
    return complain("This is no picture that the browser can read.");
  }
  showPicture();
}

function showPicture() {
  URL.revokeObjectURL($("preview").src);
  if (picture) $("preview").src = URL.createObjectURL(picture);
  for (const id of ["preview", "unpicture"]) $(id).hidden = !picture;
  $("drop-help").hidden = picture !== null;
  $("file-label").textContent = picture ? "Another …" : "Start picture …";
}

$("file").addEventListener("change", () => {
  take($("file").files[0]);
  $("file").value = "";
});
$("unpicture").addEventListener("click", () => {
  picture = null;
  showPicture();
  $("file").focus();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, () => document.body.classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
