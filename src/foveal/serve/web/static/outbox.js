// Changes on their way to the server. Each waits in the browser's storage until the server says that it is kept, and is
// sent again under the same name as long as that is not so: the server does it once.

import { isPassing } from "/static/api.js";

/** A name that nothing else has, without the parts of crypto that only some addresses get. */
export const newName = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A name of this window, that stays when it is loaded again: undo goes through its own changes. */
export function windowName() {
  // A copied tab copies its storage too: only a page that is loaded again may take the name over.
  const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const name = (again && sessionStorage.getItem("foveal.window")) || newName();
  sessionStorage.setItem("foveal.window", name);
  return name;
}

export class Outbox {
  /**
   * @param {string} project tells projects at one address apart
   * @param {string} client name of this window
   * @param {(change: object) => Promise<object>} write sends one change
   * @param {(state: {waiting: number, gone: string|null}) => void} onState told of every change
   * @param {(answer: object, action: object) => void} onDone told what the server answered
   * @param {(error: ApiError, action: object) => void} onRefused told of what cannot be done
   */
  constructor(project, client, write, { onState, onDone, onRefused }) {
    Object.assign(this, { prefix: `foveal.outbox.${project}.`, client, write, onState, onDone, onRefused, gone: null, sending: false, waits: new Map() });
  }

  keys() {
    return Object.keys(localStorage).filter((key) => key.startsWith(this.prefix)).sort();
  }

  /** Put a change in; resolves with the server's answer, or rejects with its refusal. */
  add(action) {
    const request = newName();
    const number = String(Date.now()).padStart(15, "0") + String((this.count = (this.count ?? 0) + 1)).padStart(6, "0");
    localStorage.setItem(this.prefix + number + request, JSON.stringify({ client: this.client, request, action }));
    const wait = {};
    wait.answered = new Promise((resolve, reject) => Object.assign(wait, { resolve, reject }));
    this.waits.set(request, wait);
    this.send();
    return wait.answered;
  }

  /** Resolves when each change of this window so far has its answer. */
  async answered() {
    await Promise.allSettled([...this.waits.values()].map((one) => one.answered));
  }

  /** Send what waits, in its order, until nothing does. */
  async send() {
    this.tell();
    if (this.sending) return;
    this.sending = true;
    try {
      for (let key; (key = this.keys()[0]); ) {
        const body = JSON.parse(localStorage.getItem(key) ?? "null");
        if (body) await this.sendOne(key, body);
        this.tell();
      }
    } finally {
      this.sending = false;
      this.tell();
    }
  }

  async sendOne(key, body) {
    const wait = this.waits.get(body.request);
    for (;;) {
      try {
        const answer = await this.write(body);
        this.gone = null;
        this.finish(key, body);
        this.onDone(answer, body.action);
        wait?.resolve(answer);
        return;
      } catch (error) {
        if (!isPassing(error)) {
          this.gone = null;
          this.finish(key, body);
          this.onRefused(error, body.action);
          wait?.reject(error);
          return;
        }
        this.gone = error.message;
        this.tell();
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }

  finish(key, body) {
    localStorage.removeItem(key);
    this.waits.delete(body.request);
  }

  tell() {
    this.onState({ waiting: this.keys().length, gone: this.gone });
  }
}
