// Keeps elements with data-live fresh. The server says how often (data-every, seconds); an unchanged answer (304) and an
// unreachable server stretch the pause, a change resets it, and a hidden tab does not ask at all.
(() => {
  const LONGEST = 30;
  const tags = new Map(); // URL -> ETag of what is on the page
  const timers = new WeakMap();
  const paused = new Set();

  const schedule = (element, seconds) => {
    clearTimeout(timers.get(element));
    element.dataset.pause = String(seconds);
    timers.set(element, setTimeout(() => ask(element), seconds * 1000));
  };
  const ask = (element) => {
    if (!element.isConnected) return;
    if (document.hidden) { paused.add(element); return; }
    htmx.trigger(element, "refresh");
  };
  const start = (root) => {
    const found = root.matches?.("[data-live]") ? [root] : [];
    for (const element of [...found, ...root.querySelectorAll("[data-live]")]) {
      schedule(element, Number(element.dataset.every) || 3);
    }
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const element of paused) ask(element);
    paused.clear();
  });
  document.addEventListener("htmx:configRequest", (event) => {
    const tag = tags.get(event.detail.path);
    if (tag && event.detail.elt.hasAttribute("data-live")) event.detail.headers["If-None-Match"] = tag;
  });
  const stale = (is) => {
    const notice = document.querySelector("[data-stale]");
    if (notice) notice.hidden = !is;
  };
  const later = (element, factor) => schedule(element, Math.min(LONGEST, (Number(element.dataset.pause) || 3) * factor));
  // Before the swap, while the element that asked is still part of the page; the new one is scheduled by htmx:load.
  document.addEventListener("htmx:beforeOnLoad", (event) => {
    const { elt: element, xhr: request, pathInfo } = event.detail;
    if (!element.hasAttribute("data-live")) return;
    const answered = request.status === 200 || request.status === 304;
    stale(!answered);
    if (request.status === 200) {
      const tag = request.getResponseHeader("ETag");
      if (tag) tags.set(pathInfo.requestPath, tag);
    } else {
      later(element, answered ? 1.3 : 2);
    }
  });
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, (event) => {
      if (!event.detail.elt.hasAttribute("data-live")) return;
      stale(true);
      later(event.detail.elt, 2);
    });
  }
  document.addEventListener("htmx:load", (event) => start(event.detail.elt));

  // Relative times age without a request.
  const age = () => {
    const format = new Intl.RelativeTimeFormat(document.documentElement.lang, { style: "short" });
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const seconds = (Date.parse(time.dateTime) - Date.now()) / 1000;
      const [unit, size] = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]].find(([, s]) => Math.abs(seconds) >= s) ?? ["second", 1];
      time.textContent = format.format(Math.trunc(seconds / size), unit);
    }
    for (const time of document.querySelectorAll("time[data-left]")) {
      const left = Math.max(0, Math.round((Date.parse(time.dateTime) - Date.now()) / 1000));
      time.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    }
  };
  setInterval(age, 1000);

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = button.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = button.dataset.copied;
      setTimeout(() => { button.textContent = button.dataset.copy; }, 1600);
    } catch {
      getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
    }
  });
  // A choice in a filter form is applied at once; without scripts its button does it.
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-apply]");
    if (form) form.requestSubmit();
  });
})();
