// The labelling page: two clips or texts (or several to rank), answered by click, key or touch.
// Answers go through an outbox in the browser's storage, so an outage loses none: each has a UUID
// made here, and is sent again under the same one until the server has said that it is on its disk.

const $ = (id) => document.getElementById(id);
const AHEAD = 3; // pairs held at once: the one shown and those whose clips are loaded meanwhile
const HOLD = 450; // milliseconds that the last frames stand before both clips begin again
const SVG = "http://www.w3.org/2000/svg";
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const format = document.createElement("video").canPlayType('video/mp4; codecs="avc1.42E01E"') ? "mp4" : "webm";

const uuid = () => {
  // crypto.randomUUID exists only on loopback and HTTPS.
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 15) | 64;
  b[8] = (b[8] & 63) | 128;
  const h = [...b].map((x) => x.toString(16).padStart(2, "0")).join("");
  return [h.slice(0, 8), h.slice(8, 12), h.slice(12, 16), h.slice(16, 20), h.slice(20)].join("-");
};

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children); // strings become text nodes, never HTML
  return node;
}

const announce = (text) => { $("announce").textContent = text; };

// ---------------------------------------------------------------- the server

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const reply = await fetch(path, { ...request, credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(15000) });
  const told = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Refused(reply.status, told.error || reply.statusText);
  return told;
}

// ---------------------------------------------------------------- the outbox

const memory = new Map();
const kept = {
  get(key, otherwise) {
    try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return memory.get(key) ?? otherwise; }
  },
  set(key, value) {
    memory.set(key, value);
    try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
  },
};

class Outbox {
  // First in, first out, so that an undo reaches the server after the answer that it takes back.
  constructor(store, changed) {
    Object.assign(this, { key: `tether.${store}.unsent`, changed, busy: false, wait: 0, trouble: null, refused: [] });
    addEventListener("online", () => this.now());
    // Another tab of this browser may have sent or added some.
    addEventListener("storage", (event) => event.key === this.key && changed());
  }
  get all() { return kept.get(this.key, []); }
  add(path, body) {
    kept.set(this.key, [...this.all, { path, body }]);
    this.changed();
    return this.now();
  }
  renew(pair) {
    const renewed = (one) => (one.body.query === pair.query ? { ...one, body: { ...one.body, lease: pair.lease } } : one);
    kept.set(this.key, this.all.map(renewed));
  }
  drop(id) { kept.set(this.key, this.all.filter((one) => one.body.uuid !== id)); }
  now() { clearTimeout(this.timer); this.wait = 0; return this.send(); }
  async send() {
    if (this.busy) return;
    this.busy = true;
    try {
      for (let next = this.all[0]; next; next = this.all[0]) {
        try {
          const reply = await call(next.path, next.body);
          this.drop(next.body.uuid);
          this.trouble = null;
          this.changed(next, reply);
        } catch (error) {
          const final = error instanceof Refused && [400, 404, 409, 413, 422].includes(error.status);
          if (!final) {
            this.trouble = error;
            break;
          }
          // Sent again it would be refused again: shown instead, so that it does not block others.
          this.drop(next.body.uuid);
          this.refused.push(error.message);
        }
        this.changed();
      }
    } finally { this.busy = false; }
    this.changed();
    if (this.all.length) {
      this.wait = Math.min(15000, this.wait ? this.wait * 2 : 1000);
      this.timer = setTimeout(() => this.send(), this.wait);
    }
  }
}

// ---------------------------------------------------------------- clips

