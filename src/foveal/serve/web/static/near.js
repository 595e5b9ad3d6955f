// The image that a point of the map stands for, small, beside the point.

const GAP = 14; // pixels between the point and its picture

export class Near {
  /** @param {HTMLElement} figure an image and its words, placed over the canvas that lies in the same element */
  constructor(figure, canvas) {
    Object.assign(this, { figure, canvas, image: figure.querySelector("img"), words: figure.querySelector("figcaption") });
    this.image.addEventListener("load", () => { this.image.style.visibility = "visible"; });
  }

  /** Show a picture at a point of the canvas, on the side where there is more room. */
  show(address, words, left, top) {
    const { canvas, figure, image } = this;
    figure.hidden = false;
    if (image.getAttribute("src") !== address) {
      image.style.visibility = "hidden"; // a browser shows the picture of before until this one is there
      image.src = address;
    }
    this.words.textContent = words;
    const x = left < canvas.clientWidth / 2 ? left + GAP : left - GAP - figure.offsetWidth;
    const y = Math.max(0, Math.min(top - figure.offsetHeight / 2, canvas.clientHeight - figure.offsetHeight));
    figure.style.transform = `translate(${canvas.offsetLeft + x}px, ${canvas.offsetTop + y}px)`;
  }

  hide() {
    this.figure.hidden = true;
  }
}
