// A run as the views need it: trials, their effects on each metric, and what is known of them besides.

class RunData {
  constructor(data) {
    this.facts = data;
    const columns = unpackedTable(data.trials);
    const has = (name) => columns[name] !== undefined;
    this.rows = columns.id.map((id, index) => ({
      index, id, site: columns.site[index], level: columns.level[index], path: columns.path[index],
      layer: columns.layer[index], head: columns.head[index], stream: columns.stream[index],
      mode: columns.mode[index], dataset: columns.dataset[index], protocol: columns.protocol[index],
      window: columns.window[index], windowText: columns.window_text[index],
      start: columns.t_start[index], end: columns.t_end[index],
      most: has("most") ? columns.most[index] : NaN,
      rank: has("rank") ? columns.rank[index] : NaN,
      rankLow: has("rank") ? columns.rank_low[index] : NaN,
      rankHigh: has("rank") ? columns.rank_high[index] : NaN,
      ranked: has("rank") ? columns.ranked[index] : NaN,
      rankImages: has("rank") ? columns.rank_images[index] : NaN,
      halves: has("half_a") ? [columns.half_a[index], columns.half_b[index]] : [NaN, NaN],
    }));
    this.byId = new Map(this.rows.map((trial) => [trial.id, trial]));
    this.metrics = Object.keys(data.effects);
    this.effects = new Map(this.metrics.map((metric) => [metric, this.effectsOn(metric)]));
    this.images = new ImageValues(data.images);
    this.controls = new Map();
    if (data.controls) {
      const rows = unpackedTable(data.controls);
      rows.trial.forEach((trial, row) => {
        this.controls.set(trial, Object.fromEntries(Object.entries(rows).map(([name, column]) => [name, column[row]])));
      });
    }
    this.heads = data.heads ? new HeadData(data.heads) : null;
  }

  effectsOn(metric) {
    const rows = unpackedTable(this.facts.effects[metric]);
    const effects = new Array(this.rows.length).fill(null);
    rows.trial.forEach((trial, row) => {
      effects[trial] = {
        percent: rows.percent[row], low: rows.ci_low[row], high: rows.ci_high[row], d_z: rows.d_z[row],
        p: rows.p[row], q: rows.q[row], n: rows.n[row], mean: rows.mean_log_ratio[row],
        verdict: rows.verdict[row], stopped: rows.stopped[row],
      };
    });
    return effects;
  }

  effect(metric, trial) {
    return (this.effects.get(metric) || [])[trial.index] || null;
  }

  measured(metric) {
    return this.rows.filter((trial) => this.effect(metric, trial));
  }

  // In the order of the run.
  values(name) {
    const there = new Set(this.rows.map((trial) => trial[name]));
    return this.facts.trials[name].names.filter((value) => there.has(value));
  }

  // The same site in the same window, whatever the data set and mode.
  alike(trial) {
    return this.rows.filter((other) => this.sameSite(trial, other) && other.window === trial.window);
  }

  // The same ablation in every window.
  overWindows(trial) {
    return this.rows.filter((other) => this.sameSite(trial, other) && other.mode === trial.mode);
  }

  sameSite(trial, other) {
    return other.site === trial.site && other.level === trial.level && other.protocol === trial.protocol;
  }
}

// Log ratios and baselines, image by image.
class ImageValues {
  constructor(data) {
    this.groups = data.group ? unpacked(data.group) : [];
    this.packed = data.metrics || {};
    this.opened = new Map();
  }

  metric(name) {
    if (!this.opened.has(name) && this.packed[name]) {
      const found = unpackedTable(this.packed[name]);
      found.starts = new Uint32Array(found.counts.length);
      for (let row = 1; row < found.counts.length; row++) {
        found.starts[row] = found.starts[row - 1] + found.counts[row - 1];
      }
      this.opened.set(name, found);
    }
    return this.opened.get(name) || null;
  }

  // [{image, ratio (log), baseline, ablated}], the baseline NaN where it is not known.
  of(name, trial) {
    const found = this.metric(name);
    if (!found) return [];
    const values = [];
    for (let image = 0; image < found.counts[trial.index]; image++) {
      const code = found.codes[found.starts[trial.index] + image];
      if (code === -32768) continue;
      const ratio = code * found.step[trial.index];
      const baseline = found.baseline[this.groups[trial.index] * found.units + image];
      values.push({ image, ratio, baseline, ablated: baseline * Math.exp(ratio) });
    }
    return values;
  }
}

// Types, entropies and attention of heads.
class HeadData {
  constructor(data) {
    this.facts = data;
    const rows = unpackedTable(data);
    this.rows = new Map();
    rows.dataset.forEach((dataset, row) => {
      this.rows.set(this.key(dataset, rows.layer[row], rows.head[row]), {
        type: rows.type[row], probability: rows.probability[row],
        entropy: data.times.map((t, place) => ({ t, nats: rows.entropy[row * data.times.length + place] })),
      });
    });
    this.maps = new Map();
    for (const map of data.maps) {
      const key = this.key(map.dataset, map.layer, map.head);
      this.maps.set(key, [...(this.maps.get(key) || []), map]);
    }
  }

  key(dataset, layer, head) {
    return JSON.stringify([dataset, layer, head]);
  }

  of(trial) {
    return this.rows.get(this.key(trial.dataset, trial.layer, trial.head)) || null;
  }

  attention(trial) {
    return this.maps.get(this.key(trial.dataset, trial.layer, trial.head)) || [];
  }
}
