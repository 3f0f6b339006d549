const PROTOCOL = "llmstream.voice.v1";
const PING_EVERY = 5_000;
const PONG_WITHIN = 8_000;
const BACKLOG = 65_536; // bytes that the browser has not got rid of: two seconds of speech

/** One WebSocket of a call. A line that died without a word is noticed, and dropped. */
export class VoiceSocket {
  rtt = null; // milliseconds
  closed; // resolves with {code, reason, opened}
  #socket;
  #end;
  #late;
  #timer;
  #heard = 0;
  #asked = 0; // when it was pinged last
  #pinged = null; // when, until its pong has come

  /** @param options `within`, the milliseconds until `greeted()`; `onOpen()`, `onMessage(text)`, `onAudio(buffer)` */
  constructor(url, { within, onOpen, onMessage, onAudio }) {
    const socket = (this.#socket = new WebSocket(url, [PROTOCOL]));
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      onOpen();
    };
    socket.onmessage = ({ data }) => {
      this.#heard = performance.now();
      if (typeof data === "string") onMessage(data);
      else onAudio(data);
    };
    this.closed = new Promise((resolve) => {
      this.#end = ({ code = 1006, reason = "" } = {}) => {
        clearTimeout(this.#late);
        clearInterval(this.#timer);
        socket.onopen = socket.onmessage = socket.onclose = null;
        resolve({ code, reason, opened });
      };
    });
    socket.onclose = this.#end;
    this.#late = setTimeout(() => this.drop(), within);
  }

  /** The server has answered: from now on it is asked now and then whether it is still there. */
  greeted() {
    clearTimeout(this.#late);
    this.#timer = setInterval(this.#look, 1_000);
    this.#ping();
  }

  /** Whether it went out. */
  send(message) {
    if (this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Whether it went out: speech that comes late is of no use, so none is kept. */
  sendAudio(frame) {
    const room = this.#socket.readyState === WebSocket.OPEN && this.#socket.bufferedAmount <= BACKLOG;
    if (room) this.#socket.send(frame);
    return room;
  }

  ponged({ t }) {
    this.rtt = performance.now() - t;
    this.#pinged = null;
  }

  /** Take it for closed, whatever the other side does. */
  drop() {
    this.#end();
    this.#socket.close();
  }

  close() {
    this.#socket.close(1000);
  }

  #ping() {
    const t = Math.round(performance.now());
    if (this.send({ type: "ping", t })) this.#pinged = this.#asked = t;
  }

  #look = () => {
    const now = performance.now();
    if (this.#pinged === null) {
      if (now - this.#asked >= PING_EVERY) this.#ping();
    } else if (now - Math.max(this.#pinged, this.#heard) > PONG_WITHIN) {
      this.drop();
    }
  };
}
