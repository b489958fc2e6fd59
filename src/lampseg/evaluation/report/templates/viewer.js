"use strict";
// The viewer of cases: NiiVue and the volumes lie packed in this page; nothing is fetched.
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const find = (selector) => root.querySelector(selector);
  const canvas = find("canvas");
  const message = find(".viewer-message");
  const LAYERS = ["truth", "prediction", "differences"];
  const VIEWS = { all: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 };
  let nv = null;
  let shown = null; // the case, its layers (name -> volume of NiiVue), and the classes that are hidden
  let turn = 0;

  const say = (text) => {
    message.textContent = text;
    message.hidden = !text;
  };
  const fail = (text) => {
    root.dataset.state = "failed";
    say(text);
  };
  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const json = (id) => JSON.parse(document.getElementById(id).textContent);

  async function start() {
    root.dataset.state = "loading";
    if (!document.createElement("canvas").getContext("webgl2"))
      return fail(
        "This browser offers no WebGL2, which the viewer needs: turn on its hardware acceleration, or use another " +
          "browser. The rest of the report does without."
      );
    if (typeof DecompressionStream === "undefined")
      return fail("This browser cannot unpack the viewer: use one from 2023 or later. The rest of the report does without.");
    say("Loading …");
    try {
      const packed = bytes(json("niivue"));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script); // the page's security policy knows its checksum
      nv = new niivue.Niivue({
        backColor: [0.04, 0.04, 0.05, 1],
        crosshairColor: [1, 1, 1, 1],
        crosshairGap: 6,
        crosshairWidth: 0.35,
        dragAndDropEnabled: false,
        fontColor: [0.85, 0.87, 0.9, 1],
        isRadiologicalConvention: true,
        loadingText: "",
        logLevel: "error",
        multiplanarLayout: 2,
        multiplanarShowRender: 1,
        show3Dcrosshair: false,
      });
      nv.onLocationChange = tell;
      await nv.attachToCanvas(canvas);
      nv.setSliceType(VIEWS.all);
      await show(0);
    } catch (error) {
      fail(`The viewer could not be started (${error.message}).`);
      throw error;
    }
  }

  async function show(index) {
    const mine = ++turn;
    root.dataset.state = "loading";
    say("Loading …");
    const data = json(`viewer-case-${index}`);
    const read = (name, options) => niivue.NVImage.loadFromBase64({ base64: data.volumes[name], name: `${name}.nii.gz`, ...options });
    const [low, high] = data.window;
    const image = await read("image", { colormap: "gray", cal_min: low, cal_max: high });
    const layers = {};
    for (const name of LAYERS) if (name in data.volumes) layers[name] = await read(name, {});
    if (mine !== turn) return; // another case was chosen meanwhile
    shown = { data, image, layers, hidden: new Set() };
    for (const [name, volume] of Object.entries(layers)) {
      if (outlines()) markInside(volume);
      volume.setColormapLabel(colours(name));
    }
    find("[data-outline]").disabled = !outlines();
    nv.volumes = [];
    for (const volume of [image, ...Object.values(layers)]) nv.addVolume(volume);
    for (const box of root.querySelectorAll("[data-layer]")) box.disabled = !(box.dataset.layer in layers);
    find(".viewer-note").textContent = data.note;
    legend();
    const first = data.organs.find((organ) => organ.place);
    paint();
    if (first) go(first.place);
    say("");
    root.dataset.volumes = String(nv.volumes.length);
    root.dataset.state = "ready";
  }

  // Outlines need a second value for every class: that of the voxels inside, which can be made transparent.
  const INSIDE = 128;
  const outlines = () => shown.data.organs.length < INSIDE;

  function markInside(volume) {
    const [, nx, ny, nz] = volume.hdr.dims;
    const labels = volume.img;
    const marked = labels.slice();
    const steps = [1, nx, nx * ny];
    for (let z = 0, i = 0; z < nz; z++)
      for (let y = 0; y < ny; y++)
        for (let x = 0; x < nx; x++, i++) {
          const label = labels[i];
          if (!label || !x || !y || !z || x === nx - 1 || y === ny - 1 || z === nz - 1) continue;
          if (steps.every((step) => labels[i - step] === label && labels[i + step] === label)) marked[i] = label + INSIDE;
        }
    volume.img = marked;
  }

  function colours(name) {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    const entries = name === "differences" ? shown.data.differences : shown.data.organs;
    const filled = !find("[data-outline]").checked;
    // Where both are shown the truth is paler, or one could not tell which is which.
    const pale = name === "truth" && find('[data-layer="prediction"]').checked ? 0.6 : 0;
    const add = (entry, value, visible) => {
      const [r, g, b] = entry.colour.map((part) => Math.round(part + pale * (255 - part)));
      table.R.push(r);
      table.G.push(g);
      table.B.push(b);
      table.A.push(visible ? 255 : 0);
      table.I.push(value);
      table.labels.push("");
    };
    const visible = (entry) => name === "differences" || !shown.hidden.has(entry.value);
    for (const entry of entries) add(entry, entry.value, visible(entry));
    if (outlines()) for (const entry of entries) add(entry, entry.value + INSIDE, visible(entry) && filled);
    return table;
  }

  function paint() {
    const opacity = Number(find("[data-opacity]").value) / 100;
    for (const [name, volume] of Object.entries(shown.layers)) {
      volume.setColormapLabel(colours(name));
      volume.opacity = find(`[data-layer="${name}"]`).checked ? opacity : 0;
    }
    nv.updateGLVolume();
  }

  function go(place) {
    nv.scene.crosshairPos = nv.mm2frac(place);
    nv.createOnLocationChange();
    nv.drawScene();
  }

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text; // names come from files: never as HTML
    if (className) made.className = className;
    return made;
  }

  function swatch(colour) {
    const made = element("span", "", "swatch");
    made.style.backgroundColor = `rgb(${colour.join(",")})`;
    return made;
  }

  function legend() {
    const { data, hidden } = shown;
    const table = element("table");
    const head = element("tr");
    head.append(element("th"), element("th", "organ"), element("th", "Dice"), element("th", "truth"), element("th", "prediction"));
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    for (const organ of data.organs) {
      const row = element("tr");
      const box = element("input");
      box.type = "checkbox";
      box.checked = true;
      box.setAttribute("aria-label", `show ${organ.name}`);
      box.addEventListener("change", () => {
        box.checked ? hidden.delete(organ.value) : hidden.add(organ.value);
        paint();
      });
      const label = element("label");
      label.append(box, swatch(organ.colour));
      const button = element("button", organ.name, "go");
      button.type = "button";
      button.title = "Go there";
      button.disabled = !organ.place;
      button.addEventListener("click", () => go(organ.place));
      const cells = [label, button, organ.dice, organ.volumes.truth ?? "-", organ.volumes.prediction ?? "-"];
      for (const content of cells) {
        const cell = element("td");
        cell.append(content);
        row.append(cell);
      }
      table.tBodies[0].append(row);
    }
    const key = element("p", "Differences: ", "note");
    for (const { name, colour } of data.differences) key.append(swatch(colour), ` ${name}  `);
    find(".viewer-legend").replaceChildren(table, ...("differences" in shown.layers ? [key] : []));
  }

  function tell(place) {
    if (!shown || !place.values) return;
    const mm = Array.from(place.mm).slice(0, 3).map((value) => value.toFixed(1));
    const words = [`${mm.join(", ")} mm (right, front, up)`];
    const names = ["image", ...Object.keys(shown.layers)];
    place.values.forEach(({ value }, i) => {
      if (names[i] === "image") words.push(`image ${Number(value).toFixed(0)}`);
      else if (names[i] !== "differences") {
        const label = Math.round(value) % (outlines() ? INSIDE : 256);
        const organ = shown.data.organs.find((o) => o.value === label);
        words.push(`${names[i]}: ${organ ? organ.name : "background"}`);
      }
    });
    find(".viewer-place").textContent = words.join(" · ");
  }

  const guarded = (work) => () => {
    if (shown) work();
  };
  find("[data-case]").addEventListener("change", (event) => {
    if (nv) show(event.target.value).catch((error) => fail(`This case could not be shown (${error.message}).`));
  });
  for (const control of root.querySelectorAll("[data-layer], [data-opacity], [data-outline]"))
    control.addEventListener("input", guarded(paint));
  for (const control of root.querySelectorAll("[data-view]"))
    control.addEventListener("change", guarded(() => nv.setSliceType(VIEWS[control.dataset.view])));
  // The wheel turns slices only after a click into the picture, so that it does not catch who scrolls past.
  let inside = false;
  const stage = find(".viewer-stage");
  stage.addEventListener("pointerdown", () => (inside = true));
  stage.addEventListener("pointerleave", () => (inside = false));
  stage.addEventListener("wheel", (event) => inside || event.stopPropagation(), { capture: true, passive: true });

  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    start();
  }, { rootMargin: "400px" }).observe(root);
})();
