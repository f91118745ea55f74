// Keeps what is marked `data-live` up to date. Every page works without this script.
"use strict";

let stream = null;

async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (answer.redirected || !answer.ok) {
    location.reload(); // The session has ended.
    return;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = page.getElementById(part.id);
    // What somebody has opened or is typing into stays.
    const inUse = part.contains(document.activeElement) || part.querySelector("details[open]");
    if (now && now.innerHTML !== part.innerHTML && !inUse) {
      part.replaceChildren(...now.childNodes);
    }
  }
}

// A browser has six connections to a server of HTTP/1.1, for all tabs together.
function follow() {
  const wanted = !document.hidden && document.querySelector("[data-live]");
  if (wanted && !stream) {
    stream = new EventSource("/live");
    stream.onmessage = () => refresh().catch(() => {});
  } else if (!wanted && stream) {
    stream.close();
    stream = null;
  }
}

document.addEventListener("visibilitychange", follow);
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) {
    document.getElementById("find")?.focus();
    event.preventDefault();
  }
});
document.addEventListener("click", async (event) => {
  const copied = event.target.closest("[data-copy]");
  if (copied) {
    await navigator.clipboard.writeText(document.getElementById(copied.dataset.copy).textContent);
    copied.textContent = "Copied";
  }
});
follow();
