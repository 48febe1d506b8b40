"use strict";
// Live captions: sends the microphone to the service, and shows what is said while it is said.

const ITEM = "conversation.item.input_audio_transcription";
const FASTEST = 48000; // Hz that the service takes
let live = null; // Captions under way

class Captions {
  async start() {
    const audio = { channelCount: 1 };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.context = new AudioContext();
    if (this.context.sampleRate > FASTEST) {
      await this.context.close();
      this.context = new AudioContext({ sampleRate: FASTEST });
    }
    await this.context.audioWorklet.addModule("microphone.js");
    this.open = true;
    this.lines = new Map(); // by item
    this.pending = new Set(); // items without their whole text
    this.ending = false; // the microphone is off
    this.ended = false; // so is its last item
    this.empty();
    const place = new URL("v1/realtime", location.href);
    place.protocol = place.protocol.replace("http", "ws");
    this.socket = new WebSocket(place, ["realtime", ...(key ? [`mtp-jax-key.${encoded(key)}`] : [])]);
    this.socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    await new Promise((opened, failed) => {
      this.socket.onopen = opened;
      this.socket.onclose = () => failed(new Error("The service takes no live captions now: try again later."));
    });
    this.socket.onclose = () => this.stop("The service ended the captions.");
    const input = { format: { type: "audio/pcm", rate: this.context.sampleRate }, transcription: {} };
    if ($("language").value) input.transcription.language = $("language").value;
    this.send("session.update", {
      session: { type: "transcription", audio: { input }, include: ["item.input_audio_transcription.hypothesis"] },
    });
    this.node = new AudioWorkletNode(this.context, "microphone", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => this.heard(data);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
  }

  heard(piece) {
    if (piece) return this.send("input_audio_buffer.append", { audio: base64(piece.buffer) });
    if (this.context.state !== "closed") this.context.close();
    this.send("input_audio_buffer.commit");
  }

  send(type, fields = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  empty() {
    $("transcript").replaceChildren();
    $("words").replaceChildren();
    $("times").hidden = $("spoken-part").hidden = true;
    $("result").hidden = false;
    $("note").textContent = "What may still change is grey. Tokens and calls are those of every caption that was"
      + " shown, corrections included.";
    this.count({ tokens: 0, decoder_calls: 0 });
  }

  take(event) {
    if (event.type === "error") return this.refused(event.error);
    if (event.type === "input_audio_buffer.speech_started") this.line(event);
    if (event.type === "input_audio_buffer.committed") {
      this.pending.add(event.item_id);
      this.ended = this.ending;
    }
    if (event.type === `${ITEM}.hypothesis`) {
      this.show(event.item_id, event.committed, event.open);
      this.count(event);
    }
    if (event.type === `${ITEM}.completed`) {
      this.show(event.item_id, event.transcript, "");
      if (!event.transcript) this.lines.get(event.item_id)?.remove();
      this.lines.delete(event.item_id);
      this.pending.delete(event.item_id);
      if ("tokens" in event) this.count(event);
      this.settled();
    }
  }

  settled() {
    if (this.ended && !this.pending.size) this.stop("Captions ended.");
  }

  refused({ code, message }) {
    if (code !== "input_audio_buffer_commit_empty") return this.stop(sentence(message), "wrong");
    this.ended = true;
    this.settled();
  }

  line({ item_id: item, audio_start_ms: start }) {
    const line = document.createElement("p");
    line.dataset.start = clock(start / 1000);
    line.className = "caption";
    for (const kind of ["committed", "open"]) {
      const part = document.createElement("span");
      part.className = kind;
      line.append(part, " ");
    }
    this.lines.set(item, line);
    this.pending.add(item);
    $("transcript").append(line);
  }

  show(item, committed, open) {
    const line = this.lines.get(item);
    if (!line) return;
    line.querySelector(".committed").textContent = committed;
    line.querySelector(".open").textContent = open;
  }

  count({ tokens, decoder_calls: calls }) {
    const saved = tokens - calls;
    $("tokens").textContent = tokens;
    $("calls").textContent = calls;
    $("saved").textContent = calls && saved > 0 ? `${saved} (${(tokens / calls).toFixed(1)}× fewer)` : saved;
  }

  // The microphone is off at once. What it heard before may still be on its way here: the commit
  // goes behind it.
  finish() {
    this.stream.getTracks().forEach((track) => track.stop());
    this.ending = true;
    say("Writing the rest", "busy");
    this.node.port.postMessage("end");
  }

  silence() {
    this.stream.getTracks().forEach((track) => track.stop());
    if (this.context.state !== "closed") this.context.close();
  }

  stop(why, kind = "") {
    if (!this.open) return;
    this.open = false;
    this.silence();
    this.socket.close();
    live = null;
    pressed(false);
    say(why, kind);
  }
}

function base64(buffer) {
  let text = "";
  for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}

// A key as a subprotocol, in whose letters some of a key's are missing.
const encoded = (text) => btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");

function pressed(on) {
  $("live").setAttribute("aria-pressed", on);
  $("live-label").textContent = on ? "Stop" : "Live captions";
  $("record").disabled = on;
}

async function captions() {
  if (live) return live.ending ? live.stop("Captions ended.") : live.finish();
  live = new Captions();
  pressed(true);
  try {
    await live.start();
    say("Listening: speak. The first captions may take long, while programs are compiled.");
  } catch (error) {
    const allowed = error.name !== "NotAllowedError" && error.name !== "NotFoundError";
    const why = allowed ? error.message : `The microphone cannot be used (${error.name}): allow it.`;
    if (live.stream) live.silence();
    live = null;
    pressed(false);
    say(why, "wrong");
  }
}

$("live").onclick = captions;
