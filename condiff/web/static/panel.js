// Where the samples of one setting appear: progress, steps as they arrive, a slider back through them, files.

import { boundsOf, cell, fill, legend, make, rangeOf, scatter } from "/draw.js";

const ENDINGS = { png: "PNG", npz: "NumPy", txt: "Text", csv: "Table", gif: "GIF", mp4: "Video", json: "Settings" };

export class Panel {
  constructor(name, onCancel, onZoom) {
    this.name = name;
    this.onZoom = onZoom;
    this.linked = null;
    this.badge = make("span", { class: "badge" }, name);
    this.summary = make("h2", {}, "");
    this.status = make("p", { class: "status", role: "status" }, "");
    this.cancel = make("button", { type: "button", class: "quiet" }, "Cancel");
    this.cancel.addEventListener("click", () => onCancel());
    this.bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.error = make("p", { class: "error", role: "alert", hidden: true });
    this.grid = make("div", { class: "samples" });
    this.range = make("input", { type: "range", min: "1", max: "1", value: "1", "aria-label": "Step that is shown" });
    this.at = make("span", { class: "at" }, "");
    this.play = make("button", { type: "button", class: "quiet", "aria-label": "Play the steps" }, "▶");
    this.scrub = make("div", { class: "scrub", hidden: true }, this.play, this.range, this.at);
    this.files = make("div", { class: "files", hidden: true });
    this.range.addEventListener("input", () => this.moved());
    this.play.addEventListener("click", () => this.toggle());
    const head = make("div", { class: "head" }, this.badge, this.summary, this.cancel);
    this.element = make("article", { class: `card panel side-${name.toLowerCase()}`, "aria-label": `Samples of setting ${name}` }, head, this.status, this.bar, this.error, this.grid, this.scrub, this.files);
    this.reset("");
  }

  reset(summary, num = 0) {
    clearInterval(this.timer);
    this.frames = []; // [step][sample], with holes where a step wasn't shown
    this.final = null;
    this.kind = null;
    this.steps = 0;
    this.running = num > 0;
    this.cells = [];
    this.summary.textContent = summary;
    this.error.hidden = this.scrub.hidden = this.files.hidden = true;
    this.bar.hidden = this.cancel.hidden = !this.running;
    this.bar.value = 0;
    this.say(this.running ? "Sending" : "");
    this.grid.className = "samples";
    this.grid.replaceChildren(...Array.from({ length: num }, () => make("div", { class: "wait" })));
  }

  say(words) {
    if (this.status.textContent !== words) this.status.textContent = words;
  }

  take(message) {
    const act = { queued: this.queued, started: this.started, step: this.step, done: this.done, cancelled: this.cancelled, error: this.failed }[message.type];
    act?.call(this, message);
  }

  queued({ ahead }) {
    this.say(ahead === 0 ? "Next in line" : `${ahead} request${ahead === 1 ? "" : "s"} before this one`);
  }

  started() {
    this.say("Preparing");
  }

  step({ index, steps, first, view }) {
    this.steps = steps;
    this.bar.value = index / steps;
    this.say(`Step ${index} of ${steps}`);
    if (!view) return;
    this.mask = view.mask;
    const frame = (this.frames[index] ??= []);
    view.items.forEach((item, i) => (frame[first + i] = item));
    this.prepare(view.kind, Math.max(this.cells.length, first + view.items.length));
    this.show(index);
  }

  done(message) {
    this.end();
    this.final = message.view.items;
    this.mask = message.view.mask;
    this.names = message.names;
    this.prepare(message.view.kind, this.final.length);
    this.addNames(message);
    const { nfe, seconds, note } = message.facts;
    this.say(`${Number(nfe.toPrecision(4))} network calls each, ${seconds < 10 ? seconds.toFixed(2) : Math.round(seconds)} s${note ? `. ${note}` : ""}`);
    this.range.max = String(this.steps);
    this.scrub.hidden = this.steps < 2;
    this.range.value = String(this.steps);
    this.show(this.steps);
    this.offer(message);
  }

  cancelled() {
    this.end();
    this.say(`Cancelled${this.steps && this.bar.value ? ` after step ${Math.round(this.bar.value * this.steps)}` : ""}`);
    if (!this.cells.length && !this.frames.length) this.grid.replaceChildren();
    this.browse();
  }

  failed({ message }) {
    this.end();
    this.say("");
    this.error.textContent = message;
    this.error.hidden = false;
    if (!this.frames.length) this.grid.replaceChildren();
    this.browse();
  }

  // After an early end, the steps that there are.
  browse() {
    const last = this.frames.length - 1;
    this.range.max = String(Math.max(1, last));
    this.range.value = this.range.max;
    this.scrub.hidden = last < 2;
    if (last >= 1) this.at.textContent = `${last}/${this.steps}`;
  }

  end() {
    this.running = false;
    this.bar.hidden = this.cancel.hidden = true;
  }

  // Samples

