// How numbers are written: the same as in wording.py.

const MINUS = "−";
const NONE = "–";

const signed = (text) => text.replace("-", MINUS);

function grouped(value, digits) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function percentText(value) {
  if (!Number.isFinite(value)) return NONE;
  const digits = Math.abs(value) < 1 ? 2 : Math.abs(value) < 100 ? 1 : 0;
  if (Math.abs(value) >= 1e15) return `${value < 0 ? MINUS : "+"}${Math.abs(value).toPrecision(3)}%`;
  const text = Math.abs(value) < 1000 ? value.toFixed(digits) : grouped(value, digits);
  return signed(`${text.startsWith("-") ? "" : "+"}${text}%`);
}

const intervalText = (low, high) => `${percentText(low)} to ${percentText(high)}`;

function decimalText(value, digits = 2) {
  if (!Number.isFinite(value)) return NONE;
  return signed(Math.abs(value) < 1e15 ? value.toFixed(digits) : value.toPrecision(3));
}

function probabilityText(value) {
  if (!Number.isFinite(value)) return NONE;
  return value >= 0.001 ? value.toFixed(3) : value.toExponential(0);
}

// Three significant digits, for values whose unit is a metric's own.
function valueText(value) {
  if (!Number.isFinite(value)) return NONE;
  return signed(String(Number(value.toPrecision(3))));
}

const countText = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

const fromLog = (ratio) => 100 * Math.expm1(ratio);

const logOf = (percent) => Math.log1p(percent / 100);
