// The form of one setting: which fields there are follows from what the model takes.

import { make } from "/draw.js";

const FEW = 24; // classes that are shown as buttons
let serial = 0;

const NUMBERS = {
  steps: { label: "Steps", whole: true, min: 1, max: 100, step: 1 },
  guidance: { label: "Guidance", min: 0, max: 10, step: 0.25, hint: "1 is the plain conditional model" },
};
const FILTERS = {
  temperature: { label: "Temperature", placeholder: "1" },
  top_k: { label: "Top k", placeholder: "all", whole: true },
  top_p: { label: "Top p", placeholder: "1" },
};
const WORDS = {
  prompt: { label: "Prompt", placeholder: "a red fox in the snow", rows: 3 },
  negative: { label: "Negative prompt", placeholder: "what it should be unlike", rows: 2 },
  prefix: { label: "Begins with", placeholder: "any text", rows: 1 },
  suffix: { label: "Ends with", placeholder: "any text", rows: 1 },
};

export class SettingForm {
  constructor(name, about) {
    this.about = about;
    this.readers = {};
    this.writers = {};
    this.badge = make("span", { class: "badge" }, name);
    this.legend = make("legend", {}, this.badge, make("span", {}, "Setting"));
    this.element = make("fieldset", { class: `card setting side-${name.toLowerCase()}` }, this.legend);
    const takes = new Set(about.takes);
    if (takes.has("labels")) this.element.append(this.classes());
    for (const [key, what] of Object.entries(WORDS)) if (takes.has(key)) this.element.append(this.words(key, what));
    for (const condition of about.conditions) this.element.append(this.condition(condition));
    this.element.append(this.solver());
    for (const [key, what] of Object.entries(NUMBERS)) if (takes.has(key)) this.element.append(this.number(key, what));
    if (takes.has("temperature")) this.element.append(this.filters());
  }

  read() {
    const out = {};
    for (const [key, reader] of Object.entries(this.readers)) {
      const value = reader();
      if (value !== null && value !== undefined) out[key] = value;
    }
    return out;
  }

  write(settings) {
    for (const [key, writer] of Object.entries(this.writers)) writer(settings[key] ?? null);
  }

  field(key, label, control, hint) {
    const id = `f${serial++}`;
    control.id = id;
    const out = make("div", { class: "field", "data-name": key }, make("label", { for: id }, label), control);
    if (hint) {
      control.setAttribute("aria-describedby", `${id}h`);
      out.append(make("small", { id: `${id}h` }, hint));
    }
    return out;
  }

  words(key, { label, placeholder, rows }) {
    const area = make("textarea", { rows, placeholder, maxLength: this.about.limits.text, spellcheck: false });
    this.readers[key] = () => area.value || null;
    this.writers[key] = (value) => (area.value = value ?? "");
    return this.field(key, label, area);
  }

  solver() {
    const own = this.about.own.solver;
    const names = this.about.solvers.includes(own) ? this.about.solvers : [own, ...this.about.solvers];
    const select = make("select", {}, ...names.map((name) => make("option", { value: name }, name)));
    select.value = own;
    this.readers.solver = () => (this.about.solvers.includes(select.value) ? select.value : null);
    this.writers.solver = (value) => (select.value = value ?? own);
    return this.field("solver", "Solver", select);
  }

  number(key, { label, whole, min, max, step, hint }) {
    const own = this.about.own[key];
    const most = Math.max(key === "steps" ? Math.min(max, this.about.limits.steps) : max, own ?? 0);
    const box = make("input", { type: "number", min: String(min), step: whole ? "1" : "any", value: own === null ? "" : String(own), placeholder: "its own", inputmode: whole ? "numeric" : "decimal" });
    const range = make("input", { type: "range", min: String(min), max: String(most), step: String(step), value: String(own ?? min), "aria-label": `${label}, slider`, tabindex: "-1" });
    range.disabled = own === null;
    range.addEventListener("input", () => (box.value = range.value));
    box.addEventListener("input", () => (range.value = box.value));
    this.readers[key] = () => numberIn(box);
    this.writers[key] = (value) => {
      box.value = value ?? own ?? "";
      range.value = box.value;
    };
    const out = this.field(key, label, box, hint);
    const row = make("div", { class: "with-range" });
    box.replaceWith(row);
    row.append(range, box);
    return out;
  }

  filters() {
    const inside = make("div", { class: "pair" });
    for (const [key, { label, placeholder, whole }] of Object.entries(FILTERS)) {
      const box = make("input", { type: "number", step: whole ? "1" : "any", min: "0", placeholder });
      this.readers[key] = () => numberIn(box);
      this.writers[key] = (value) => (box.value = value ?? "");
      inside.append(this.field(key, label, box));
    }
    return make("details", {}, make("summary", {}, "Which tokens may be drawn"), inside);
  }

  // Classes

  classes() {
    return this.about.classes.length <= FEW ? this.classButtons() : this.classSearch();
  }

  classButtons() {
    const boxes = this.about.classes.map((name) => make("input", { type: "checkbox", value: name }));
    const chips = boxes.map((box) => make("label", { class: "chip" }, box, make("span", {}, box.value)));
    this.readers.labels = () => {
      const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
      return chosen.length ? chosen : null;
    };
    this.writers.labels = (value) => boxes.forEach((box) => (box.checked = (value ?? []).includes(box.value)));
    return group("labels", "Class", "All in turn where none is chosen", make("div", { class: this.about.classes.every((name) => name.length < 4) ? "chips short" : "chips" }, ...chips));
  }

