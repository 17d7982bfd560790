// The page: one socket to the server, one or two settings, a panel for each.

import { make } from "/draw.js";
import { SettingForm, numberIn } from "/form.js";
import { readSettings } from "/meta.js";
import { Panel } from "/panel.js";

const $ = (id) => document.getElementById(id);
const SHARED = ["seed", "num"];
const THEMES = ["auto", "light", "dark"];
const state = { about: null, socket: null, forms: {}, panels: {}, refs: new Map(), count: 0, retry: 500 };

// Colours

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme-name").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[name];
  $("theme").setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system" : name}`);
  try {
    localStorage.setItem("condiff-theme", name);
  } catch {
    // a browser that keeps nothing
  }
}

function storedTheme() {
  try {
    const name = localStorage.getItem("condiff-theme");
    return THEMES.includes(name) ? name : "auto";
  } catch {
    return "auto";
  }
}

// Connection

function banner(words) {
  $("banner").textContent = words;
  $("banner").hidden = !words;
}

function connected(yes) {
  $("link").classList.toggle("on", yes);
  $("link").lastElementChild.textContent = yes ? "connected" : "not connected";
  $("go").disabled = !yes;
}

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/socket`);
  state.socket = socket;
  socket.addEventListener("open", () => {
    state.retry = 500;
    banner("");
    connected(true);
  });
  socket.addEventListener("message", (event) => take(JSON.parse(event.data)));
  socket.addEventListener("close", (event) => {
    connected(false);
    for (const ref of [...state.refs.keys()]) take({ type: "error", ref, message: "The connection to the server was lost." });
    banner(event.reason ? `${event.reason}. Trying again.` : "No connection to the server. Trying again.");
    setTimeout(connect, state.retry);
    state.retry = Math.min(2 * state.retry, 10000);
  });
}

function take(message) {
  const side = state.refs.get(message.ref);
  if (!side) return message.type === "error" ? formError(message.message) : undefined;
  state.panels[side].take(message);
  if (["done", "cancelled", "error"].includes(message.type)) {
    state.refs.delete(message.ref);
    if (message.type === "error") mark(side, message.message);
    busy();
  }
  return undefined;
}

// Asking

function sides() {
  return $("compare").checked ? ["A", "B"] : ["A"];
}

function submit() {
  if (state.socket?.readyState !== WebSocket.OPEN) return;
  cancelAll();
  state.refs.clear();
  formError("");
  unmark();
  const shared = Object.fromEntries(SHARED.map((name) => [name, numberIn($(name))]));
  arrange();
  for (const side of sides()) {
    const settings = { ...state.forms[side].read(), ...shared };
    const ref = `${side}${++state.count}`;
    state.refs.set(ref, side);
    const num = Number.isInteger(shared.num) ? Math.min(Math.max(shared.num, 1), state.about.limits.num) : 1;
    state.panels[side].reset(summary(settings), num);
    state.socket.send(JSON.stringify({ type: "sample", ref, settings }));
  }
  busy();
  if (matchMedia("(max-width: 860px)").matches) $("stage").scrollIntoView({ behavior: "smooth" });
}

function cancelAll() {
  for (const ref of state.refs.keys()) cancel(ref);
}

function cancel(ref) {
  if (state.socket?.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify({ type: "cancel", ref }));
}

function cancelSide(side) {
  for (const [ref, of] of state.refs) if (of === side) cancel(ref);
}

function busy() {
  $("stop").hidden = state.refs.size === 0;
}

function summary(settings) {
  const parts = [settings.solver ?? state.about.own.solver];
  if (settings.steps !== undefined) parts.push(`${settings.steps} steps`);
  if (settings.guidance !== undefined) parts.push(`guidance ${settings.guidance}`);
  if (settings.labels) parts.push(settings.labels.length > 3 ? `${settings.labels.length} classes` : settings.labels.join(", "));
  const words = settings.prompt ?? settings.prefix;
  if (words) parts.push(words.length > 48 ? `${words.slice(0, 46)}…` : words);
  return parts.join(" · ");
}

// Errors

function formError(words) {
  $("form-error").textContent = words;
  $("form-error").hidden = !words;
}

// The field that an error begins with the name of.
function mark(side, words) {
  const name = words.match(/^[a-z_]+/)?.[0];
  const where = SHARED.includes(name) ? $("form") : state.forms[side].element;
  const field = name && where.querySelector(`[data-name="${name}"]`);
  field?.classList.add("bad");
  field?.querySelector("input:not([type=range]), select, textarea")?.setAttribute("aria-invalid", "true");
}

function unmark() {
  document.querySelectorAll(".bad").forEach((field) => field.classList.remove("bad"));
  document.querySelectorAll("[aria-invalid]").forEach((box) => box.removeAttribute("aria-invalid"));
}

// Layout

function arrange() {
  const two = $("compare").checked;
  $("settings").replaceChildren(...sides().map((side) => state.forms[side].element));
  document.body.classList.toggle("two", two);
  state.panels.A.linked = two ? state.panels.B : null;
  state.panels.B.linked = two ? state.panels.A : null;
  $("stage").replaceChildren(...sides().map((side) => state.panels[side].element));
}

function empty() {
  const picture = make("img", { src: "/icon.svg", alt: "", width: 56, height: 56 });
  const words = make("p", {}, "Choose settings and press Sample. Every step is shown as it is taken, and can be gone back to afterwards.");
  $("stage").replaceChildren(make("div", { class: "empty" }, picture, make("h2", {}, "No samples yet"), words));
}

function compare() {
  if ($("compare").checked) state.forms.B.write(state.forms.A.read());
  const shown = Boolean($("stage").querySelector(".panel"));
  if (shown && state.refs.size === 0 && $("compare").checked) state.panels.B.reset("Press Sample to compare");
  $("settings").replaceChildren(...sides().map((side) => state.forms[side].element));
  document.body.classList.toggle("two", $("compare").checked);
  if (!$("compare").checked) cancelSide("B");
  if (shown) arrange();
}

async function load(file) {
  formError("");
  try {
    const settings = await readSettings(file);
    state.forms.A.write(settings);
    for (const name of SHARED) $(name).value = settings[name] ?? state.about.own[name] ?? 0;
  } catch (error) {
    formError(error.message);
  }
}

function zoom(image, name) {
  $("zoom-what").replaceChildren(make("img", { src: image.src, alt: image.alt }));
  $("zoom").classList.toggle("pixels", image.naturalWidth <= 128);
  $("zoom-name").textContent = name;
  $("zoom").showModal();
}

// Beginning

function listen() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("form").addEventListener("input", (event) => {
    const field = event.target.closest(".bad");
    field?.classList.remove("bad");
    field?.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    }
    if (event.key === "Escape" && !$("zoom").open) cancelAll();
  });
  $("stop").addEventListener("click", cancelAll);
  $("compare").addEventListener("change", compare);
  $("dice").addEventListener("click", () => ($("seed").value = String(Math.floor(Math.random() * 1e6))));
  $("load").addEventListener("change", () => {
    const file = $("load").files[0];
    if (file) load(file);
    $("load").value = "";
  });
  $("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length]));
  $("zoom-close").addEventListener("click", () => $("zoom").close());
  $("zoom").addEventListener("click", (event) => event.target === $("zoom") && $("zoom").close());
}

async function begin() {
  setTheme(storedTheme());
  if (/Mac|iPhone|iPad/.test(navigator.platform)) $("keys").textContent = "⌘ Enter";
  connected(false);
  try {
    const answer = await fetch("/api/about");
    if (answer.status === 401) return location.reload();
    state.about = await answer.json();
  } catch {
    banner("No connection to the server. Trying again.");
    return setTimeout(begin, 2000);
  }
  const { about } = state;
  $("title").textContent = about.title;
  document.title = `${about.name} · condiff`;
  $("facts").replaceChildren(...about.facts.map((fact) => make("span", {}, fact)));
  $("num").value = String(about.own.num);
  $("num").max = String(about.limits.num);
  for (const side of ["A", "B"]) {
    state.forms[side] = new SettingForm(side, about);
    state.panels[side] = new Panel(side, () => cancelSide(side), zoom);
  }
  $("settings").replaceChildren(state.forms.A.element);
  empty();
  listen();
  return connect();
}

begin();
