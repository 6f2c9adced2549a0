"use strict";
// Every text from a model or a user enters the page by textContent only.

const $ = id => document.getElementById(id);
const key = location.hash.slice(1);
let about, shown;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const visible = text => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
const percent = p => Math.abs(p) < 0.0005 ? "<0.1 %" : (100 * p).toFixed(1) + " %";
const signed = x => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

async function call(path, body, signal) {
  const options = {headers: {"x-token": key}, signal};
  if (body) Object.assign(options, {method: "POST", body: JSON.stringify(body)});
  let response;
  try {
    response = await fetch(path, options);
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("the server does not answer: has minillm play ended?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let sentence = text;
  try { sentence = JSON.parse(text).error; } catch { /* a plain sentence */ }
  throw new Error(sentence);
}

function report(problem) {
  $("problem").textContent = problem ? problem.message : "";
  $("problem").hidden = !problem;
}

// One request at a time; the next one is of what is chosen when it has been answered.
let running = false, wanted = false, timer;
const state = {position: -1};

const model = () => ({
  adapter: $("adapter").value === "" ? null : Number($("adapter").value), scale: Number($("scale").value),
});

async function update() {
  wanted = true;
  if (running) return;
  running = true;
  while (wanted) {
    wanted = false;
    const view = {
      ...model(), text: $("text").value, chat: $("template").checked, position: state.position, wide: $("wide").checked,
      layer: Number($("layer").value), head: Number($("head").value),
    };
    try {
      const found = await (await call("api/look", view)).json();
      shown = {...found, view};
      show();
      report();
    } catch (problem) {
      report(problem);
    }
  }
  running = false;
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(update, 60);
}

function show() {
  const compared = shown.view.adapter !== null;
  const differences = shown.adapted.map((score, index) => score - shown.base[index]);
  showTokens(compared, differences);
  showNext(compared);
  showLens();
  showScores(compared, differences);
  drawAttention();
}

function coloured(element, difference) {
  element.classList.add(difference < 0 ? "down" : "up");
  element.style.setProperty("--d", Math.max(-1, Math.min(1, difference / 2)));
  return element;
}

function likely(element, p) {
  element.classList.add("p");
  element.style.setProperty("--p", p);
  return element;
}

function showTokens(compared, differences) {
  $("count").textContent = `${shown.tokens.length} tokens` + (shown.prefix ? `, after a prefix of ${shown.prefix}` : "");
  $("legend").replaceChildren(...(compared
    ? [coloured(make("span", {textContent: "more likely"}), 2), " and ", coloured(make("span", {textContent: "less likely"}), -2),
      " with the adapter"]
    : [likely(make("span", {textContent: "expected"}), 1), " by the model"]));
  const focused = $("tokens").contains(document.activeElement);
  $("tokens").replaceChildren(...shown.tokens.map((token, index) => {
    const chosen = index === shown.position;
    const element = make("span", {textContent: visible(token), tabIndex: chosen ? 0 : -1});
    set(element, {role: "option", "aria-selected": chosen});
    element.addEventListener("click", () => choose(index));
    if (index === 0) return element;
    element.title = `log p ${shown.base[index - 1].toFixed(2)}`
      + (compared ? `, with the adapter ${shown.adapted[index - 1].toFixed(2)}` : "");
    return compared ? coloured(element, differences[index - 1]) : likely(element, Math.exp(shown.base[index - 1]));
  }));
  if (focused) $("tokens").children[shown.position].focus();
}

function choose(index) {
  const last = shown.tokens.length - 1;
  state.position = index >= last ? -1 : Math.max(0, index);
  update();
}

function showNext(compared) {
  $("after").textContent = visible(shown.tokens[shown.position]);
  const largest = Math.max(...shown.next_adapted, ...(compared ? shown.next_base : []));
  const meter = (p, name) => {
    const bar = make("span", {className: name});
    bar.style.width = 100 * p / largest + "%";
    return bar;
  };
  $("next").tBodies[0].replaceChildren(...shown.next.map((token, index) => {
    const [now, before] = [shown.next_adapted[index], shown.next_base[index]];
    const bars = make("td", {}, meter(now, "meter"), ...(compared ? [meter(before, "meter base")] : []));
    const numbers = make("td", {className: "number", textContent: percent(now)});
    if (compared) numbers.append(make("span", {className: "hint", textContent: `  base ${percent(before)}`}));
    const name = make("th", {className: "token", textContent: visible(token), scope: "row"});
    return make("tr", {}, name, bars, numbers);
  }));
}

function showLens() {
  const heads = shown.lens[0].map((_, index) => make("th", {
    className: "token", scope: "col", textContent: visible(shown.tokens[shown.lens_start + index])}));
  const rows = shown.lens.map((tokens, layer) => {
    const name = make("th", {textContent: layer ? `block ${layer - 1}` : "embeddings", scope: "row"});
    return make("tr", {}, name, ...tokens.map((token, index) => {
      const p = shown.lens_probabilities[layer][index];
      const cell = make("td", {className: "token", textContent: visible(token), title: percent(p)});
      if (tokens.length > 1 && shown.lens_start + index === shown.position) cell.setAttribute("aria-current", true);
      return likely(cell, p);
    }), ...(tokens.length > 1 ? [] : [make("td", {
      className: "number", textContent: percent(shown.lens_probabilities[layer][0])})]));
  });
  $("lens").replaceChildren(make("thead", {}, make("tr", {}, make("th", {textContent: "after"}), ...heads)),
    make("tbody", {}, ...rows.reverse()));
}

function showScores(compared, differences) {
  const titles = ["token", "base", ...(compared ? ["adapted", "difference"] : [])];
  const cell = text => make("td", {className: "number", textContent: text});
  const rows = shown.tokens.slice(1).map((token, index) => {
    const numbers = [cell(shown.base[index].toFixed(2))], change = differences[index];
    if (compared) numbers.push(cell(shown.adapted[index].toFixed(2)), coloured(cell(signed(change)), change));
    const row = make("tr", {}, make("th", {className: "token", textContent: visible(token), scope: "row"}), ...numbers);
    if (index + 1 === shown.position) row.setAttribute("aria-current", true);
    return row;
  });
  const sum = list => list.reduce((total, x) => total + x, 0);
  const totals = [sum(shown.base).toFixed(2), ...(compared ? [sum(shown.adapted).toFixed(2), signed(sum(differences))] : [])];
  rows.push(make("tr", {}, make("th", {textContent: "sum", scope: "row"}), ...totals.map(cell)));
  $("scores").replaceChildren(
    make("thead", {}, make("tr", {}, ...titles.map((title, index) => make("th", {
      className: index ? "number" : "", textContent: title, scope: "col"})))), make("tbody", {}, ...rows));
}

// The heat map: a row per query, a column per key; the columns of the prefix stand apart on the left.
let drawn;

function drawAttention() {
  const canvas = $("attention"), rows = shown.attention, {prefix, tokens} = shown, columns = rows[0].length;
  const style = getComputedStyle(document.documentElement);
  const [ink, up, down, before, accent] = ["--ink", "--up", "--down", "--prefix", "--accent"].map(name => style.getPropertyValue(name));
  const margin = tokens.length <= 48 ? 76 : 0, gap = prefix ? 8 : 0, width = canvas.parentElement.clientWidth - 30;
  const size = Math.max(1, Math.min(26, (width - margin - gap) / columns));
  const height = margin + size * rows.length, ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const left = column => margin + column * size + (column >= prefix ? gap : 0);
  const cell = (query, column, colour, alpha) => {
    context.globalAlpha = alpha;
    context.fillStyle = colour;
    context.fillRect(left(column), margin + query * size, Math.max(size - 1, 0.8), Math.max(size - 1, 0.8));
  };
  rows.forEach((row, query) => row.slice(0, prefix + query + 1).forEach((weight, column) => {
    cell(query, column, ink, 0.06);
    cell(query, column, weight < 0 ? down : column < prefix ? before : up, Math.min(1, Math.sqrt(Math.abs(weight) / 1000)));
  }));
  context.globalAlpha = 1;
  context.strokeStyle = accent;
  context.strokeRect(margin - 0.5, margin + shown.position * size - 0.5, left(prefix + shown.position) + size - margin, size);
  if (margin && size >= 9) label(context, style.getPropertyValue("--dim"), before, left, size, margin);
  drawn = {size, margin};
  describe(shown.position);
}

function label(context, colour, prefixColour, left, size, margin) {
  const short = text => visible(text).length > 9 ? visible(text).slice(0, 8) + "…" : visible(text);
  context.font = `${Math.min(12, size)}px ui-monospace, monospace`;
  context.fillStyle = colour;
  context.textBaseline = "middle";
  const upwards = (text, column) => {
    context.save();
    context.textAlign = "left";
    context.translate(left(column) + size / 2, margin - 5);
    context.rotate(-Math.PI / 2);
    context.fillText(text, 0, 0);
    context.restore();
  };
  shown.tokens.forEach((token, index) => {
    context.textAlign = "right";
    context.fillText(short(token), margin - 5, margin + (index + 0.5) * size);
    upwards(short(token), shown.prefix + index);
  });
  context.fillStyle = prefixColour;
  if (shown.prefix) upwards("prefix", 0);
}

function describe(query) {
  const name = column => column < shown.prefix ? `prefix ${column}` : `“${visible(shown.tokens[column - shown.prefix])}”`;
  const order = shown.attention[query].map((weight, column) => [weight, column]).sort(([a], [b]) => Math.abs(b) - Math.abs(a)).slice(0, 3);
  const most = order.map(([weight, column]) => `${name(column)} ${percent(weight / 1000)}`).join(", ");
  const {layer, head} = shown.view;
  $("attended").textContent = `“${visible(shown.tokens[query])}” attends to ${most}`;
  $("attention").setAttribute("aria-label", `Attention of layer ${layer}, head ${head}. ${$("attended").textContent}`);
}

function listen() {
  for (const id of ["text", "scale"]) $(id).addEventListener("input", soon);
  for (const id of ["adapter", "template", "wide"]) $(id).addEventListener("change", update);
  for (const id of ["layer", "head"]) $(id).addEventListener("input", update);
  for (const id of ["layer", "head", "scale"]) {
    $(id).addEventListener("input", () => {
      $(id + "-value").textContent = id === "scale" ? Number($(id).value).toFixed(2) : $(id).value;
    });
  }
  $("adapter").addEventListener("change", () => {
    $("scale").disabled = model().adapter === null;
    $("insert").hidden = !about.adapters[model().adapter]?.prompt;
  });
  $("text").addEventListener("input", () => { state.position = -1; });
  $("insert").addEventListener("click", () => {
    const {prompt, chat} = about.adapters[model().adapter];
    $("text").value = prompt.replace("{text}", () => $("text").value);
    $("template").checked = chat;
    state.position = -1;
    update();
  });
  $("tokens").addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity}[event.key];
    if (!step || !shown) return;
    event.preventDefault();
    choose(shown.position + step);
  });
  const pointed = (event, action) => {
    const query = shown && Math.floor((event.offsetY - drawn.margin) / drawn.size);
    if (shown && query in shown.tokens) action(query);
  };
  $("attention").addEventListener("mousemove", event => pointed(event, describe));
  $("attention").addEventListener("mouseleave", () => shown && describe(shown.position));
  $("attention").addEventListener("click", event => pointed(event, choose));
  const redraw = () => shown && drawAttention();
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function listenToTabs() {
  const tabs = [$("tab-look"), $("tab-chat")];
  const open = chosen => {
    for (const tab of tabs) {
      set(tab, {"aria-selected": tab === chosen, tabindex: tab === chosen ? 0 : -1});
      $(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    chosen.focus();
    if (chosen === tabs[0] && shown) drawAttention();
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", event => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") open(tabs[1 - index]);
    });
  });
}

