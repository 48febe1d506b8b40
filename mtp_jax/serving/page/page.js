"use strict";
// Sends a recording to the service and shows, segment by segment, what each decoder call emitted.

const $ = (id) => document.getElementById(id);
const RATE = 16000; // Hz of what the page records
const STEP = 45; // ms between blocks
const still = matchMedia("(prefers-reduced-motion: reduce)");

let strategies = new Map(); // what the service says of each, by name
let recording = null; // {blob, name} that was sent last
let running = null; // AbortController of the request under way
let recorder = null; // MediaRecorder

// ---- The API key, of services that have one: asked for, and forgotten with the tab

const KEPT = "mtp_jax.key";
let key = sessionStorage.getItem(KEPT) || "";

function request(path, options = {}) {
  return fetch(path, key ? { ...options, headers: { Authorization: `Bearer ${key}` } } : options);
}

function ask() {
  const refused = key && "The service does not take this API key: give another.";
  say(refused || "The service asks for its API key.", refused && "wrong");
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

async function use(given) {
  if (/[^\x21-\x7e]/.test(given)) return say("An API key has no spaces, and ASCII characters only.", "wrong");
  key = given;
  say("");
  if (!(await begin())) return;
  sessionStorage.setItem(KEPT, key);
  $("key-form").hidden = true;
  if (recording) await transcribe();
}

// ---- What the service offers

// Whether it may be used; a person is asked for the key otherwise.
async function begin() {
  const response = await request("v1/models");
  if (response.status === 401) return ask();
  const model = (await response.json()).data[0];
  $("model").textContent = model.id;
  strategies = new Map(model.strategies.map((strategy) => [strategy.name, strategy]));
  $("strategy").replaceChildren();
  for (const name of strategies.keys()) $("strategy").add(new Option(title(name), name));
  $("strategy").value = model.strategy;
  const languages = model.languages.map((code) => [spoken(code), code]).sort(([a], [b]) => a.localeCompare(b));
  $("language").length = 1; // "detected" stays
  for (const [name, code] of languages) $("language").add(new Option(name, code));
  $("language-label").hidden = !languages.length;
  $("tau").value = model.tau;
  controls();
  $("live").hidden = !model.live_sessions;
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    $("record").disabled = $("live").disabled = true;
    say("The microphone needs https, or this machine's own address: choose a file.");
  }
  return true;
}

function controls() {
  const { summary, takes_tau: used } = chosen();
  $("tau").disabled = !used;
  $("tau-label").classList.toggle("off", !used);
  $("tau-value").value = Number($("tau").value).toFixed(2);
  $("about").textContent = summary;
}

// Without a service there is none: what is sent then says so.
const NONE = { name: "", summary: "", calls_decoder: true, takes_tau: false };
const chosen = () => strategies.get($("strategy").value) || NONE;
const title = (name) => name.replaceAll("_", " ");

// English names, as the page is in English; of codes that a browser does not know, the code.
const names = new Intl.DisplayNames(["en"], { type: "language" });
const spoken = (code) => names.of(code) || code;
const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

const unreachable = () => say("The service cannot be reached: is it running?", "wrong");

// ---- Recordings

async function record() {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  } catch (error) {
    return say(`The microphone cannot be used (${error.name}): allow it, or choose a file.`, "wrong");
  }
  const parts = [];
  const started = Date.now();
  recorder = new MediaRecorder(stream);
  const clock = setInterval(() => say(`Recording, ${((Date.now() - started) / 1000).toFixed(0)} s`), 500);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    clearInterval(clock);
    stream.getTracks().forEach((track) => track.stop());
    const heard = new Blob(parts, { type: recorder.mimeType });
    recorder = null;
    $("record").setAttribute("aria-pressed", "false");
    $("record-label").textContent = "Record";
    try {
      await take(await asWav(heard), "microphone.wav");
    } catch {
      say("The browser cannot read what it recorded: choose a file.", "wrong");
    }
  };
  recorder.start();
  $("record").setAttribute("aria-pressed", "true");
  $("record-label").textContent = "Stop";
  say("Recording");
}

// The browser reads formats that the service does not (WebM, MP4): to 16-bit mono WAV.
async function asWav(blob) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const audio = await context.decodeAudioData(await blob.arrayBuffer());
  const count = audio.length;
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * count, true);
  const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
  for (let i = 0; i < count; i++) {
    const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, mean)) * 32767), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

async function take(blob, name) {
  if ($("player").src) URL.revokeObjectURL($("player").src);
  recording = { blob, name };
  $("player").src = URL.createObjectURL(blob);
  $("player").hidden = false;
  await transcribe();
}

// ---- Transcripts

async function transcribe() {
  if (!recording) return;
  if (running) running.abort();
  const mine = (running = new AbortController());
  const view = new View(chosen());
  $("stop").hidden = false;
  $("again").disabled = false;
  say(`Decoding ${recording.name}`, "busy");
  const slow = setTimeout(() => view.calls || say(
    `Decoding ${recording.name}. A strategy's first use takes longer: its programs are compiled.`, "busy"), 5000);
  try {
    if (await send(recording, mine.signal, view)) say(view.summary());
    else ask();
  } catch (error) {
    if (error.name === "AbortError") {
      if (running === mine) say("Cancelled.");
    } else {
      say(error.message, "wrong");
    }
  } finally {
    clearTimeout(slow);
    if (running === mine) {
      running = null;
      $("stop").hidden = true;
    }
  }
}

