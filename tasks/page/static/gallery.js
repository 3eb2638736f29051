"use strict";
// The gallery's opacity, its scale, and the slider that uncovers cells. All other switches are style sheets'.
(() => {
  const LEVELS = 255;

  // The level of each colour of a map's picture. The palette is read from the page, where Python wrote it.
  function levelsOf(palette) {
    const levels = new Map();
    palette.forEach((colour, level) => levels.set(colour, level / (LEVELS - 1)));
    return levels;
  }

  // The picture of a map on the scale that its sample's maps share: level v becomes slope * v + shift.
  function rescaled(image, palette, levels, slope, shift) {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    const data = pixels.data;
    for (let i = 0; i < data.length; i += 4) {
      const level = levels.get((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
      if (data[i + 3] === 0 || level === undefined) continue;
      const value = Math.min(1, Math.max(0, slope * level + shift));
      const colour = palette[Math.round(value * (LEVELS - 1))];
      data[i] = colour >> 16;
      data[i + 1] = (colour >> 8) & 255;
      data[i + 2] = colour & 255;
    }
    pen.putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  }

  async function setScale(gallery, same) {
    const palette = gallery.dataset.palette.match(/.{6}/g).map((colour) => parseInt(colour, 16));
    const levels = levelsOf(palette);
    for (const figure of gallery.querySelectorAll("figure.map")) {
      const image = figure.querySelector("img");
      if (!image) continue;
      image.dataset.own ||= image.src;
      if (!same) {
        image.src = image.dataset.own;
        continue;
      }
      await image.decode();
      if (!gallery.querySelector("[name=same-scale]").checked) return; // switched back in the meantime
      const number = (name) => parseFloat(figure.style.getPropertyValue(name));
      image.src = rescaled(image, palette, levels, number("--slope"), number("--shift"));
    }
  }

  // A square for every cell that is absent after some steps, as Python draws it for the still picture.
  function cover(box, steps) {
    const columns = Number(box.dataset.columns);
    const inserting = box.dataset.mode === "insertion";
    const chosen = new Set(box.dataset.order.split(",").slice(0, steps).map(Number));
    let path = "";
    for (let cell = 0; cell < columns * Number(box.dataset.rows); cell++) {
      if (chosen.has(cell) !== inserting) path += `M${cell % columns} ${Math.floor(cell / columns)}h1v1h-1z`;
    }
    return path;
  }

  function uncover(box) {
    const steps = Number(box.querySelector("input").value);
    box.querySelector(".picture path").setAttribute("d", cover(box, steps));
    const confidence = box.dataset.confidence.split(",")[steps - 1];
    box.querySelector("output").textContent = `${steps} ${steps === 1 ? "cell" : "cells"}: confidence ${confidence}`;
  }

  for (const gallery of document.querySelectorAll(".gallery")) {
    gallery.classList.add("scripted");
    gallery.addEventListener("submit", (event) => event.preventDefault());
    gallery.addEventListener("input", ({ target }) => {
      if (target.name === "opacity") gallery.style.setProperty("--opacity", target.value / 100);
      if (target.name === "same-scale") setScale(gallery, target.checked);
      const box = target.closest(".uncovering");
      if (box) uncover(box);
    });
  }
})();
