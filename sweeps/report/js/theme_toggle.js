// Light, dark, or as the system has it.

function themeToggle(button) {
  const themes = ["auto", "light", "dark"];
  const remembered = () => {
    try {
      return localStorage.getItem("circuit-sweep-theme");
    } catch {
      return null;
    }
  };
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    button.dataset.theme = theme;
  };
  apply(themes.includes(remembered()) ? remembered() : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(button.dataset.theme) + 1) % themes.length];
    try {
      localStorage.setItem("circuit-sweep-theme", next);
    } catch {
      // Not every browser remembers anything for a page from disk.
    }
    apply(next);
  });
}
