// Runs in <head>, before the first paint, so that a stored choice never flashes the other theme.
(() => {
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const apply = (theme) => { if (theme) root.dataset.theme = theme; else delete root.dataset.theme; };
  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("[data-theme-toggle]");
    if (!button) return;
    const dark = () => getComputedStyle(root).colorScheme === "dark";
    const show = () => button.setAttribute("aria-pressed", String(dark()));
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      const theme = dark() ? "light" : "dark";
      apply(theme);
      try { localStorage.setItem("theme", theme); } catch { /* a private window keeps the choice for this page only */ }
      show();
      document.dispatchEvent(new CustomEvent("themechange"));
    });
  });
})();