class Player {
  // Clips that begin together, and begin again together when the longest has ended.
  constructor() { this.videos = []; this.paused = still; this.rate = 1; }
  show(videos) {
    this.stop();
    this.videos = videos;
    this.generation = {};
    for (const video of videos) {
      video.addEventListener("ended", () => this.ended());
      video.addEventListener("canplay", () => this.begin());
      video.playbackRate = this.rate;
    }
    videos[0]?.addEventListener("timeupdate", () => this.align());
    this.begun = false;
    this.begin();
  }
  begin() {
    if (this.begun || !this.videos.length || this.videos.some((v) => v.readyState < 3)) return;
    this.begun = true;
    if (!this.paused) this.again();
  }
  again() {
    for (const video of this.videos) {
      if (video.currentTime > 0) video.currentTime = 0;
      video.playbackRate = this.rate;
      video.play().catch(() => {}); // a browser that forbids playing shows the first frames
    }
  }
  align() {
    // A busy machine may drop one clip behind the other.
    const [first, ...others] = this.videos;
    if (!first || first.seeking || first.paused) return;
    for (const video of others) {
      if (!video.ended && !video.seeking && Math.abs(video.currentTime - first.currentTime) > 0.15) video.currentTime = first.currentTime;
    }
  }
  ended() {
    if (this.paused || this.videos.some((v) => !v.ended)) return;
    const mine = this.generation;
    this.timer = setTimeout(() => mine === this.generation && !this.paused && this.again(), HOLD);
  }
  pause(paused) {
    this.paused = paused;
    clearTimeout(this.timer);
    if (paused) this.videos.forEach((v) => v.pause());
    else if (this.videos.every((v) => v.ended || v.currentTime === 0)) this.again();
    else this.videos.forEach((v) => v.ended || v.play().catch(() => {}));
  }
  speed(rate) { this.rate = rate; this.videos.forEach((v) => { v.playbackRate = rate; }); }
  stop() { clearTimeout(this.timer); this.videos.forEach((v) => v.pause()); this.videos = []; }
}

const loaded = new Map(); // item id -> its video, loading or loaded

function videoOf(item) {
  if (!loaded.has(item.id)) {
    const video = make("video", { preload: "auto", playsinline: true, muted: true, disablepictureinpicture: true });
    video.muted = true;
    video.src = `/clips/${item.id}.${format}`;
    video.load();
    loaded.set(item.id, video);
  }
  return loaded.get(item.id);
}

function forget(pairs) {
  const wanted = new Set(pairs.flatMap((pair) => pair.items.map((item) => item.id)));
  for (const [id, video] of loaded) {
    if (wanted.has(id)) continue;
    video.removeAttribute("src");
    video.load();
    loaded.delete(id);
  }
}

// ---------------------------------------------------------------- the page

const page = {
  session: null, outbox: null, player: new Player(), queue: [], current: null, order: [],
  answered: [], handled: new Map(), requests: 0, shownAt: 0, locked: false, why: null, name: "", online: true, recent: [],
};

function cardOf(item, label, choose) {
  const card = make("article", { class: "card", "data-item": item.id, "aria-label": label });
  if (item.kind === "clip") {
    const hint = make("div", { class: "hint" }, "Drawing the clip …");
    const video = videoOf(item).isConnected ? videoOf(item).cloneNode() : videoOf(item);
    video.setAttribute("aria-label", `${label} clip`);
    video.muted = true;
    // Not by readyState alone: a video that is being sent to its beginning says that it has nothing.
    const ready = () => card.classList.add("ready");
    for (const name of ["loadeddata", "canplay", "playing"]) video.addEventListener(name, ready);
    if (video.readyState >= 2) ready();
    const failed = async () => {
      let told = "The clip cannot be loaded.";
      try {
        const reply = await fetch(`/clips/${item.id}.${format}`);
        if (!reply.ok) told = (await reply.json()).error || told;
      } catch { told = "The connection is lost; the clip comes when it is back."; }
      card.classList.remove("ready");
      hint.replaceChildren(told, make("button", { type: "button", onclick: () => retry() }, "Try again"));
    };
    const retry = () => { hint.replaceChildren("Drawing the clip …"); video.src = `/clips/${item.id}.${format}`; video.load(); };
    video.addEventListener("error", failed);
    if (video.error) failed();
    card.retry = () => video.error && retry();
    card.append(make("span", { class: "label", "aria-hidden": "true" }, label), make("div", { class: "screen", ...(choose && { onclick: choose }) }, video, hint));
    card.video = video;
  } else {
    card.append(make("p", { class: "head", "aria-hidden": "true" }, label),
      make("div", { class: "text", tabindex: "0", role: "region", "aria-label": `${label} text` }, item.completion || "(empty)"));
  }
  return card;
}

