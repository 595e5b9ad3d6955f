// Changes on their way to the server. Each waits here and in the browser's storage until the server says that it is kept,
// and is sent again under the same name as long as that is not so: the server does it once.

import { isPassing } from "/static/api.js";

const LEFT_MS = 5000; // age from which a change of another window is sent by this one too
const DIGITS = 15; // of the time in its key

/** A name that nothing else has, without the parts of crypto that only some addresses get. */
export const newName = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A name of this window, that stays when it is loaded again: undo goes through its own changes. */
export function windowName() {
  // A copied tab copies its storage too: only a page that is loaded again may take the name over.
  const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
  try {
    const name = (again && sessionStorage.getItem("foveal.window")) || newName();
    sessionStorage.setItem("foveal.window", name);
    return name;
  } catch {
    return newName();
  }
}

export class Outbox {
  /**
   * @param {string} project tells projects at one address apart
   * @param {string} client name of this window
   * @param {(change: object) => Promise<object>} write sends one change
   * @param {(state: {waiting: number, gone: string|null, isKept: boolean}) => void} onState told of every change
   * @param {(answer: object, change: object) => void} onDone told what the server answered
   * @param {(error: ApiError, change: object) => void} onRefused told of what cannot be done
   */
  constructor(project, client, write, { onState, onDone, onRefused }) {
    const mine = new Map(); // key -> what this window has changed and the server has not kept yet, in its order
    Object.assign(this, { prefix: `foveal.outbox.${project}.`, client, write, onState, onDone, onRefused, gone: null, sending: false, count: 0, mine });
    for (const key of this.stored()) {
      const change = read(key);
      if (change?.client === client) mine.set(key, { change, isStored: true }); // from before it was loaded again
    }
  }

  /** Keys of what waits in the browser, of all windows. */
  stored() {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(this.prefix)).sort();
    } catch {
      return []; // storage is forbidden
    }
  }

  get waiting() {
    return new Set([...this.stored(), ...this.mine.keys()]).size;
  }

  /** Whether a closed window loses nothing: all that waits is in the browser's storage. */
  get isKept() {
    return [...this.mine.values()].every((one) => one.isStored);
  }

  /** Put a change in; resolves with the server's answer, or rejects with its refusal. */
  add(action) {
    const change = { client: this.client, request: newName(), action };
    const key = this.prefix + String(Date.now()).padStart(DIGITS, "0") + String(++this.count).padStart(6, "0") + change.request;
    const wait = { change, isStored: keep(key, change) };
    wait.answered = new Promise((resolve, reject) => Object.assign(wait, { resolve, reject }));
    this.mine.set(key, wait);
    this.send();
    return wait.answered;
  }

  /** Resolves when each change of this window so far has its answer. */
  async answered() {
    await Promise.allSettled([...this.mine.values()].map((one) => one.answered));
  }

  /** Send what waits, in its order, until nothing does. */
  async send() {
    this.tell();
    if (this.sending) return;
    this.sending = true;
    try {
      for (let next; (next = this.next()); ) await this.sendOne(...next);
    } finally {
      this.sending = false;
      this.tell();
    }
  }

  /** What to send now: of this window first, then what closed ones have left. */
  next() {
    for (const own of this.mine) return own;
    const left = this.stored().find((key) => Date.now() - Number(key.slice(this.prefix.length).slice(0, DIGITS)) > LEFT_MS);
    return left && [left, { change: read(left) }];
  }

  async sendOne(key, { change, resolve, reject }) {
    let answer;
    while (change && !answer) {
      try {
        answer = await this.write(change);
      } catch (error) {
        if (!isPassing(error)) {
          this.finish(key);
          this.onRefused(error, change);
          return reject?.(error);
        }
        this.gone = error.message;
        this.tell();
        await new Promise((after) => setTimeout(after, 1000));
      }
    }
    this.finish(key);
    if (change) this.onDone(answer, change);
    return resolve?.(answer);
  }

  finish(key) {
    this.gone = null;
    this.mine.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      // it was never there
    }
  }

  tell() {
    this.onState({ waiting: this.waiting, gone: this.gone, isKept: this.isKept });
  }
}

/** Keep a change in the browser; says whether it had room. */
function keep(key, change) {
  try {
    localStorage.setItem(key, JSON.stringify(change));
    return true;
  } catch {
    return false;
  }
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}
