"use strict";
// Live regions: <div data-live="/path"> is filled by the events of that path, each a JSON text of HTML that the server
// made and escaped. A stream that breaks off is asked for again, at longer and longer intervals, up to 30 s.
// Everything on these pages works without this script: a reload shows the same.

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function follow(region) {
  let pause = 1000;
  for (;;) {
    try {
      const answer = await fetch(region.dataset.live, { headers: { Accept: "text/event-stream" } });
      if (answer.status === 401 || answer.status === 404 || answer.redirected) return;
      if (!answer.ok) throw new Error(String(answer.status));
      pause = 1000;
      if (await read(answer.body.getReader(), region)) return;
    } catch { /* away: ask again */ }
    say(region, "The connection is interrupted; this page tries again.");
    await wait(pause);
    pause = Math.min(2 * pause, 30000);
  }
}

async function read(reader, region) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return false;
    text += decoder.decode(value, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (event.startsWith("event: done")) return true;
      if (event.startsWith("data: ")) show(region, JSON.parse(event.slice(6)));
    }
  }
}

function show(region, html) {
  const log = region.querySelector("pre.log");
  const below = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  const open = [...region.querySelectorAll("details")].map((one) => one.open);
  region.replaceChildren(document.createRange().createContextualFragment(html));
  region.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? one.open; });
  const now = region.querySelector("pre.log");
  if (now && below) now.scrollTop = now.scrollHeight;
  say(region, "");
}

function say(region, sentence) {
  const status = document.getElementById("connection");
  if (status && status.textContent !== sentence) status.textContent = sentence;
}

document.querySelectorAll("[data-live]").forEach(follow);

// The link that `anneal up` prints carries the key behind the #, which no server sees.
const key = document.querySelector("#sign-in input[name=key]");
if (key && location.hash.length > 1) {
  key.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  key.form.submit();
}
document.querySelectorAll("form[data-ask]").forEach((form) => {
  form.addEventListener("submit", (event) => { if (!confirm(form.dataset.ask)) event.preventDefault(); });
});
document.querySelectorAll("form[data-busy]").forEach((form) => {
  form.addEventListener("submit", () => { form.querySelector("[role=status]").textContent = form.dataset.busy; });
});