function turns(messages) {
  return messages.map((one) => make("div", { class: "turn", tabindex: "0", role: "region", "aria-label": one.role || "prompt" },
    ...(one.role ? [make("b", {}, one.role)] : []), one.content));
}

function show(pair) {
  page.current = pair;
  page.locked = false;
  page.shownAt = performance.now();
  page.player.stop();
  const some = pair !== null;
  $("empty").hidden = some;
  $("choices").hidden = !some || pair.items.length > 2;
  $("ranking").hidden = !some || pair.items.length <= 2;
  $("skip").disabled = !some;
  const clips = some && pair.items[0].kind === "clip";
  $("pause").hidden = $("speed-box").hidden = !clips;
  const stage = $("stage");
  stage.replaceChildren();
  const context = some ? [...(pair.context ? [{ role: "", content: pair.context }] : []), ...(pair.items[0].prompt || [])] : [];
  $("context").replaceChildren(...turns(context));
  $("context").hidden = !context.length;
  if (!some) {
    stage.dataset.kind = "none";
    forget([]);
    return showEmpty();
  }
  const question = page.session.instruction || (clips ? "Which clip is better?" : "Which answer is better?");
  $("question").textContent = pair.items.length > 2 && !page.session.instruction ? "Order them, the best first" : question;
  stage.classList.toggle("texts", !clips);
  if (pair.items.length === 2) {
    stage.dataset.kind = "pair";
    // Two texts stand one above the other on a phone.
    const names = clips ? ["Left", "Right"] : ["First", "Second"];
    ["left", "right"].forEach((id, i) => { $(id).querySelector("span").textContent = `${names[i]} is better`; });
    stage.append(cardOf(pair.items[0], names[0], () => answer(1)), cardOf(pair.items[1], names[1], () => answer(0)));
  } else {
    stage.dataset.kind = "ranking";
    page.order = pair.items.map((_, i) => i);
    pair.items.forEach((item, i) => stage.append(rankCard(item, i)));
    placeCards();
  }
  page.player.show([...stage.children].map((card) => card.video).filter(Boolean));
  forget(page.queue);
  page.queue.slice(1).forEach((next) => next.items.forEach((item) => item.kind === "clip" && videoOf(item)));
}

function showEmpty() {
  const done = page.why === "done";
  $("question").textContent = "Nothing to compare right now";
  $("empty").classList.toggle("done", done);
  const lost = page.outbox?.trouble || !page.online;
  const [title, text] = lost
    ? ["The connection is lost", "What you have answered is kept in this browser and sent when the server is back. You need not do anything."]
    : {
        done: ["All done, thank you", "Every label that was asked for has been given. You can close this page."],
        others: ["The others have the rest", "Everything that is left is with other people right now. This page goes on by itself when there is more."],
        skipped: ["Only skipped ones are left", "What is left you have skipped. It comes back to you in a while."],
      }[page.why] || ["Waiting for the training to ask", "New comparisons appear here by themselves as soon as the policy has something to show."];
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
}

// ---------------------------------------------------------------- answering

const ordinal = (n) => ["1st", "2nd", "3rd"][n] || `${n + 1}th`;

function submit(fields, said, mark) {
  const pair = page.current;
  if (!pair || page.locked) return;
  page.locked = true;
  [...$("stage").children].forEach((card, i) => mark(i) && card.classList.add(mark(i)));
  const body = {
    uuid: uuid(), query: pair.query, lease: pair.lease, annotator: page.name, time: Date.now() / 1000,
    latency: Math.round(performance.now() - page.shownAt) / 1000, preference: null, ranking: null, ...fields,
  };
  page.current = null; // answered: what the server still holds must not bring it back
  page.answered.push(pair);
  page.recent.push(Date.now());
  page.queue = page.queue.filter((one) => one.query !== pair.query);
  page.handled.set(pair.query, page.requests);
  page.outbox.add("/api/answers", body);
  announce(`${said}. ${page.queue.length ? "Next comparison." : ""}`);
  // A moment to see what was chosen; longer would cost a tenth of the time of an answer.
  setTimeout(next, still ? 0 : 140);
}

