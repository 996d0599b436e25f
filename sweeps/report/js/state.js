// What is picked, filtered and sorted: held in the address, so that a link brings it back.

class State {
  constructor(defaults) {
    this.defaults = { ...defaults, at: "" };
    this.values = { ...this.defaults };
    this.listeners = [];
    this.readAddress();
    const moved = () => {
      const before = this.values;
      this.readAddress();
      const changed = Object.keys(this.values).filter((name) => this.values[name] !== before[name]);
      if (changed.length) this.tell(changed);
      this.scroll();
    };
    addEventListener("popstate", moved);
    document.addEventListener("click", (event) => this.follow(event));
  }

  get(name) {
    return this.values[name];
  }

  // A step that "back" undoes is pushed; the others replace the address.
  set(changes, pushed = false) {
    const changed = Object.keys(changes).filter((name) => this.values[name] !== changes[name]);
    if (!changed.length) return;
    Object.assign(this.values, changes);
    const address = this.address();
    try {
      history[pushed ? "pushState" : "replaceState"](null, "", address);
    } catch {
      if (location.hash !== address) location.hash = address;
    }
    this.tell(changed);
  }

  listen(listener) {
    this.listeners.push(listener);
  }

  tell(changed) {
    for (const listener of this.listeners) listener(changed);
  }

  address() {
    const set = Object.entries(this.values).filter(([name, value]) => value !== this.defaults[name]);
    if (set.length === 1 && set[0][0] === "at") return `#${encodeURIComponent(this.values.at)}`;
    return `#${new URLSearchParams(set)}`;
  }

  readAddress() {
    const text = location.hash.slice(1);
    this.values = { ...this.defaults };
    if (!text.includes("=")) {
      try {
        this.values.at = decodeURIComponent(text);
      } catch {
        this.values.at = "";
      }
      return;
    }
    for (const [name, value] of new URLSearchParams(text)) {
      if (name in this.defaults) this.values[name] = value;
    }
  }

  // Links inside the page: to a section, or to a state such as "#pick=..." that joins the present one.
  follow(event) {
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const target = link.getAttribute("href").slice(1);
    if (target.includes("=")) {
      const changes = Object.fromEntries(new URLSearchParams(target));
      this.set({ at: "", ...changes }, true);
      const shown = document.getElementById("explore");
      if (shown && !shown.contains(link)) shown.scrollIntoView();
      return;
    }
    this.set({ at: target }, true);
    this.scroll(true);
  }

  scroll(focus = false) {
    const place = this.values.at && document.getElementById(this.values.at);
    if (!place) return;
    place.scrollIntoView();
    if (focus) {
      if (!place.hasAttribute("tabindex")) place.setAttribute("tabindex", "-1");
      place.focus({ preventScroll: true });
    }
  }
}
