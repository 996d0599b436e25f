// Elements with attributes and children; whatever comes from a run gets into the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const element = (tag, attributes = {}, ...children) => made(document.createElement(tag), attributes, children);

const drawn = (tag, attributes = {}, ...children) => made(document.createElementNS(SVG, tag), attributes, children);

const verdictMark = (verdict, look = verdict) => element("span", { class: `verdict ${look}` }, verdict || NONE);
