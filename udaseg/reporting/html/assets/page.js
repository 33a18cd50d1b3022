"use strict";
// Without this script the page shows everything in rows; with it, sliders and classes lifted out.
(() => {
  const DIM = 0.18;
  const shots = [];
  let lifted = null;
  document.documentElement.classList.add("scripted");

  const colors = new Map();
  for (const button of document.querySelectorAll("button[data-rgb]")) {
    colors.set(button.dataset.lift, button.dataset.rgb.split(",").map(Number));
  }

  // A canvas with a picture; of a mask, all but the lifted class fades into the photograph.
  function painted(layer, photo) {
    const wide = layer.image.naturalWidth;
    const high = layer.image.naturalHeight;
    const canvas = document.createElement("canvas");
    canvas.width = wide;
    canvas.height = high;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(layer.image, 0, 0);
    const color = layer.mask && lifted !== null ? colors.get(lifted) : undefined;
    if (color === undefined) return canvas;
    const whole = pen.getImageData(0, 0, wide, high);
    const out = new Uint8ClampedArray(whole.data);
    pen.clearRect(0, 0, wide, high);
    pen.drawImage(photo.image, 0, 0, wide, high);
    const under = pen.getImageData(0, 0, wide, high).data;
    for (let at = 0; at < out.length; at += 4) {
      const same = out[at] === color[0] && out[at + 1] === color[1] && out[at + 2] === color[2];
      if (same) continue;
      const grey = 0.3 * under[at] + 0.59 * under[at + 1] + 0.11 * under[at + 2];
      for (let part = 0; part < 3; part += 1) {
        out[at + part] = DIM * out[at + part] + (1 - DIM) * grey;
      }
    }
    pen.putImageData(new ImageData(out, wide, high), 0, 0);
    return canvas;
  }

  function chooser(label, layers, chosen) {
    const select = document.createElement("select");
    layers.forEach((layer, number) => {
      const option = document.createElement("option");
      option.value = String(number);
      option.textContent = layer.title;
      option.selected = number === chosen;
      select.append(option);
    });
    const wrap = document.createElement("label");
    wrap.append(`${label} `, select);
    return [wrap, select];
  }

  function makeShot(article) {
    const name = article.querySelector("h3").firstChild.textContent;
    const layers = [...article.querySelectorAll("img")].map((image) => ({
      image, title: image.dataset.title, mask: image.dataset.mask === "1",
    }));
    if (layers.length < 2) return;
    const stage = document.createElement("div");
    stage.className = "stage";
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min: "0", max: "100", value: "50" });
    range.setAttribute("aria-label", `where the two pictures of ${name} meet, in percent`);
    const choose = document.createElement("div");
    choose.className = "choose";
    const [leftLabel, left] = chooser("left", layers, Math.min(1, layers.length - 1));
    const [rightLabel, right] = chooser("right", layers, Math.min(2, layers.length - 1));
    if (layers.length === 2) left.value = "0";
    choose.append(leftLabel, rightLabel);
    stage.append(canvas, range, choose);
    article.querySelector(".strip").before(stage);
    let sides = null;

    function draw() {
      if (sides === null) {
        sides = [left, right].map((select) => painted(layers[Number(select.value)], layers[0]));
        canvas.width = sides[0].width;
        canvas.height = sides[0].height;
        const names = [left, right].map((select) => layers[Number(select.value)].title);
        canvas.setAttribute("aria-label", `${name}: ${names[0]} on the left, ${names[1]} on the right`);
      }
      const pen = canvas.getContext("2d");
      const { width, height } = canvas;
      const cut = Math.round((Number(range.value) / 100) * width);
      pen.drawImage(sides[1], 0, 0);
      if (cut > 0) pen.drawImage(sides[0], 0, 0, cut, height, 0, 0, cut, height);
      pen.fillStyle = "#ffffff";
      pen.fillRect(cut - 1, 0, 2, height);
    }
    function anew() {
      sides = null;
      draw();
    }
    function drag(event) {
      const box = canvas.getBoundingClientRect();
      range.value = String((100 * (event.clientX - box.left)) / box.width);
      draw();
    }
    range.addEventListener("input", draw);
    left.addEventListener("change", anew);
    right.addEventListener("change", anew);
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons !== 0) drag(event);
    });
    shots.push(anew);
    Promise.all(layers.map((layer) => layer.image.decode())).then(anew, () => stage.remove());
  }

  function lift(name) {
    lifted = lifted === name ? null : name;
    for (const part of document.querySelectorAll("[data-class]")) {
      part.classList.toggle("dim", lifted !== null && part.dataset.class !== lifted);
    }
    for (const button of document.querySelectorAll("button[data-lift]")) {
      button.setAttribute("aria-pressed", String(button.dataset.lift === lifted));
    }
    for (const anew of shots) anew();
  }

  for (const button of document.querySelectorAll("button[data-lift]")) {
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => lift(button.dataset.lift));
  }
  document.querySelectorAll("article.shot").forEach(makeShot);
})();
