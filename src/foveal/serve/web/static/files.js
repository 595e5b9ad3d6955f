// Pictures that people bring: dropped anywhere on the page, and read before they are sent.

const $ = (id) => document.getElementById(id);

/** Call `onFile` with each picture that is dropped on the page. */
export function acceptDrops(onFile) {
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const shown = (on) => { depth = on ? depth : 0; $("drop").hidden = !on; };
  addEventListener("dragenter", (event) => { if (holdsFile(event)) { depth++; shown(true); } });
  addEventListener("dragleave", (event) => { if (holdsFile(event) && --depth <= 0) shown(false); });
  addEventListener("dragover", (event) => { if (holdsFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    shown(false);
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0]);
  });
}

/** Return the bytes of a file of at most `most`; what cannot be sent is said before it is. */
export async function contentOf(file, most) {
  const megabytes = (size) => `${(size / 1e6).toFixed(size < 1e7 ? 1 : 0)} MB`;
  if (file.size > most) {
    throw new Error(`${file.name} has ${megabytes(file.size)}; a picture may have ${megabytes(most)}. Make it smaller first.`);
  }
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error(`${file.name} cannot be read; choose the file of a picture.`);
  }
}
