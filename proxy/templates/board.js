// Keeps the log page new: rows and totals come as HTML that the proxy has made, escaped, through Server-Sent Events.
"use strict";

const MOST_ROWS = 200;
const SILENCE = 45_000; // milliseconds without the word that comes every 15 s: what has ended without one looks alive
const AGAIN = 20_000; // after a refusal, which may be that of a server in front while the proxy starts
const table = document.getElementById("entries");
const rows = table.tBodies[0];
const overview = document.getElementById("overview");
const state = document.getElementById("state");
const pause = document.getElementById("pause");
let after = table.dataset.after;
let source = null;
let timer = null;
let waiting = false; // there are new entries, and one of the old is open

function say(text, mood) {
  if (state.textContent !== text) state.textContent = text;
  state.className = mood;
}

function heard() {
  expect(SILENCE);
  say(waiting ? "Live; new entries wait while one is open" : "Live", "live");
}

function expect(time) {
  clearTimeout(timer);
  timer = setTimeout(listen, time);
}

function stop() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

function listen() {
  stop();
  waiting = false;
  say("Connecting", "off");
  const url = new URL(table.dataset.live, location.href);
  url.searchParams.set("after", after);
  source = new EventSource(url);
  source.onopen = heard;
  source.onerror = lost;
  source.addEventListener("alive", heard);
  source.addEventListener("entries", (event) => add(event.lastEventId, JSON.parse(event.data)));
  source.addEventListener("overview", (event) => show(JSON.parse(event.data)));
  source.addEventListener("trouble", (event) => fail(JSON.parse(event.data)));
  expect(SILENCE);
}

function lost() {
  if (source.readyState !== EventSource.CLOSED) return say("Connecting", "off");
  say("Not live: trying again. If this stays, reload the page", "off");
  expect(AGAIN);
}

function fail(text) {
  expect(SILENCE);
  say(text, "off");
}

function show(html) {
  overview.innerHTML = html;
  heard();
}

function reading() {
  return rows.querySelector("details[open]") !== null;
}

// What somebody reads neither moves nor goes. What does not come in then is asked for again.
function add(number, html) {
  waiting ||= reading();
  if (!waiting) {
    after = number;
    rows.querySelector(".none")?.remove();
    rows.insertAdjacentHTML("afterbegin", html);
    while (rows.rows.length > MOST_ROWS) rows.lastElementChild.remove();
  }
  heard();
}

rows.addEventListener("toggle", () => waiting && source && !reading() && listen(), true);

pause.addEventListener("click", () => {
  const paused = source !== null;
  pause.setAttribute("aria-pressed", String(paused));
  if (paused) {
    stop();
    say("Paused", "off");
  } else {
    listen();
  }
});

pause.hidden = false;
listen();