  classSearch() {
    const list = make("datalist", { id: `f${serial++}` }, ...this.about.classes.map((name) => make("option", { value: name })));
    const box = make("input", { list: list.id, placeholder: "Type to find one of " + this.about.classes.length, "aria-label": "Class to add" });
    const chips = make("div", { class: "chips" });
    let chosen = [];
    const show = () =>
      chips.replaceChildren(
        ...chosen.map((name) => {
          const button = make("button", { type: "button", class: "chip on", "aria-label": `Remove ${name}` }, `${name} ✕`);
          button.addEventListener("click", () => set(chosen.filter((other) => other !== name)));
          return button;
        }),
      );
    const set = (names) => {
      chosen = [...new Set(names)];
      show();
    };
    const add = () => {
      if (this.about.classes.includes(box.value)) {
        set([...chosen, box.value]);
        box.value = "";
      }
    };
    box.addEventListener("input", (event) => event.inputType === "insertReplacementText" && add());
    box.addEventListener("change", add);
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      add();
    });
    // What is typed and isn't a class goes along, so that the server can say which ones are near.
    this.readers.labels = () => {
      const all = box.value.trim() ? [...chosen, box.value.trim()] : chosen;
      return all.length ? all : null;
    };
    this.writers.labels = (value) => set(value ?? []);
    return group("labels", "Class", "All in turn where none is chosen", make("div", {}, box, list, chips));
  }

  // Other conditions

  condition(what) {
    if (what.input === "picture") return this.picture(what);
    if (what.input === "numbers") return this.numbers(what);
    return group("conditions", what.name, `A ${what.kind} of ${what.shape.join(" × ")}, taken from held-out data`, "");
  }

  numbers({ name, shape, low, high }) {
    const many = shape.length > 0;
    const box = make("input", { type: "text", inputmode: "decimal", placeholder: "from held-out data" });
    const reader = () => readNumbers(box.value, many);
    this.addCondition(name, reader, (value) => (box.value = value === null ? "" : [value].flat().join(", ")));
    const range = low === null ? "" : `${Number(low.toPrecision(3))} to ${Number(high.toPrecision(3))} in the data`;
    return this.field("conditions", name, box, many ? `${shape[0]} numbers with commas between. ${range}` : range);
  }

  picture({ name, shape, needed }) {
    const input = make("input", { type: "file", accept: "image/*", class: "offscreen", id: `f${serial++}` });
    const image = make("img", { alt: "", hidden: true });
    const note = make("span", {}, "Choose or drop a picture");
    const zone = make("label", { class: "drop", for: input.id }, image, note);
    const clear = make("button", { type: "button", class: "quiet" }, needed ? "Take it away" : "Use held-out data");
    const problem = make("p", { class: "error", role: "alert", hidden: true });
    let sent = null;
    const show = (value, words, url) => {
      sent = value;
      note.textContent = words;
      image.hidden = !url;
      clear.hidden = !value;
      if (url) image.src = url;
    };
    const send = async (file) => {
      problem.hidden = true;
      try {
        if (file.size > this.about.limits.upload) throw new Error(`A picture may have ${this.about.limits.upload} bytes, ${file.name} has ${file.size}.`);
        show(null, "Sending…", null);
        const answer = await fetch("/api/pictures", { method: "POST", body: file });
        const data = await answer.json();
        if (!answer.ok) throw new Error(data.error);
        show({ picture: data.picture }, `${file.name}, ${data.width} × ${data.height}`, URL.createObjectURL(file));
      } catch (error) {
        show(null, "Choose or drop a picture", null);
        problem.textContent = error.message;
        problem.hidden = false;
      }
      input.value = "";
    };
    input.addEventListener("change", () => input.files[0] && send(input.files[0]));
    clear.addEventListener("click", () => show(null, "Choose or drop a picture", null));
    zone.addEventListener("dragover", (event) => event.preventDefault());
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
    });
    clear.hidden = true;
    this.addCondition(name, () => sent, (value) => show(value, value ? "The picture of the loaded settings" : "Choose or drop a picture", null));
    const hint = `Fitted to ${shape[2]} × ${shape[1]} pixels${needed ? "" : "; without one, pictures of held-out data are taken in turn"}`;
    return group("conditions", name, hint, make("div", {}, input, zone, clear, problem));
  }

  addCondition(name, reader, writer) {
    this.parts ??= [];
    this.parts.push([name, reader, writer]);
    this.readers.conditions = () => {
      const found = this.parts.map(([key, read]) => [key, read()]).filter(([, value]) => value !== null);
      return found.length ? Object.fromEntries(found) : null;
    };
    this.writers.conditions = (values) => this.parts.forEach(([key, , write]) => write(values?.[key] ?? null));
  }
}

function group(key, label, hint, content) {
  const id = `f${serial++}`;
  const out = make("div", { class: "field", "data-name": key, role: "group", "aria-labelledby": id }, make("span", { id, class: "label" }, label), content);
  if (hint) out.append(make("small", {}, hint));
  return out;
}

// A number as it was typed; what isn't one goes to the server as text, which says so.
export function numberIn(box) {
  if (box.validity.badInput) return "not a number";
  return box.value === "" ? null : Number(box.value);
}

function readNumbers(text, many) {
  if (!text.trim()) return null;
  const values = text.split(/[,;\s]+/).filter(Boolean).map((word) => (Number.isFinite(Number(word)) ? Number(word) : word));
  return many ? values : values.length === 1 ? values[0] : values;
}