const answer = (preference) => page.current?.items.length === 2 && submit({ preference },
  { 1: $("left").textContent.replace("←", ""), 0: $("right").textContent.replace("→", ""), 0.5: "Equal" }[preference] ?? "Can’t tell",
  (i) => (preference === null ? "" : preference === 0.5 ? "equal" : (i === 0) === (preference === 1) ? "chosen" : ""));

const saveOrder = () => page.current?.items.length > 2 && submit({ ranking: [...page.order] }, "Order saved", () => "equal");
const unsure = () => (page.current?.items.length > 2 ? submit({}, "Can’t tell", () => "") : answer(null));

function next() {
  show(page.queue[0] || null);
  refill();
}

async function undo() {
  if (page.locked || !page.name) return;
  page.locked = true;
  const back = page.answered.pop() || null;
  const before = page.queue;
  if (back) {
    page.queue = [back, ...before.filter((one) => one.query !== back.query)];
    page.handled.delete(back.query);
    show(back);
  }
  page.recent.pop();
  page.undoing = { back };
  await page.outbox.add("/api/undo", { uuid: uuid(), annotator: page.name });
  page.locked = false;
  announce(back ? "Undone. The last comparison is back." : "Undone.");
}

function undone(reply) {
  const { back } = page.undoing || {};
  page.undoing = null;
  if (!reply.pair) {
    if (!back) announce("There is nothing to undo.");
    return refill();
  }
  // The lease is new; after a reload the pair itself is.
  const fresh = { ...(back || {}), ...reply.pair };
  if (page.handled.has(fresh.query)) {
    // Answered again before this reply came: that answer takes the new lease.
    page.outbox.renew(fresh);
    return refill();
  }
  page.queue = [fresh, ...page.queue.filter((one) => one.query !== fresh.query)];
  if (page.current?.query === fresh.query) Object.assign(page.current, fresh);
  else show(fresh);
}

async function skip() {
  const pair = page.current;
  if (!pair || page.locked) return;
  page.queue = page.queue.filter((one) => one !== pair);
  page.handled.set(pair.query, page.requests);
  announce("Skipped.");
  show(page.queue[0] || null);
  page.outbox.add("/api/release", { uuid: uuid(), lease: pair.lease, query: pair.query, annotator: page.name, skip: true });
}

// ---------------------------------------------------------------- ranking

function rankCard(item, i) {
  const card = cardOf(item, `Choice ${i + 1}`);
  const place = make("span", { class: "place" });
  const button = (step, text, sign) => make("button", { type: "button", "aria-label": `Move choice ${i + 1} ${text}`, onclick: () => move(i, step) }, sign);
  card.append(make("div", { class: "moves" }, place, button(-1, "up", "↑"), button(1, "down", "↓")));
  card.place = place;
  card.index = i;
  card.addEventListener("pointerdown", (event) => drag(event, card));
  return card;
}

function placeCards() {
  for (const card of $("stage").children) {
    const at = page.order.indexOf(card.index);
    card.style.order = at;
    card.place.textContent = at === 0 ? "1st, the best" : ordinal(at);
  }
}

function move(index, step) {
  const from = page.order.indexOf(index);
  const to = Math.max(0, Math.min(page.order.length - 1, from + step));
  page.order.splice(to, 0, ...page.order.splice(from, 1));
  placeCards();
  announce(`Choice ${index + 1} is ${ordinal(to)}.`);
}

function drag(event, card) {
  if (event.target.closest("button, .text") || event.button !== 0) return;
  event.preventDefault();
  card.setPointerCapture(event.pointerId);
  card.classList.add("held");
  const over = (moved) => {
    const there = document.elementsFromPoint(moved.clientX, moved.clientY).map((node) => node.closest(".card")).find((one) => one && one !== card);
    if (!there) return;
    page.order = page.order.filter((i) => i !== card.index);
    const at = page.order.indexOf(there.index);
    const box = there.getBoundingClientRect();
    const past = box.width > box.height * 2 ? moved.clientY > box.top + box.height / 2 : moved.clientX > box.left + box.width / 2;
    page.order.splice(at + (past ? 1 : 0), 0, card.index);
    placeCards();
  };
  const end = () => {
    card.classList.remove("held");
    card.removeEventListener("pointermove", over);
  };
  card.addEventListener("pointermove", over);
  for (const name of ["pointerup", "pointercancel"]) card.addEventListener(name, end, { once: true });
}