  prepare(kind, count) {
    if (this.kind === kind && (kind === "point" || this.cells.length >= count)) return;
    if (this.kind !== kind) {
      this.kind = kind;
      this.cells = [];
      this.grid.className = `samples ${kind}`;
    }
    if (kind === "point") return;
    while (this.cells.length < count) this.cells.push(this.newCell(this.cells.length));
    const waiting = Math.max(0, this.grid.querySelectorAll(".wait").length + this.grid.querySelectorAll("figure").length - count);
    this.grid.replaceChildren(...this.cells.map((one) => one.figure), ...Array.from({ length: waiting }, () => make("div", { class: "wait" })));
  }

  newCell(i) {
    const element = cell(this.kind, String(i + 1));
    const inside = make("div", { class: "strip" }, element);
    const caption = make("figcaption", {}, "");
    const figure = make("figure", {}, inside, caption);
    if (this.kind === "picture") {
      const button = make("button", { type: "button", class: "open", "aria-label": `Enlarge sample ${i + 1}` });
      element.replaceWith(button);
      button.append(element);
      button.addEventListener("click", () => this.onZoom(element, `${this.name}: ${caption.textContent || i + 1}`));
      element.addEventListener("load", () => this.sized(element), { once: true });
    }
    return { element, inside, caption, figure };
  }

  // Small pictures are shown in whole pixels, large ones in large cells.
  sized(image) {
    const side = Math.max(image.naturalWidth, image.naturalHeight);
    const small = this.cells.length > 16 ? 72 : this.linked ? 84 : 96;
    const size = side <= 32 ? small : side <= 64 ? 128 : side <= 160 ? 180 : 280;
    this.grid.style.setProperty("--cell", `${this.cells.length === 1 ? Math.max(size, 360) : size}px`);
    this.grid.classList.toggle("pixels", side <= 128);
  }

  addNames({ names, beside }) {
    this.cells.forEach(({ element, inside, caption }, i) => {
      caption.textContent = names[i];
      element.setAttribute(element.tagName === "IMG" ? "alt" : "aria-label", `sample ${i + 1}: ${names[i]}`);
      const own = inside.firstElementChild;
      const extra = Object.entries(beside).map(([name, view]) => {
        const other = cell(view.kind, `${name} ${i + 1}`);
        fill(other, view.kind, view.items[i], { mask: view.mask, range: this.rangeFor(view.items) });
        return make("div", { class: "beside" }, other, make("small", {}, name));
      });
      if (!extra.length) return;
      const after = Object.keys(beside).map((name) => name === "true");
      const sample = make("div", { class: "beside" }, own, make("small", {}, "sample"));
      inside.replaceChildren(...extra.filter((_, k) => !after[k]), sample, ...extra.filter((_, k) => after[k]));
      this.grid.classList.add("strips");
    });
  }

  rangeFor(items) {
    return this.kind === "curve" ? rangeOf(items) : undefined;
  }

  // What a sample looked like at a step: the newest view of it until then.
  itemAt(i, step) {
    if (this.final && step >= this.steps) return this.final[i];
    for (let k = Math.min(step, this.frames.length - 1); k > 0; k--) if (this.frames[k]?.[i] !== undefined) return this.frames[k][i];
    return undefined;
  }

  show(step) {
    this.at.textContent = `${step}/${this.steps}`;
    this.range.setAttribute("aria-valuetext", `step ${step} of ${this.steps}`);
    if (this.kind === "point") return this.showPoints(step);
    const items = this.cells.map((_, i) => this.itemAt(i, step));
    const range = this.rangeFor(this.final ?? items.filter((item) => item !== undefined));
    items.forEach((item, i) => item !== undefined && fill(this.cells[i].element, this.kind, item, { mask: this.mask, range }));
  }

  showPoints(step) {
    const count = (this.final ?? this.frames.at(-1) ?? []).length;
    const points = Array.from({ length: count }, (_, i) => this.itemAt(i, step)).filter(Boolean);
    const names = this.names ?? points.map((_, i) => String(i + 1));
    const figure = scatter(points, names, boundsOf(this.final ? [this.final] : this.frames));
    this.grid.replaceChildren(figure, ...(this.names ? legend(this.names) : []));
  }

  // Going back through the steps

  moved(fromOther = false) {
    this.show(Number(this.range.value));
    if (!fromOther && this.linked && !this.linked.scrub.hidden) {
      const share = Number(this.range.value) / Number(this.range.max);
      this.linked.range.value = String(Math.max(1, Math.round(share * Number(this.linked.range.max))));
      this.linked.moved(true);
    }
  }

  toggle() {
    if (this.timer) return this.pause();
    if (this.range.value === this.range.max) this.range.value = "1";
    this.moved();
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "Pause");
    const pace = Math.max(40, Math.min(250, 3000 / Number(this.range.max)));
    this.timer = setInterval(() => {
      if (Number(this.range.value) >= Number(this.range.max)) return this.pause();
      this.range.value = String(Number(this.range.value) + 1);
      return this.moved();
    }, pace);
    return undefined;
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "▶";
    this.play.setAttribute("aria-label", "Play the steps");
  }

  offer({ job, files, settings }) {
    const links = files.map((ending) =>
      make("a", { href: `/api/results/${job}/${ending}`, download: `condiff-${this.name.toLowerCase()}-seed-${settings.seed ?? 0}.${ending}`, class: "button quiet" }, ENDINGS[ending] ?? ending),
    );
    this.files.replaceChildren(make("span", {}, "Download"), ...links);
    this.files.hidden = false;
  }
}