// Whether the service takes the key.
async function send(what, signal, view) {
  let response = await post(what, signal);
  if (response.status === 400) {
    const { error } = await response.clone().json();
    if (error.code === "invalid_audio" && !what.read) {
      const wav = await asWav(what.blob).catch(() => null);
      if (wav) {
        what.blob = wav;
        what.read = true;
        response = await post(what, signal);
      }
    }
  }
  if (response.status === 401) return false;
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body ? sentence(body.error.message) : `The service answered ${response.status}.`);
  }
  for await (const event of events(response)) {
    if (event.error) throw new Error(sentence(event.error.message));
    if (event.type === "transcript.text.delta") await view.segment(event, signal);
    if (event.type === "transcript.text.done") view.done(event);
  }
  return true;
}

async function post(what, signal) {
  const form = new FormData();
  form.append("strategy", $("strategy").value);
  if (!$("tau").disabled) form.append("tau", $("tau").value);
  if ($("language").value) form.append("language", $("language").value);
  form.append("stream", "true");
  form.append("include[]", "blocks");
  form.append("file", what.blob, what.name);
  try {
    return await request("v1/audio/transcriptions", { method: "POST", body: form, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached: is it running?");
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = text.slice(0, end).replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
  throw new Error("The answer broke off: decode again.");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

class View {
  constructor(strategy) {
    this.strategy = strategy;
    this.tokens = this.calls = 0;
    this.words = false;
    this.end = null;
    $("transcript").replaceChildren();
    $("result").hidden = false;
    $("note").textContent = "";
    $("words").replaceChildren();
    $("times").hidden = $("spoken-part").hidden = true;
    this.counts();
  }

  // A segment arrives whole; its blocks appear one after another, in the order of their calls.
  async segment(event, signal) {
    const area = $("transcript");
    const line = document.createElement("p");
    area.setAttribute("aria-busy", "true");
    line.dataset.start = clock(event.start);
    area.append(line);
    for (const word of event.words) $("words").append(this.word(word));
    $("times").hidden = !$("words").children.length;
    for (const block of event.blocks) {
      signal.throwIfAborted();
      // A space between blocks belongs to neither, so that lines break well.
      if (/^\s/.test(block.tokens[0].text)) line.append(" ");
      line.append(this.block(block));
      this.tokens += block.tokens.length;
      this.calls = this.calls + (block.call ? 1 : 0);
      this.counts();
      if (!still.matches) await new Promise((done) => setTimeout(done, STEP));
    }
    area.setAttribute("aria-busy", "false");
    this.words ||= event.delta.trim() !== "";
  }

  word({ word, start, end, confidence }) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const time = document.createElement("span");
    time.textContent = clock(start);
    button.type = "button";
    button.className = confidence < 0.5 ? "unsure" : "";
    button.title = `${start.toFixed(2)} to ${end.toFixed(2)} s, confidence ${confidence.toFixed(2)}`;
    button.append(time, ` ${word}`);
    button.onclick = () => {
      $("player").currentTime = start;
      $("player").play();
    };
    item.append(button);
    return item;
  }

  block({ call, tokens }) {
    const found = document.createElement("span");
    found.className = call ? "block" : "block plain";
    const count = `${tokens.length} token${tokens.length === 1 ? "" : "s"}`;
    if (call) found.title = `call ${call}: ${count}`;
    const blank = tokens.every(({ text }) => !text.trim());
    for (const [i, { text, end }] of tokens.entries()) {
      const token = document.createElement("span");
      token.className = end ? "token end" : "token";
      token.textContent = end ? "■" : i ? text : blank ? "\u00a0" : text.trimStart();
      if (end) token.setAttribute("aria-hidden", "true");
      found.append(token);
    }
    return found;
  }

  done(event) {
    this.end = event;
    this.calls = event.decoder_calls;
    this.counts();
    $("spoken").textContent = event.language ? spoken(event.language) : "";
    $("spoken-part").hidden = !event.language || !this.words;
    $("note").textContent = !this.words ? "" : !this.strategy.calls_decoder
      ? "No decoder calls: this text is the encoder's own."
      : "Against one call a token; ■ is the token that ends a text, and counts. Blocks of a segment"
        + " are shown one after another, once it is finished.";
    if (!this.words) {
      const nothing = document.createElement("p");
      nothing.className = "hint";
      nothing.textContent = "Nobody speaks in this recording.";
      $("transcript").append(nothing);
    }
  }

  counts() {
    const saved = this.tokens - this.calls;
    const counted = this.strategy.calls_decoder;
    $("tokens").textContent = this.tokens;
    $("calls").textContent = this.calls;
    $("saved").textContent = !counted ? "–" : this.calls && saved > 0
      ? `${saved} (${(this.tokens / this.calls).toFixed(1)}× fewer)` : saved;
  }

  summary() {
    const { duration, decode_seconds: spent } = this.end;
    return `${duration.toFixed(1)} s of audio, decoded in ${spent.toFixed(2)} s with ${title(this.strategy.name)}.`;
  }
}

// ---- Wiring

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  use($("key").value.trim()).catch(unreachable);
};
$("record").onclick = record;
$("file").onchange = (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) take(file, file.name);
};
$("strategy").onchange = () => { controls(); transcribe(); };
$("language").onchange = transcribe;
$("tau").oninput = controls;
$("tau").onchange = transcribe;
$("again").onclick = transcribe;
$("stop").onclick = () => running && running.abort();
$("copy").onclick = async () => {
  const lines = [...$("transcript").querySelectorAll("p")].map((p) => {
    const copy = p.cloneNode(true);
    copy.querySelectorAll(".end").forEach((mark) => mark.remove());
    return copy.textContent.trim();
  });
  await navigator.clipboard.writeText(lines.filter(Boolean).join("\n"));
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy text"), 1500);
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});
begin().catch(unreachable);