// The chat: the page holds the conversation and sends all of it.
function listenToChat() {
  const messages = [];
  let answer = null;
  const add = (role, content) => {
    const element = make("p", {className: role, textContent: content});
    $("messages").append(element);
    return element;
  };
  const say = async text => {
    const sent = [...messages, {role: "user", content: text}];
    const asked = add("user", text), element = add("assistant", "…");
    answer = new AbortController();
    [$("send").disabled, $("stop").disabled] = [true, false];
    let content = "";
    try {
      const response = await call("api/chat", {...model(), messages: sent}, answer.signal);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        content += part.value;
        element.textContent = content;
        element.scrollIntoView({block: "nearest"});
      }
      report();
    } catch (problem) {
      if (problem.name !== "AbortError") report(problem);
    }
    if (content) messages.splice(0, Infinity, ...sent, {role: "assistant", content});
    else { asked.remove(); element.remove(); $("message").value = text; }
    [$("send").disabled, $("stop").disabled] = [false, true];
  };
  $("say").addEventListener("submit", event => {
    event.preventDefault();
    const text = $("message").value.trim();
    if (!text || $("send").disabled) return;
    $("message").value = "";
    say(text);
  });
  $("message").addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("say").requestSubmit();
  });
  $("stop").addEventListener("click", () => answer?.abort());
  $("clear").addEventListener("click", () => {
    answer?.abort();
    messages.length = 0;
    $("messages").replaceChildren();
  });
}

async function start() {
  about = await (await call("api/about")).json();
  $("base").textContent = about.name;
  $("layer").max = about.layers - 1;
  $("head").max = about.heads - 1;
  about.adapters.forEach(({name, method}, index) => {
    $("adapter").append(make("option", {value: index, textContent: `${name} (${method})`}));
  });
  listen();
  listenToTabs();
  listenToChat();
  await update();
}

start().catch(report);
