// Words: counts, durations and rates as they are read.

const whole = new Intl.NumberFormat("en");

function plural(count, noun) {
  return `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function shortCount(count) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (count >= size) return `${Number((count / size).toPrecision(3))} ${unit}`;
  }
  return String(count);
}

function duration(ms) {
  const s = ms / 1000;
  if (s < 0.01) return "under 0.01 s";
  if (s < 0.1) return `${s.toFixed(2)} s`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

function rateOf(tokens, ms) {
  const rate = tokens / (ms / 1000);
  return rate < 10 ? rate.toFixed(1) : whole.format(Math.round(rate));
}
