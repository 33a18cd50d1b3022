"use strict";
// Adds image sliders and class highlighting; without this script all images are shown in rows.
(() => {
  const DIM = 0.18;
  const shots = [];
  let highlighted = null;
  let opacity = 1;
  document.documentElement.classList.add("scripted");

  const colors = new Map();
  for (const button of document.querySelectorAll("button[data-rgb]")) {
    colors.set(button.dataset.lift, button.dataset.rgb.split(",").map(Number));
  }

  // Returns a canvas with the picture; in a mask, all but the highlighted class fade to the photo.
  function paint(layer, photo) {
    const width = layer.image.naturalWidth;
    const height = layer.image.naturalHeight;
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (layer.mask && opacity < 1 && highlighted === null) {
      context.drawImage(photo.image, 0, 0, width, height);
      context.globalAlpha = opacity;
    }
    context.drawImage(layer.image, 0, 0);
    context.globalAlpha = 1;
    const color = layer.mask && highlighted !== null ? colors.get(highlighted) : undefined;
    if (color === undefined) return canvas;
    const original = context.getImageData(0, 0, width, height);
    const output = new Uint8ClampedArray(original.data);
    context.clearRect(0, 0, width, height);
    context.drawImage(photo.image, 0, 0, width, height);
    const photoData = context.getImageData(0, 0, width, height).data;
    for (let offset = 0; offset < output.length; offset += 4) {
      const same = output[offset] === color[0] && output[offset + 1] === color[1] &&
        output[offset + 2] === color[2];
      if (same) continue;
      const grey = 0.3 * photoData[offset] + 0.59 * photoData[offset + 1] +
        0.11 * photoData[offset + 2];
      for (let channel = 0; channel < 3; channel += 1) {
        output[offset + channel] = DIM * output[offset + channel] + (1 - DIM) * grey;
      }
    }
    context.putImageData(new ImageData(output, width, height), 0, 0);
    return canvas;
  }

  function makeSelect(label, layers, chosen) {
    const select = document.createElement("select");
    layers.forEach((layer, number) => {
      const option = document.createElement("option");
      option.value = String(number);
      option.textContent = layer.title;
      option.selected = number === chosen;
      select.append(option);
    });
    const wrapper = document.createElement("label");
    wrapper.append(`${label} `, select);
    return [wrapper, select];
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
    range.setAttribute("aria-label", `divider between the two images of ${name}, in percent`);
    const choose = document.createElement("div");
    choose.className = "choose";
    const [leftLabel, left] = makeSelect("left", layers, Math.min(1, layers.length - 1));
    const [rightLabel, right] = makeSelect("right", layers, Math.min(2, layers.length - 1));
    if (layers.length === 2) left.value = "0";
    choose.append(leftLabel, rightLabel);
    stage.append(canvas, range, choose);
    article.querySelector(".strip").before(stage);
    let sides = null;

    function draw() {
      if (sides === null) {
        sides = [left, right].map((select) => paint(layers[Number(select.value)], layers[0]));
        canvas.width = sides[0].width;
        canvas.height = sides[0].height;
        const names = [left, right].map((select) => layers[Number(select.value)].title);
        canvas.setAttribute("aria-label", `${name}: ${names[0]} on the left, ${names[1]} on the right`);
      }
      const context = canvas.getContext("2d");
      const { width, height } = canvas;
      const dividerX = Math.round((Number(range.value) / 100) * width);
      context.drawImage(sides[1], 0, 0);
      if (dividerX > 0) context.drawImage(sides[0], 0, 0, dividerX, height, 0, 0, dividerX, height);
      context.fillStyle = "#ffffff";
      context.fillRect(dividerX - 1, 0, 2, height);
    }
    function redraw() {
      sides = null;
      draw();
    }
    function drag(event) {
      const box = canvas.getBoundingClientRect();
      range.value = String((100 * (event.clientX - box.left)) / box.width);
      draw();
    }
    range.addEventListener("input", draw);
    left.addEventListener("change", redraw);
    right.addEventListener("change", redraw);
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons !== 0) drag(event);
    });
    shots.push(redraw);
    Promise.all(layers.map((layer) => layer.image.decode())).then(redraw, () => stage.remove());
  }

  function toggleHighlight(name) {
    highlighted = highlighted === name ? null : name;
    for (const part of document.querySelectorAll("[data-class]")) {
      part.classList.toggle("dim", highlighted !== null && part.dataset.class !== highlighted);
    }
    for (const button of document.querySelectorAll("button[data-lift]")) {
      button.setAttribute("aria-pressed", String(button.dataset.lift === highlighted));
    }
    for (const redraw of shots) redraw();
  }

  for (const button of document.querySelectorAll("button[data-lift]")) {
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => toggleHighlight(button.dataset.lift));
  }
  for (const range of document.querySelectorAll("input[data-opacity]")) {
    range.addEventListener("input", () => {
      opacity = Number(range.value) / 100;
      for (const redraw of shots) redraw();
    });
  }
  document.querySelectorAll("article.shot").forEach(makeShot);
})();
