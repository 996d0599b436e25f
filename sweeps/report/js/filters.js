// Choices that narrow the map and the table.

class Filters {
  // choices: {name, label, options: [[value, text]], all: text for no choice or null}.
  constructor(form, state, choices) {
    this.state = state;
    this.form = form;
    this.known = new Map(choices.map(({ name, options }) => [name, new Set(options.map(([value]) => value))]));
    this.selects = choices.map(({ name, label, options, all }) => {
      const select = element("select", { name, onchange: () => state.set({ [name]: select.value }) },
        all === null ? [] : element("option", { value: "" }, all), options.map(([value, text]) => element("option", { value }, text)));
      form.append(element("label", {}, label, select));
      return select;
    });
    this.search = element("input", { type: "search", name: "search", placeholder: "L3H5, zero …", oninput: () => state.set({ search: this.search.value }) });
    form.append(element("label", {}, element("span", {}, "Search ", element("kbd", {}, "/")), this.search));
    this.reset = element("button", { type: "button", onclick: () => this.clear() }, "Reset");
    this.count = element("output", { "aria-live": "polite" });
    form.append(this.reset, this.count);
    form.addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest && event.target.closest("input, select, textarea");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        this.search.focus();
        this.search.select();
      }
    });
  }

  // What is chosen; the default where the address names what is not there.
  chosen(name) {
    const value = this.state.get(name);
    return this.known.get(name).has(value) ? value : this.state.defaults[name];
  }

  clear() {
    const names = [...this.selects.map((select) => select.name), "search", "sort"];
    this.state.set(Object.fromEntries(names.map((name) => [name, this.state.defaults[name]])));
  }

  show(shown, all) {
    for (const select of this.selects) {
      select.value = this.chosen(select.name);
      select.classList.toggle("chosen", select.value !== this.state.defaults[select.name]);
    }
    if (this.search.value !== this.state.get("search")) this.search.value = this.state.get("search");
    this.count.textContent = `${shown.toLocaleString("en")} of ${all.toLocaleString("en")}`;
  }
}
