// Everything shown is set with textContent: what the server echoes is never markup.
"use strict";

const part = (id, selector) => document.querySelector(`#${id} ${selector}`);
const url = (id) => document.getElementById(id).dataset.url;

function say(element, text, bad = false) {
  element.textContent = text;
  element.classList.toggle("bad", bad);
}

function startClock() {
  const button = part("clock", "button"), status = part("clock", "[role=status]");
  const source = new EventSource(url("clock"));
  const stop = (text, bad) => {
    source.close();  // or the browser would connect again, for another minute
    say(status, text, bad);
    button.textContent = "Start again";
    button.onclick = startClock;
  };
  button.disabled = false;
  button.textContent = "Stop";
  button.onclick = () => stop("stopped: the app's generator is being closed");
  source.onmessage = (event) => {
    const tick = JSON.parse(event.data);
    part("clock", "output").textContent = new Date(tick.time).toLocaleTimeString("en-GB");
    part("clock", "progress").value = tick.number;
    say(status, `event ${tick.number} of ${tick.of}`);
  };
  source.addEventListener("end", () => stop("the minute is over"));
  source.onerror = () => stop("no stream: all are taken, or the server has gone", true);
}

async function sendSlow() {
  const button = part("slow", "button"), list = part("slow", "ol");
  button.disabled = true;
  list.replaceChildren();
  const started = performance.now();
  const elapsed = () => `${((performance.now() - started) / 1000).toFixed(2)} s`;
  await Promise.all([1, 2, 3, 4].map(async (number) => {
    const item = list.appendChild(document.createElement("li"));
    item.textContent = `${number}: sent`;
    try {
      const response = await fetch(`${url("slow")}?n=${number}`);  // a different address each: none waits for the other
      const answer = await response.json();
      item.textContent = `${number}: answered after ${elapsed()} by ${answer.worker}`;
    } catch (error) {
      say(item, `${number}: ${error.message}`, true);
    }
  }));
  button.disabled = false;
}

async function upload(form) {
  const status = part("upload", "[role=status]");
  say(status, "sending …");
  try {
    const response = await fetch(part("upload", "form").action, {
      method: "POST", body: form, headers: { Accept: "application/json" },
    });
    const isJson = (response.headers.get("Content-Type") || "").includes("json");
    const answer = isJson ? await response.json() : { problem: `${response.status} ${await response.text()}` };
    if (response.ok) {
      say(status, answer.files.map((file) => `${file.name}: ${file.bytes.toLocaleString("en")} bytes`).join(", "));
    } else {
      say(status, [answer.title, answer.problem, `Request id ${answer.request_id || "unknown"}`].filter(Boolean).join(" · "), true);
    }
  } catch (error) {
    say(status, `the upload was cut off: ${error.message}`, true);
  }
}

async function echo(form) {
  const shown = part("echo", "pre");
  shown.hidden = false;
  try {
    const response = await fetch(url("echo"), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(Object.fromEntries(form)),
    });
    const { method, body, body_bytes, request_id } = await response.json();
    shown.textContent = JSON.stringify({ method, body, body_bytes, request_id }, null, 2);
  } catch (error) {
    shown.textContent = error.message;
  }
}

for (const button of document.querySelectorAll("button")) button.disabled = false;
part("slow", "button").onclick = sendSlow;
part("upload", "form").onsubmit = (event) => {
  event.preventDefault();
  upload(new FormData(event.target));
};
part("upload", ".script").onclick = () => {
  const form = new FormData();
  form.append("file", new Blob([new Uint8Array(2_000_000)]), "two-megabytes.bin");
  upload(form);
};
part("echo", "form").onsubmit = (event) => {
  event.preventDefault();
  echo(new FormData(event.target));
};
startClock();
