"use strict";
// In the thread of the audio: what the microphone hears becomes 16-bit PCM, in pieces of 0.1 s. Any
// message asks for the end: the rest is sent, and null behind it.

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.ended = false;
    this.port.onmessage = () => this.end();
  }

  end() {
    this.ended = true;
    if (this.filled) this.port.postMessage(this.piece.slice(0, this.filled));
    this.port.postMessage(null);
  }

  process([channels]) {
    if (this.ended) return false;
    const [heard] = channels;
    for (const sample of heard || []) {
      this.piece[this.filled++] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
      if (this.filled === this.piece.length) {
        this.port.postMessage(this.piece.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
