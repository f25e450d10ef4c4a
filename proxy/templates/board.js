// Keeps the log page new: rows and totals come as HTML that the proxy has made, escaped, through Server-Sent Events.
"use strict";

const MOST_ROWS = 200;
const table = document.getElementById("entries");
const rows = table.tBodies[0];
const overview = document.getElementById("overview");
const state = document.getElementById("state");
const pause = document.getElementById("pause");
let after = table.dataset.after;
let source = null;

function say(text, mood) {
  if (state.textContent !== text) state.textContent = text;
  state.className = mood;
}

function listen() {
  const url = new URL(table.dataset.live, location.href);
  url.searchParams.set("after", after);
  source = new EventSource(url);
  source.onopen = () => say("Live", "live");
  source.onerror = () => say(source.readyState === EventSource.CLOSED ? "Not live: reload the page" : "Connecting", "off");
  source.addEventListener("entries", (event) => add(event.lastEventId, JSON.parse(event.data)));
  source.addEventListener("overview", (event) => show(JSON.parse(event.data)));
  source.addEventListener("trouble", (event) => say(JSON.parse(event.data), "off"));
}

function show(html) {
  overview.innerHTML = html;
  say("Live", "live");
}

function add(number, html) {
  after = number;
  rows.querySelector(".none")?.remove();
  rows.insertAdjacentHTML("afterbegin", html);
  while (rows.rows.length > MOST_ROWS) rows.lastElementChild.remove();
  say("Live", "live");
}

pause.addEventListener("click", () => {
  const paused = source !== null;
  pause.setAttribute("aria-pressed", String(paused));
  if (paused) {
    source.close();
    source = null;
    say("Paused", "off");
  } else {
    listen();
  }
});

pause.hidden = false;
listen();
