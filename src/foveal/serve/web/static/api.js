// How pages talk to the server: JSON, binary arrays, and errors in words.

export class ApiError extends Error {
  /** @param {string} code stable word; "unreachable" where no server answered */
  constructor(code, message, status = 0, field = null) {
    super(message);
    Object.assign(this, { code, status, field });
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The server does not answer. Start it again; this page goes on by itself.");
  }
  if (answer.ok) return answer;
  const said = (await whole(answer.json()))?.error;
  throw new ApiError(said?.code ?? "failed", said?.message ?? `The server said ${answer.status}.`, answer.status, said?.field);
}

/** Wait for the rest of an answer; one that was cut short, or that something else gave, is none. */
async function whole(body) {
  try {
    return await body;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The answer was cut short, or is not of this server. This page asks again by itself.");
  }
}

/** GET or, with a body, POST JSON; returns JSON. */
export async function json(path, body, options = {}) {
  const sent = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return whole((await ask(path, { ...sent, ...options })).json());
}

/** POST a file as it is; returns JSON. */
export async function upload(path, file, options = {}) {
  const sent = { method: "POST", headers: { "content-type": file.type || "application/octet-stream" }, body: file };
  return whole((await ask(path, { ...sent, ...options })).json());
}

/** GET or POST; returns {header, bytes}: what the header x-foveal-array says, and an ArrayBuffer. */
export async function binary(path, body, options = {}) {
  const sent = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await ask(path, { ...sent, ...options });
  return { header: JSON.parse(answer.headers.get("x-foveal-array") ?? "{}"), bytes: await whole(answer.arrayBuffer()) };
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