// ---------------------------------------------------------------- asking for more

async function refill() {
  if (!page.name || page.asking) return;
  page.asking = true;
  const request = ++page.requests;
  try {
    const reply = await call("/api/next", { annotator: page.name, count: AHEAD, format });
    page.online = true;
    page.why = reply.why;
    // Answers on their way: the server still holds their pairs for this person.
    const gone = new Set(page.outbox.all.map((one) => one.body.query).filter(Boolean));
    // Nor what was answered or skipped after the server had looked.
    const late = (pair) => page.handled.get(pair.query) >= request;
    const fresh = reply.pairs.filter((pair) => !gone.has(pair.query) && !late(pair));
    const shown = page.current;
    const now = fresh.find((pair) => pair.query === shown?.query);
    if (now) Object.assign(shown, { lease: now.lease });
    const rest = fresh.filter((pair) => pair.query !== shown?.query);
    page.queue = shown ? [shown, ...rest] : rest;
    if (!shown && !page.locked) show(page.queue[0] || null);
    else rest.forEach((pair) => pair.items.forEach((item) => item.kind === "clip" && videoOf(item)));
    [...$("stage").children].forEach((card) => card.retry?.());
  } catch (error) {
    if (!(error instanceof Refused)) page.online = false;
    page.fault = error;
    if (!page.current) showEmpty();
  } finally {
    page.asking = false;
    status();
  }
}

function status(done, reply) {
  if (done?.path === "/api/undo") undone(reply);
  if (done?.path === "/api/answers" || done?.path === "/api/release") refill();
  if (reply?.progress) progress(reply.progress);
  const { outbox } = page;
  const many = outbox.all.filter((one) => one.path === "/api/answers").length;
  const answers = `${many} ${many === 1 ? "answer" : "answers"}`;
  const trouble = outbox.trouble || (page.online ? null : page.fault);
  const ended = [outbox.trouble, page.fault].some((one) => one?.status === 401);
  const [kind, text] = ended ? ["offline", `Link no longer valid${many ? `, ${answers} kept here` : ""}`]
    : trouble ? ["offline", many ? `Not connected, ${answers} kept here` : "Not connected"]
      : many ? ["sending", `Sending ${answers}`] : ["saved", "All answers saved"];
  $("state").dataset.kind = kind;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
  const lines = [];
  if (ended) lines.push("The server was started anew. Open the link that tether label has printed; your unsent answers are sent then.");
  else if (outbox.trouble instanceof Refused) lines.push(`The server cannot save answers at the moment: ${outbox.trouble.message}. They are kept in this browser and sent again.`);
  if (outbox.refused.length) lines.push(`Not accepted: ${outbox.refused.at(-1)}`);
  $("unsent").hidden = !lines.length;
  if ($("unsent").textContent !== lines.join(" ")) $("unsent").textContent = lines.join(" ");
}

// ---------------------------------------------------------------- progress and training

const number = (value) => (Math.abs(value) >= 10000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toLocaleString("en"));
const steps = (value) => (value >= 1e6 ? `${Number((value / 1e6).toPrecision(3))}M` : value >= 1e3 ? `${Number((value / 1e3).toPrecision(3))}k` : `${value}`);

