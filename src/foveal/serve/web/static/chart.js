// Accuracy over the number of labels: a line, and the same in words.

const [LEFT, RIGHT, TOP, BOTTOM] = [34, 294, 8, 100];

function element(name, attributes, text = "") {
  const found = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.textContent = text;
  return found;
}

export function drawChart(svg, words, { num_labels, num_held_out, num_images, history }) {
  const last = history.at(-1);
  words.textContent = last
    ? `${Math.round((100 * last.right) / last.held_out)} %: the head is right on ${last.right} of ${last.held_out} held-out labels. ${num_labels} of ${num_images.toLocaleString("en")} images are labelled.`
    : `${num_labels} of ${num_images.toLocaleString("en")} images are labelled, ${num_held_out} of them held out. Label images of two classes: then a head learns, and one image in five is held out to measure it.`;
  svg.toggleAttribute("hidden", !last);
  const most = Math.max(...history.map((one) => one.num_labels), 1);
  const places = history.map(({ num_labels: at, right, held_out }) => [LEFT + ((RIGHT - LEFT) * at) / most, BOTTOM - ((BOTTOM - TOP) * right) / held_out]);
  const parts = [0, 0.5, 1].flatMap((share) => {
    const y = BOTTOM - (BOTTOM - TOP) * share;
    return [
      element("line", { x1: LEFT, x2: RIGHT, y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.25 }),
      element("text", { x: LEFT - 4, y: y + 3, "text-anchor": "end" }, `${100 * share} %`),
    ];
  });
  parts.push(element("text", { x: RIGHT, y: BOTTOM + 14, "text-anchor": "end" }, most === 1 ? "1 label" : `${most} labels`));
  parts.push(element("polyline", { points: places.map((place) => place.join(",")).join(" "), fill: "none", stroke: "currentColor", "stroke-width": 2 }));
  parts.push(...places.map(([x, y]) => element("circle", { cx: x, cy: y, r: 2.5, fill: "currentColor" })));
  svg.replaceChildren(...parts);
}
