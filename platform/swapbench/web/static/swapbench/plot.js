// Draws figures that the server made (Plotly's JSON) once they come into view; only then is plotly.js fetched.
(() => {
  const elements = document.querySelectorAll("[data-plot]");
  if (!elements.length) return;
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // The server names colours by token ("token:--ink"), so that a figure follows the theme.
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("token:") ? token(value.slice(6)) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    return value;
  };
  let loading;
  const plotly = (source) => (loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = () => resolve(window.Plotly);
    script.onerror = reject;
    document.head.append(script);
  }));
  const draw = async (element) => {
    try {
      const [Plotly, answer] = await Promise.all([plotly(element.dataset.plotly), fetch(element.dataset.plot)]);
      if (!answer.ok) throw new Error(`${answer.status}`);
      const figure = await answer.json();
      const render = () => {
        const { data, layout } = coloured(figure);
        Plotly.react(element, data, layout, { displayModeBar: false, responsive: true });
      };
      element.replaceChildren();
      render();
      element.dataset.drawn = "yes";
      document.addEventListener("themechange", render);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
    } catch {
      element.textContent = element.dataset.failed;
    }
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "200px" });
  for (const element of elements) watcher.observe(element);
})();