function progress(now) {
  $("answered").textContent = now.answered.toLocaleString("en");
  $("goal").textContent = now.goal ? ` of ${now.goal.toLocaleString("en")} labels` : now.answered === 1 ? " label" : " labels";
  $("mine").textContent = now.mine.toLocaleString("en");
  $("rate").textContent = now.per_minute ? number(now.per_minute) : "–";
  $("open").textContent = now.open.toLocaleString("en");
  const most = now.goal || now.queries || 1;
  $("meter").setAttribute("aria-valuemax", most);
  $("meter").setAttribute("aria-valuenow", Math.min(now.answered, most));
  $("meter").firstElementChild.style.width = `${Math.min(100, (100 * now.answered) / most)}%`;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function plot({ title, points }, second) {
  const [W, H, left, bottom] = [256, 104, 40, 16];
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y1 - y0 < 1e-9) [y0, y1] = [y0 - 1, y1 + 1];
  const x = (v) => left + ((W - left - 6) * (v - x0)) / (x1 - x0 || 1);
  const y = (v) => 6 + (H - bottom - 12) * (1 - (v - y0) / (y1 - y0));
  const last = points.at(-1);
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${number(last[1])} at step ${steps(last[0])}, from ${number(ys[0])}` });
  for (const value of [y0, y1]) {
    svg.append(shape("line", { class: "grid", x1: left, x2: W, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, number(value)));
  }
  svg.append(shape("text", { x: left, y: H - 2 }, steps(x0)), shape("text", { x: W, y: H - 2, "text-anchor": "end" }, `${steps(x1)} steps`));
  svg.append(shape("path", { class: "curve", d: points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("") }));
  svg.append(shape("circle", { class: "end", cx: x(last[0]), cy: y(last[1]), r: 3 }));
  return make("div", { class: second ? "plot second" : "plot" }, make("p", {}, make("span", {}, title), make("b", {}, number(last[1]))), svg);
}

async function training() {
  const now = await call("/api/training");
  const curves = now.curves.filter((curve) => curve.points.length);
  $("plots").replaceChildren(...curves.map((curve, i) => plot(curve, i % 2)));
  const clip = now.policy;
  $("policy").hidden = !clip;
  $("training").hidden = !clip && !curves.length;
  const video = $("policy-video");
  if (clip && video.dataset.item !== clip.item) {
    video.dataset.item = clip.item;
    video.muted = true;
    video.src = `/clips/${clip.item}.${format}`;
    if (!still) video.play().catch(() => {});
    else video.controls = true;
    $("policy-caption").textContent = clip.step ? `As it was at step ${steps(clip.step)}` : "Before any training";
  }
}

const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);
const coefficient = (value) => (value === null ? "–" : value.toFixed(2));

async function people() {
  const now = await call("/api/annotators");
  const rows = now.annotators.map((one) => make("tr", {}, make("th", { scope: "row" }, one.name),
    ...[one.answers, one.ties, one.unsure, one.undone, one.seconds === null ? "–" : one.seconds.toFixed(1),
      one.last === null ? "–" : new Date(1000 * one.last).toLocaleString([], { dateStyle: "short", timeStyle: "short" })].map((value) => make("td", {}, String(value)))));
  $("people-rows").replaceChildren(...rows);
  $("people-lead").textContent = now.annotators.length ? `${now.annotators.length} ${now.annotators.length === 1 ? "person has" : "people have"} answered.` : "Nobody has answered yet.";
  $("agreement-rows").replaceChildren(...now.pairs.map((pair) => make("tr", {}, make("th", { scope: "row" }, `${pair.first} and ${pair.second}`),
    ...[String(pair.both), percent(pair.same), coefficient(pair.kappa)].map((value) => make("td", {}, value)))));
  $("agreement-box").hidden = !now.pairs.length;
  $("agreement-lead").textContent = now.pairs.length
    ? `Krippendorff’s α over everybody: ${coefficient(now.alpha)}. 1 is full agreement, 0 is chance.`
    : "Nobody has answered what another person has answered. Start with tether label --overlap 2 to have each comparison answered by two people.";
}

async function look() {
  if (document.hidden || !page.name) return;
  try {
    const [now] = await Promise.all([call(`/api/progress?annotator=${encodeURIComponent(page.name)}`), $("people").hidden ? training() : people()]);
    if (!page.online) refill();
    page.online = true;
    if (page.fault?.status !== 401) page.fault = null;
    progress(now);
  } catch (error) {
    page.fault = error;
    if (!(error instanceof Refused)) page.online = false;
  }
  status();
}

// ---------------------------------------------------------------- name, keys, start

async function askName(first) {
  const dialog = $("name-dialog");
  $("name-taken").hidden = true;
  $("name").value = page.name;
  const known = new Set((await call("/api/annotators").catch(() => ({ annotators: [] }))).annotators.map((one) => one.name));
  let sure = page.name;
  $("name-form").onsubmit = (event) => {
    const given = $("name").value.trim();
    if (!given || (known.has(given) && sure !== given)) {
      event.preventDefault();
      sure = given;
      $("name-taken").textContent = given ? `${given} has answered before. If that is you, press Begin again; otherwise choose another name.` : "Please give a name.";
      $("name-taken").hidden = false;
    }
  };
  dialog.oncancel = (event) => first && event.preventDefault();
  dialog.onclose = () => {
    const given = $("name").value.trim();
    if (!given || (given === page.name)) return page.name ? undefined : askName(true);
    Object.assign(page, { name: given, queue: [], current: null, answered: [], handled: new Map(), locked: false });
    kept.set("tether.name", given);
    begin();
  };
  dialog.showModal();
}

function begin() {
  $("who-name").textContent = page.name;
  show(null);
  page.outbox.now();
  refill().then(look);
}

function view() {
  const there = location.hash === "#people";
  $("people").hidden = !there;
  $("compare").hidden = there;
  for (const [id, here] of [["to-people", there], ["to-compare", !there]]) here ? $(id).setAttribute("aria-current", "page") : $(id).removeAttribute("aria-current");
  document.title = there ? "tether: people" : "tether: compare";
  look();
}

function pause() {
  const paused = !page.player.paused;
  page.player.pause(paused);
  $("pause").setAttribute("aria-pressed", paused);
  $("pause").lastElementChild.textContent = paused ? "Play" : "Pause";
}

const keys = {
  ArrowLeft: () => answer(1), ArrowRight: () => answer(0), ArrowDown: () => answer(0.5), ArrowUp: () => answer(null),
  Enter: saveOrder, u: undo, s: skip, " ": pause,
};

addEventListener("keydown", (event) => {
  if (event.repeat || event.altKey || event.metaKey || $("name-dialog").open || $("compare").hidden) return;
  const inside = event.target.closest("button, a, select, input, .text, .turn, video");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey && key !== "z") return;
  // Space and Enter press a focused button, arrows change a focused choice or scroll a long text.
  if (inside && (key === " " || key === "Enter" || inside.matches("select, input"))) return;
  if (inside?.matches(".text, .turn") && ["ArrowUp", "ArrowDown"].includes(key) && inside.scrollHeight > inside.clientHeight) return;
  const act = event.ctrlKey ? undo : keys[key];
  if (!act || (page.current?.items.length > 2 && key.startsWith("Arrow"))) return;
  event.preventDefault();
  act();
});

async function start() {
  // The token is in the cookie now, and should not be read off the screen or the history.
  if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname + location.hash);
  for (;;) {
    try {
      page.session = await call("/api/session");
      break;
    } catch (error) {
      $("state").dataset.kind = "offline";
      $("state-text").textContent = error.status === 401 ? "Open the link that tether label has printed" : "Not connected";
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
  $("title").textContent = page.session.title ? ` · ${page.session.title}` : "";
  page.outbox = new Outbox(page.session.store, status);
  const click = { left: () => answer(1), right: () => answer(0), tie: () => answer(0.5), unsure, rank: saveOrder, "rank-unsure": unsure, undo, skip, pause };
  for (const [id, act] of Object.entries(click)) $(id).addEventListener("click", act);
  $("who").addEventListener("click", () => askName(false));
  const rate = kept.get("tether.speed", "1");
  $("speed").value = rate;
  page.player.speed(Number(rate));
  $("speed").addEventListener("change", () => { page.player.speed(Number($("speed").value)); kept.set("tether.speed", $("speed").value); });
  if (still) { $("pause").setAttribute("aria-pressed", "true"); $("pause").lastElementChild.textContent = "Play"; }
  addEventListener("hashchange", view);
  document.addEventListener("visibilitychange", look);
  page.name = kept.get("tether.name", "");
  if (page.name) begin();
  else askName(true);
  view();
  setInterval(look, 3000);
  // Holds the leases of what is shown, and finds what the training has asked meanwhile.
  setInterval(() => { if (!document.hidden) refill(); }, page.session.poll * 1000);
  setInterval(() => { if (!document.hidden && !page.current) refill(); }, 1500);
}

start();
