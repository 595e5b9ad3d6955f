// How pages talk to the server: JSON, binary arrays, and errors in words.

export class ApiError extends Error {
  /** @param {string} code stable word; "unreachable" where no server answered */
  constructor(code, message, status = 0, field = null) {
    super(message);
    Object.assign(this, { code, status, field });
  }
}

/** Return the answer with its bytes: a server may also end in the middle of them. */
async function ask(path, options) {
  let answer, bytes;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
    bytes = await answer.arrayBuffer();
  } catch {
    throw new ApiError("unreachable", "The server does not answer. Start it again; this page goes on by itself.");
  }
  if (answer.ok) return { answer, bytes };
  const said = parsed(bytes)?.error ?? {};
  throw new ApiError(said.code ?? "failed", said.message ?? `The server said ${answer.status}.`, answer.status, said.field);
}

/** Read JSON; what was cut short, or what something else on this port gave, is no answer. */
function parsed(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new ApiError("unreachable", "The answer was cut short, or is not of this server. This page asks again by itself.");
  }
}

const posted = (body) =>
  body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };

/** GET or, with a body, POST JSON; returns JSON. */
export async function json(path, body) {
  return parsed((await ask(path, posted(body))).bytes);
}

/** POST the bytes of a file; returns JSON. */
export async function upload(path, bytes) {
  const headers = { "content-type": "application/octet-stream" };
  return parsed((await ask(path, { method: "POST", headers, body: bytes })).bytes);
}

/** GET or POST; returns {header, bytes}: what the header x-foveal-array says, and an ArrayBuffer. */
export async function binary(path, body, options = {}) {
  const { answer, bytes } = await ask(path, { ...posted(body), ...options });
  return { header: JSON.parse(answer.headers.get("x-foveal-array") ?? "{}"), bytes };
}

/** Whether the same request may be answered later: no server, one of another start or project, or none that has room. */
export function isPassing(error) {
  return error instanceof ApiError && (["unreachable", "other_project", "not_found"].includes(error.code) || [401, 408, 429, 503, 504].includes(error.status));
}

/** Call `again` until it is answered, once a second or so. */
export async function whenBack(again, isLater = (error) => error.code === "unreachable") {
  for (;;) {
    try {
      return await again();
    } catch (error) {
      if (!isLater(error)) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}
