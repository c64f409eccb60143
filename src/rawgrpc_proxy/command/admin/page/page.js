// The live page of the admin listener. It hears one `state` event a second from `events`, with totals since the start, and
// shows differences between them. Nothing here changes the proxy.
//
// Held to: what peers have a say in becomes text by `textContent`, never markup; the number of elements is bounded, whatever
// arrives; an update writes only what has changed and never asks for the layout; a total that goes down is a new beginning.
'use strict';

const CHART_S = 300;
const RETRY_MS = [1000, 2000, 5000]; // and then every five seconds
const SILENT_MS = 6000; // so long without an event, and the stream counts as lost
const QUIET_S = 30; // so long without anything, and a call that was never answered is worth a look
const NARROW = matchMedia('(max-width: 40rem)'); // where a row takes the room of five
const ALARMING = 0.01; // the share of failing calls from which on they are worth a look
const MOST_SENTENCES = 12; // of what needs attention
const REPLACED_S = 300; // so long a new worker is worth a mention
const TEXT_LIMIT = 300; // characters shown of what a peer says
const NAME_LIMIT = 90; // and of the name of a method

const FAILING = new Set([
  'UNKNOWN', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED', 'UNIMPLEMENTED', 'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS',
]);
const ANSWERS = new Set([
  'OK', 'CANCELLED', 'INVALID_ARGUMENT', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'FAILED_PRECONDITION',
  'ABORTED', 'OUT_OF_RANGE', 'UNAUTHENTICATED',
]);
const isFailing = (status) => FAILING.has(status) || !ANSWERS.has(status);

// ---------------------------------------------------------------------------------------------------------- text

const number = (value) => (Number.isFinite(value) ? value : 0);
const entries = (value) => (value && typeof value === 'object' ? Object.entries(value) : []);
// Names come from peers: one that is called "constructor" must not find what objects have by themselves.
const own = (object, key) => (object && Object.hasOwn(object, key) ? object[key] : undefined);
const list = (value) => (Array.isArray(value) ? value : []);
const sum = (values) => values.reduce((total, value) => total + number(value), 0);

const grouped = new Intl.NumberFormat('en');
const integer = (value) => grouped.format(Math.round(number(value)));

function rate(value) {
  if (value === null) return '–';
  if (value >= 99.95 || value === 0) return integer(value);
  return value >= 9.995 ? value.toFixed(1) : value >= 0.005 ? value.toFixed(2) : '<0.01';
}

function percent(share) {
  if (share === null) return '–';
  const value = share * 100;
  if (value === 0) return '0 %';
  if (value < 0.01) return '<0.01 %';
  return `${value < 0.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : integer(value)} %`;
}

function duration(seconds) {
  if (seconds === null) return '–';
  if (seconds < 0.0001) return `${Math.round(seconds * 1e6)} µs`;
  const ms = seconds * 1000;
  if (ms < 999.5) return `${ms < 0.995 ? ms.toFixed(2) : ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;
  if (seconds < 59.95) return `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const [s, m, h] = [seconds, seconds / 60, seconds / 3600].map(Math.floor);
  if (m < 60) return `${m} min ${s % 60 ? `${s % 60} s` : ''}`.trim();
  if (h < 48) return `${h} h ${m % 60 ? `${m % 60} min` : ''}`.trim();
  return `${Math.floor(h / 24)} d ${h % 24 ? `${h % 24} h` : ''}`.trim();
}

// How long something has been so: whole seconds.
const age = (seconds) => (seconds < 0.5 ? '0 s' : seconds < 59.5 ? `${Math.round(seconds)} s` : duration(Math.round(seconds)));

function latency(found) {
  return found === null ? '–' : (found.beyond ? '>' : '') + duration(found.seconds);
}

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let left = number(value);
  let unit = 0;
  while (left >= 1023.5 && unit < units.length - 1) {
    left /= 1024;
    unit += 1;
  }
  return `${left < 9.95 && unit ? left.toFixed(1) : Math.round(left)} ${units[unit]}`;
}

// What a peer says, fit to be read: its control characters, and those that turn the direction of text, are spelled out.
function said(value, limit = TEXT_LIMIT) {
  const whole = String(value ?? '');
  const cut = whole.length > limit ? `${whole.slice(0, limit)}…` : whole;
  return cut.replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

const clockTime = (unix) => new Date(unix * 1000).toLocaleTimeString('en-GB');
const plural = (count, one, many) => `${integer(count)} ${count === 1 ? one : many}`;

// ------------------------------------------------------------------------------------------------------ elements

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// Pieces of text in a cell: [text, class]. It is built again only if it changes.
function setPieces(node, pieces) {
  const signature = JSON.stringify(pieces);
  if (node.signature === signature) return;
  node.signature = signature;
  node.replaceChildren(...pieces.map(([text, kind]) => element('span', kind ? { class: kind } : {}, text)));
}

// As many children as items, the ones that are there used again.
function fill(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, index) => update(parent.children[index], item));
}

// --------------------------------------------------------------------------------------------------------- table

// A table of bounded length, whose rows keep their elements by key, so that focus, selection and what is unfolded stay.
// A column: {label, width, number, sort(row), cell(td, row)}; without `sort` it cannot be sorted by. Widths are fixed, so that
// nothing moves sideways as figures change; columns without one share the rest. While the pointer or the focus is in the
// body, rows stay where they are: nothing is to run away from who reads or selects it.
class Table {
  constructor(parent, { labelledby, columns, sort = null, down = true, compare = null, limit = 25, most = 500, small = false, none }) {
    Object.assign(this, { columns, compare, limit, most, small, none });
    this.sort = sort;
    this.down = down;
    this.rows = [];
    this.all = false;
    this.kept = new Map();
    this.headers = columns.map((column, index) => this.header(column, index));
    this.body = element('tbody', { role: 'rowgroup' });
    this.empty = element('p', { class: 'empty' }, none);
    this.more = element('button', { type: 'button', class: 'more' });
    this.more.addEventListener('click', () => {
      this.all = !this.all;
      this.draw();
    });
    // Roles, for the phone's layout takes from a table what makes it one for those who hear the page.
    this.table = element(
      'table',
      { role: 'table', 'aria-labelledby': labelledby, class: small ? 'small' : '' },
      element('thead', { role: 'rowgroup' }, element('tr', { role: 'row' }, ...this.headers)),
      this.body,
    );
    parent.append(this.table, this.empty, this.more);
    this.mark();
  }

  header(column, index) {
    const th = element('th', { scope: 'col', role: 'columnheader' });
    if (column.width) th.style.width = column.width;
    if (column.number) th.className = 'number';
    if (!column.sort) {
      th.append(column.label);
      return th;
    }
    const button = element('button', { type: 'button' }, column.label);
    button.addEventListener('click', () => {
      this.down = this.sort === index ? !this.down : Boolean(column.number);
      this.sort = index;
      this.mark();
      this.draw(true);
    });
    th.append(button);
    return th;
  }

  mark() {
    this.headers.forEach((th, index) => {
      setAttribute(th, 'aria-sort', index === this.sort ? (this.down ? 'descending' : 'ascending') : null);
    });
  }

  show(rows) {
    this.rows = rows;
    this.draw();
  }

  ordered(anew) {
    const rows = [...this.rows];
    const held = !anew && (this.body.matches(':hover') || this.body.contains(document.activeElement));
    if (this.sort !== null) {
      const value = this.columns[this.sort].sort;
      const sign = this.down ? -1 : 1;
      rows.sort((a, b) => {
        const [x, y] = [value(a) ?? -Infinity, value(b) ?? -Infinity];
        return x < y ? -sign : x > y ? sign : a.key < b.key ? -1 : 1;
      });
    } else if (this.compare) {
      rows.sort(this.compare);
    }
    if (!held) return rows;
    const place = new Map([...this.kept.keys()].map((key, index) => [key, index]));
    return rows.sort((a, b) => (place.get(a.key) ?? Infinity) - (place.get(b.key) ?? Infinity) || 0);
  }

  draw(anew = false) {
    const ordered = this.ordered(anew);
    const limit = NARROW.matches && !this.small ? Math.min(this.limit, 8) : this.limit;
    const shown = ordered.slice(0, this.all ? this.most : limit);
    const kept = new Map();
    let next = this.body.firstElementChild;
    for (const row of shown) {
      const tr = this.kept.get(row.key) ?? this.row();
      this.kept.delete(row.key);
      kept.set(row.key, tr);
      if (tr === next) next = tr.nextElementSibling;
      else this.body.insertBefore(tr, next);
      setAttribute(tr, 'data-level', row.level ?? null);
      this.columns.forEach((column, index) => column.cell(tr.children[index], row));
    }
    for (const tr of this.kept.values()) tr.remove();
    this.kept = kept;
    this.table.hidden = shown.length === 0;
    this.empty.hidden = shown.length > 0;
    this.more.hidden = ordered.length <= limit;
    if (!this.more.hidden) {
      const all = Math.min(ordered.length, this.most);
      setText(this.more, this.all ? `Show the first ${limit}` : `Show ${all < ordered.length ? '' : 'all '}${integer(all)}`);
    }
  }

  row() {
    const cells = this.columns.map((column, index) => {
      const attributes = { role: index ? 'cell' : 'rowheader', 'data-label': column.label };
      if (!index) attributes.scope = 'row';
      if (column.number) attributes.class = 'number';
      return element(index ? 'td' : 'th', attributes);
    });
    return element('tr', { role: 'row' }, ...cells);
  }
}

const plain = (text) => (cell, row) => setText(cell, text(row));
const text = (label, width, sort, cell) => ({ label, width, sort, cell, number: false });
const figure = (label, width, sort, cell) => ({ label, width, sort, cell, number: true });
const value = (label, width, read, format) => figure(label, width, read, plain((row) => format(read(row))));

function methodCell(cell, row) {
  const name = said(row.method, NAME_LIMIT);
  if (name === 'other') return setPieces(cell, [[name, 'method'], [' methods, counted together', 'service']]);
  const slash = name.lastIndexOf('/');
  return setPieces(cell, slash > 0 ? [[name.slice(0, slash + 1), 'service'], [name.slice(slash + 1), 'method']] : [[name, 'method']]);
}

// --------------------------------------------------------------------------------------------------------- chart

const round = (value) => Math.round(value * 100) / 100;

// Lines over the last five minutes: an SVG of 300 by 100, a second a unit, stretched by the browser.
class Chart {
  constructor(parent, { title, lines, log = false, format, tell }) {
    Object.assign(this, { lines, log, format, tell });
    this.points = [];
    this.now = 0;
    this.read = null;
    this.svg = drawn('svg', { viewBox: '0 0 300 100', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    this.grid = this.svg.appendChild(drawn('path', { class: 'grid' }));
    this.paths = lines.map((line) => this.svg.appendChild(drawn('path', { class: `${line.kind} ${line.name}` })));
    this.begins = this.svg.appendChild(drawn('path', { class: 'begins' }));
    this.cross = this.svg.appendChild(drawn('path', { class: 'cross' }));
    this.labels = element('div', { class: 'ylabels', 'aria-hidden': 'true' });
    this.plot = element('div', { class: 'plot', tabindex: '0', role: 'img' }, this.svg);
    this.told = element('span', { class: 'told' });
    const times = ['5 min ago', '4', '3', '2', '1', 'now'].map((text) => element('span', {}, text));
    parent.append(
      element('figcaption', {}, element('strong', {}, title), this.told),
      element('div', { class: 'frame' }, this.labels, this.plot),
      element('div', { class: 'xlabels', 'aria-hidden': 'true' }, ...times),
    );
    this.title = title;
    this.plot.addEventListener('pointermove', (event) => {
      const box = this.plot.getBoundingClientRect();
      this.point(this.now - CHART_S * (1 - (event.clientX - box.left) / box.width));
    });
    for (const kind of ['pointerleave', 'blur']) this.plot.addEventListener(kind, () => this.point(null));
    this.plot.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
      if (event.key === 'Escape') this.point(null);
      if (step === undefined) return;
      event.preventDefault();
      this.point(Math.min(this.now, Math.max(this.now - CHART_S, (this.read ?? this.now) + step)));
    });
  }

  point(at) {
    this.read = at;
    this.tellPoint();
  }

  draw(points, now, telling) {
    this.points = points;
    this.now = now;
    this.telling = telling;
    const values = points.flatMap((point) => this.lines.map((line) => point[line.name])).filter((value) => value !== null);
    const { low, high, marks } = this.log ? decades(values) : steps(values);
    const up = (value) => {
      const share = this.log ? (Math.log10(Math.max(value, low)) - Math.log10(low)) / (Math.log10(high) - Math.log10(low)) : value / high;
      return round(100 - 100 * Math.min(1, share));
    };
    const along = (point) => round(CHART_S - (now - point.at));
    this.lines.forEach((line, index) => setAttribute(this.paths[index], 'd', trace(points, line, along, up)));
    setAttribute(this.grid, 'd', marks.map((mark) => `M0 ${up(mark)}H300`).join(''));
    setAttribute(this.begins, 'd', points.filter((point) => point.begins && along(point) >= 0).map((point) => `M${along(point)} 0V100`).join(''));
    fill(this.labels, marks, () => element('span'), (label, mark) => {
      setText(label, this.format(mark));
      const top = `${up(mark)}%`;
      if (label.style.top !== top) label.style.top = top;
    });
    this.tellPoint();
  }

  tellPoint() {
    let nearest = null;
    if (this.read !== null) {
      for (const point of this.points) {
        if (nearest === null || Math.abs(point.at - this.read) < Math.abs(nearest.at - this.read)) nearest = point;
      }
    }
    setAttribute(this.cross, 'd', nearest ? `M${round(CHART_S - (this.now - nearest.at))} 0V100` : '');
    setPieces(this.told, nearest ? [[clockTime(nearest.at), 'when'], ...this.tell(nearest)] : this.telling ?? []);
    const spoken = [...this.told.children].map((piece) => piece.textContent).join(', ');
    setAttribute(this.plot, 'aria-label', `${this.title}. ${spoken}. Arrow keys read single seconds.`);
  }
}

// The path of a line, with a break where nothing is known; an area goes down to the floor at both ends of a piece.
function trace(points, line, along, up) {
  let path = '';
  let last = null;
  const close = () => (last !== null && line.kind === 'area' ? `V100Z` : '');
  for (const point of points) {
    const value = point[line.name];
    const x = along(point);
    if (value === null || x < 0 || point.begins) {
      path += close();
      last = null;
      if (value === null || x < 0) continue;
    }
    if (last === null) path += line.kind === 'area' ? `M${x} 100V${up(value)}` : `M${x} ${up(value)}h0`;
    else path += `L${x} ${up(value)}`;
    last = x;
  }
  return path + close();
}

function steps(values) {
  const top = Math.max(1, ...values);
  const unit = 10 ** Math.floor(Math.log10(top));
  const high = [1, 2, 3, 4, 5, 6, 8, 10].map((times) => times * unit).find((value) => value >= top * 0.999);
  return { low: 0, high, marks: [high, high / 2, 0] };
}

function decades(values) {
  const positive = values.filter((value) => value > 0);
  let first = Math.floor(Math.log10(Math.max(1e-4, Math.min(...positive, 1e3))) + 1e-9);
  const last = Math.ceil(Math.log10(Math.max(...positive, 1e-3)) - 1e-9);
  if (positive.length === 0) first = -3;
  const top = Math.max(last, first + 2);
  const marks = [];
  for (let power = top; power >= first; power -= 1) marks.push(10 ** power);
  return { low: 10 ** first, high: 10 ** top, marks };
}

// ------------------------------------------------------------------------------------------------------- history

// The states of the last five minutes: each second of the last dozen, then fewer, for a difference over a minute is as good
// with a base five seconds older. What counts is the proxy's own clock, `uptime_s`, which nobody sets.
class History {
  constructor() {
    this.states = [];
    this.points = [];
  }

  get last() {
    return this.states.at(-1) ?? null;
  }

  add(state) {
    const last = this.last;
    const begins = last !== null && (state.uptime_s < last.uptime_s || number(state.calls?.started) < number(last.calls?.started));
    if (begins) this.states = [];
    if (last !== null && !begins && state.uptime_s === last.uptime_s) this.states.pop();
    const base = this.last;
    this.states.push(state);
    this.thin(state.uptime_s);
    this.chart(state, base, begins);
    return begins;
  }

  // One goes if its neighbours are near enough to each other without it.
  thin(now) {
    const kept = [];
    this.states.forEach((state, index) => {
      const before = now - state.uptime_s;
      const pause = before <= 12 ? 0 : before <= 70 ? 5.5 : 15.5;
      const next = this.states[index + 1]?.uptime_s ?? Infinity;
      const needed = kept.length ? next - kept.at(-1).uptime_s > pause : now - next < CHART_S;
      if (needed) kept.push(state);
    });
    this.states = kept;
  }

  chart(state, base, begins) {
    const point = { at: state.now, begins, rate: null, failing: null, p50: null, p90: null, p99: null };
    const seconds = base === null ? 0 : state.uptime_s - base.uptime_s;
    if (seconds > 0 && seconds < 3.5) {
      const flow = difference(state, base);
      Object.assign(point, { rate: flow.started / seconds, failing: flow.failing / seconds });
      for (const share of [50, 90, 99]) point[`p${share}`] = percentile(flow.buckets, state.bounds_s, share / 100)?.seconds ?? null;
    }
    this.points.push(point);
    while (this.points.length > CHART_S + 10 || this.points[0].at < state.now - CHART_S - 5) this.points.shift();
  }

  // The state from which differences over so many seconds are taken; null for all since the start.
  base(seconds) {
    const now = this.last.uptime_s;
    if (seconds === null) return null;
    if (seconds >= now && this.states[0].uptime_s <= 2) return null;
    let found = this.states[0];
    for (const state of this.states) if (now - state.uptime_s >= seconds - 0.5) found = state;
    return found;
  }
}

const less = (now, before) => Math.max(0, number(now) - number(before));

function lessEach(now, before) {
  return new Map(entries(now).map(([key, value]) => [key, less(value, own(before, key))]));
}

// What happened between two states in all calls, and in those of each method.
function difference(state, base) {
  const all = { started: less(state.calls?.started, base?.calls?.started), ended: 0, failing: 0, buckets: [], methods: [] };
  for (const [method, now] of entries(state.methods)) {
    const before = own(base?.methods, method);
    const statuses = lessEach(now.statuses, before?.statuses);
    const buckets = list(now.buckets).map((count, index) => less(count, list(before?.buckets)[index]));
    const flow = { key: method, method, statuses, buckets, total: number(now.started), started: less(now.started, before?.started), ended: 0, failing: 0 };
    flow.asked = less(now.request_messages, before?.request_messages);
    flow.answered = less(now.response_messages, before?.response_messages);
    for (const [status, count] of statuses) {
      flow.ended += count;
      if (isFailing(status)) flow.failing += count;
    }
    all.ended += flow.ended;
    all.failing += flow.failing;
    buckets.forEach((count, index) => { all.buckets[index] = (all.buckets[index] ?? 0) + count; });
    all.methods.push(flow);
  }
  return all;
}

// Between the bounds of its bucket as if calls were spread evenly there. Beyond the last bound nothing is known.
function percentile(buckets, bounds, share) {
  const total = sum(buckets);
  if (total === 0 || list(bounds).length === 0) return null;
  const wanted = total * share;
  let seen = 0;
  for (const [index, bound] of bounds.entries()) {
    const count = number(buckets[index]);
    if (count > 0 && seen + count >= wanted) {
      const low = index ? bounds[index - 1] : 0;
      return { seconds: low + ((bound - low) * (wanted - seen)) / count, beyond: false };
    }
    seen += count;
  }
  return { seconds: bounds.at(-1), beyond: true };
}

// -------------------------------------------------------------------------------------------------------- tables

const failingShare = (row) => (row.ended ? row.failing / row.ended : null);

function statusPieces(statuses) {
  const found = [...statuses].filter(([, count]) => count > 0).sort((a, b) => isFailing(b[0]) - isFailing(a[0]) || b[1] - a[1]);
  const kind = (status) => (status === 'OK' ? 'status fine' : isFailing(status) ? 'status bad' : 'status');
  const pieces = found.slice(0, 6).map(([status, count]) => [`${said(status)} ${integer(count)}`, kind(status)]);
  return found.length > 6 ? [...pieces, [`and ${found.length - 6} more`, 'status']] : pieces;
}

const percentileColumn = (share) => {
  const found = (row) => row.percentiles[share];
  const order = (row) => (found(row) === null ? null : found(row).seconds + (found(row).beyond ? 1e-9 : 0));
  return figure(`p${share}`, '5.5rem', order, plain((row) => latency(found(row))));
};

// A figure that matters if it is not zero.
function countCell(cell, count, kind) {
  setText(cell, integer(count));
  cell.classList.toggle(kind, count > 0);
  cell.classList.toggle('zero', count === 0);
}

function failingCell(cell, row) {
  setText(cell, percent(failingShare(row)));
  cell.classList.toggle('bad', row.failing > 0);
  cell.classList.toggle('zero', row.failing === 0);
}

const methodTable = new Table(byId('methods'), {
  labelledby: 'methods-heading',
  columns: [
    text('Method', '', (row) => row.method, methodCell),
    value('Calls/s', '5.5rem', (row) => row.rate, rate),
    figure('Failing', '5.5rem', failingShare, failingCell),
    text('Statuses', '27%', null, (cell, row) => setPieces(cell, statusPieces(row.statuses))),
    percentileColumn(50), percentileColumn(90), percentileColumn(99),
    figure('Messages/s', '11rem', (row) => row.askedRate + row.answeredRate,
      plain((row) => (row.asked + row.answered ? `${rate(row.askedRate)}\u00a0↑ ${rate(row.answeredRate)}\u00a0↓` : '–'))),
    value('Since start', '7rem', (row) => row.total, integer),
  ],
  compare: (a, b) => b.failing - a.failing || b.started - a.started || b.total - a.total || (a.key < b.key ? -1 : 1),
  none: 'No call has ended yet.',
});

const TROUBLE = { backoff: 0, connecting: 1, idle: 3, ready: 4 };
const troubleOf = (row) => own(TROUBLE, row.state) ?? 2;

function whyCell(cell, row) {
  if (!cell.firstChild) cell.append(element('p'), element('details', {}, element('summary', {}, 'explain'), element('pre')));
  const [error, details] = cell.children;
  setText(error, row.lastError === null ? '' : said(row.lastError));
  details.hidden = row.explain === '';
  setText(details.lastElementChild, row.explain);
}

const stateCell = (kind) => (cell, row) => setPieces(cell, [[said(row.state), `state ${kind(row)}`]]);
const upstreamOf = (row) => (row.upstream === null ? 'none yet' : said(row.upstream));

const endpointTable = new Table(byId('endpoints'), {
  labelledby: 'endpoints-heading',
  columns: [
    text('Endpoint', '26%', (row) => row.key,
      (cell, row) => setPieces(cell, [
        ...(row.cluster === row.address ? [] : [[said(row.cluster), 'service'], [' ', '']]), // --upstream names its cluster so
        [said(row.address), 'method'],
      ])),
    text('State', '9rem', troubleOf, stateCell((row) => (row.state === 'idle' ? 'still' : row.level ?? 'fine'))),
    value('Connections', '7rem', (row) => row.connections, integer),
    value('Open calls', '6.5rem', (row) => row.calls, integer),
    figure('Waiting', '5rem', (row) => row.waiting, (cell, row) => countCell(cell, row.waiting, 'warn')),
    value('Calls/s', '5.5rem', (row) => row.rate, rate),
    figure('Failing', '5.5rem', failingShare, failingCell),
    text('Last error', '', null, whyCell),
  ],
  compare: (a, b) => troubleOf(a) - troubleOf(b) || b.waiting - a.waiting || (a.key < b.key ? -1 : 1),
  limit: 15,
  most: 300,
  none: 'No endpoint is in use.',
});

const stuckTable = new Table(byId('stuck'), {
  labelledby: 'stuck-heading',
  columns: [
    text('Waits for', '', (row) => row.waitsFor, plain((row) => said(row.waitsFor))),
    text('Upstream', '18%', (row) => row.upstream ?? '', plain(upstreamOf)),
    value('Calls', '4.5rem', (row) => row.count, integer),
    value('Callers', '5rem', (row) => row.peers.size, integer),
    value('Longest quiet', '8.5rem', (row) => row.quiet, age),
    text('Methods', '36%', null, plain((row) => {
      const others = row.methods.size - 1;
      return `${said([...row.methods][0], NAME_LIMIT)}${others ? ` and ${others} more` : ''}`;
    })),
  ],
  compare: (a, b) => (b.level !== null) - (a.level !== null) || b.count - a.count || b.quiet - a.quiet,
  limit: 8,
  most: 50,
  none: 'No call is open.',
});

const sent = (messages, size) => `${integer(messages)} · ${bytes(size)}`;

const quietTable = new Table(byId('quiet'), {
  labelledby: 'quiet-heading',
  columns: [
    text('Method', '', (row) => row.method, methodCell),
    value('Quiet', '7.5rem', (row) => row.quiet, age),
    value('Age', '7.5rem', (row) => row.age, age),
    text('Waits for', '20%', (row) => row.waitsFor, plain((row) => said(row.waitsFor))),
    text('Caller', '11rem', (row) => row.peer, plain((row) => said(row.peer))),
    text('Upstream', '11rem', (row) => row.upstream ?? '', plain(upstreamOf)),
    figure('Request', '7.5rem', (row) => row.requestBytes, plain((row) => sent(row.asked, row.requestBytes))),
    figure('Response', '8rem', (row) => row.responseBytes, plain((row) => sent(row.answered, row.responseBytes))),
    value('Worker', '4.5rem', (row) => row.worker, (worker) => said(worker)),
  ],
  compare: (a, b) => b.quiet - a.quiet || (a.key < b.key ? -1 : 1),
  limit: 10,
  most: 100,
  none: 'No call is open.',
});

const failedTable = new Table(byId('failed'), {
  labelledby: 'failed-heading',
  columns: [
    text('Status from', '8rem', (row) => row.origin, plain((row) => said(row.origin))),
    text('Comes of', '26%', (row) => row.cause, plain((row) => said(row.cause || '–'))),
    figure('Calls', '4.5rem', (row) => row.calls, (cell, row) => countCell(cell, row.calls, 'warn')),
    value('Since start', '6.5rem', (row) => row.count, integer),
    text('Last', '', null, (cell, row) => setPieces(cell, [[said(row.status), 'method'], [' ', ''], [said(row.last), 'soft']])),
  ],
  compare: (a, b) => b.calls - a.calls || b.count - a.count || (a.key < b.key ? -1 : 1),
  limit: 10,
  none: 'No call has failed.',
});

const limitTable = new Table(byId('limits'), {
  labelledby: 'limits-heading',
  columns: [
    text('Limit', '34%', (row) => row.key, plain((row) => said(row.key))),
    figure('Hits', '4.5rem', (row) => row.hits, (cell, row) => countCell(cell, row.hits, 'warn')),
    value('Since start', '6.5rem', (row) => row.count, integer),
    text('Last', '', null, (cell, row) => setPieces(cell, [[said(row.peer), 'method'], [' ', ''], [said(row.detail), 'soft']])),
  ],
  compare: (a, b) => b.hits - a.hits || b.count - a.count || (a.key < b.key ? -1 : 1),
  none: 'No limit was hit.',
});

const workerTable = new Table(byId('workers'), {
  labelledby: 'workers-heading',
  columns: [
    text('Worker', '', (row) => row.key, plain((row) => said(row.key))),
    value('Process', '6rem', (row) => row.pid, (pid) => said(pid)),
    text('State', '8rem', (row) => row.state, stateCell((row) => (row.state === 'serving' ? 'fine' : 'warn'))),
    value('CPU', '5rem', (row) => row.cpu, percent),
    value('Memory', '6rem', (row) => row.rss, bytes),
    value('Connections', '7rem', (row) => row.connections, integer),
    value('Open calls', '6rem', (row) => row.calls, integer),
  ],
  compare: (a, b) => a.key - b.key,
  limit: 16,
  none: 'No worker has reported.',
});

const known = (count) => (count === null ? '–' : integer(count));

const sideTable = (side) => new Table(byId(side), {
  labelledby: `${side}-heading`,
  columns: [
    text('What', '', null, (cell, row) => setPieces(cell, [[row.label, row.reason ? 'reason' : '']])),
    figure('Recent', '6rem', null, (cell, row) => {
      setText(cell, known(row.recent));
      cell.classList.toggle('warn', Boolean(row.trouble && row.recent));
      cell.classList.toggle('zero', !row.recent);
    }),
    figure('Since start', '7.5rem', null, (cell, row) => {
      setText(cell, known(row.total));
      cell.classList.toggle('zero', !row.total);
    }),
  ],
  most: 60,
  small: true,
  none: 'Nothing is known yet.',
});
const downstreamTable = sideTable('downstream');
const upstreamTable = sideTable('upstream');

// ---------------------------------------------------------------------------------------------------------- rows

function methodRows(flow, seconds, bounds) {
  const per = (value) => (seconds ? value / seconds : null);
  return flow.methods.map((row) => ({
    ...row,
    rate: per(row.started),
    askedRate: per(row.asked),
    answeredRate: per(row.answered),
    percentiles: Object.fromEntries([50, 90, 99].map((share) => [share, percentile(row.buckets, bounds, share / 100)])),
    level: row.ended && row.failing / row.ended >= ALARMING ? 'bad' : null,
  }));
}

const endpointKey = (endpoint) => `${endpoint.cluster} ${endpoint.address}`;

const getsNoCalls = (endpoint) => endpoint.standing === 'ejected' || endpoint.standing === 'unhealthy';

function endpointRows(state, base, seconds) {
  const before = new Map(list(base?.endpoints).map((endpoint) => [endpointKey(endpoint), endpoint]));
  return list(state.endpoints).map((endpoint) => {
    const key = endpointKey(endpoint);
    const statuses = [...lessEach(endpoint.statuses, before.get(key)?.statuses)];
    const ended = sum(statuses.map(([, count]) => count));
    const explain = Array.isArray(endpoint.explain) ? endpoint.explain.join('\n') : endpoint.explain ?? '';
    return {
      key,
      cluster: endpoint.cluster,
      address: endpoint.address,
      state: getsNoCalls(endpoint) ? endpoint.standing : String(endpoint.state),
      connections: number(endpoint.connections),
      calls: number(endpoint.calls),
      waiting: number(endpoint.waiting),
      lastError: endpoint.last_error ?? null,
      explain: String(explain).split('\n').slice(0, 40).map(said).join('\n'),
      rate: seconds ? ended / seconds : null,
      ended,
      failing: sum(statuses.map(([status, count]) => (isFailing(status) ? count : 0))),
      level: endpoint.state === 'backoff' || getsNoCalls(endpoint) ? 'bad' : endpoint.state === 'connecting' || endpoint.waiting > 0 ? 'warn' : null,
    };
  });
}

function quietRows(state) {
  const seen = new Map();
  return list(state.stuck).map((call) => {
    // A call has no name of its own; of two that are alike the second is another one.
    const alike = `${call.worker} ${call.peer} ${call.method} ${call.upstream} ${Math.round(state.now - number(call.age_s))}`;
    seen.set(alike, (seen.get(alike) ?? 0) + 1);
    return {
      key: `${alike} ${seen.get(alike)}`,
      method: String(call.method),
      peer: String(call.peer),
      upstream: call.upstream ?? null,
      worker: call.worker,
      quiet: number(call.quiet_s),
      age: number(call.age_s),
      waitsFor: String(call.waits_for),
      asked: number(call.request_messages),
      requestBytes: number(call.request_bytes),
      answered: number(call.response_messages),
      responseBytes: number(call.response_bytes),
      level: unanswered(call) ? 'warn' : null,
    };
  });
}

const unanswered = (call) => number(call.quiet_s) >= QUIET_S && !number(call.response_messages);

function stuckRows(calls) {
  const groups = new Map();
  for (const call of calls) {
    const key = JSON.stringify([call.upstream, call.waitsFor]);
    const fresh = { key, upstream: call.upstream, waitsFor: call.waitsFor, count: 0, quiet: 0, peers: new Set(), methods: new Set(), level: null };
    const group = groups.get(key) ?? fresh;
    groups.set(key, group);
    group.count += 1;
    group.quiet = Math.max(group.quiet, call.quiet);
    group.peers.add(call.peer.replace(/:\d+$/, ''));
    group.methods.add(call.method);
    group.level ??= call.level;
  }
  return [...groups.values()];
}

function failedRows(state, base, seconds) {
  return entries(state.failed).flatMap(([origin, causes]) => entries(causes).map(([cause, count]) => {
    const last = list(state.last_failed).find((call) => call.origin === origin && call.cause === cause);
    const calls = less(count, own(own(base?.failed, origin), cause));
    return {
      key: `${origin} ${cause}`, origin, cause, calls, span: seconds, count: number(count), level: null,
      status: last ? last.status : '', last: last ? `${last.method} ${last.detail}` : '',
    };
  }));
}

function limitRows(state, base, seconds) {
  return entries(state.limits)
    .filter(([, limit]) => number(limit.count) > 0)
    .map(([key, limit]) => {
      const hits = less(limit.count, own(base?.limits, key)?.count);
      const row = { key, hits, span: seconds, count: number(limit.count), peer: limit.peer, detail: limit.detail };
      return { ...row, level: hits > 0 && seconds ? 'warn' : null };
    });
}

function workerRows(state, base) {
  const before = new Map(list(base?.workers).map((worker) => [worker.worker, worker]));
  return list(state.workers).map((worker) => {
    const old = before.get(worker.worker);
    const same = old !== undefined && old.pid === worker.pid;
    const seconds = base === null ? number(state.uptime_s) : same ? state.uptime_s - base.uptime_s : 0;
    return {
      key: worker.worker,
      pid: worker.pid,
      state: String(worker.state),
      cpu: seconds > 0 ? less(worker.cpu_s, same ? old.cpu_s : 0) / seconds : null,
      rss: number(worker.rss_bytes),
      connections: number(worker.connections),
      calls: number(worker.calls),
      level: worker.state === 'serving' ? null : 'warn',
    };
  });
}

const DOWNSTREAM = [
  ['opened', 'Opened'], ['failed', 'Failed', true], ['turned_away', 'Turned away', true],
  ['refused_streams', 'Calls refused beyond a limit', true], ['tls_handshakes', 'TLS handshakes'],
  ['tls_failed', 'TLS handshakes failed', true],
];
const UPSTREAM = [
  ['opened', 'Opened'], ['dials', 'Dials'], ['dials_failed', 'Dials failed', true], ['picks', 'Calls given a connection'],
  ['waits', 'Calls that had to wait for one'],
];

function sideRows(names, now, before, seconds) {
  if (!now) return [];
  const recent = (value, old) => (seconds ? less(value, old) : null);
  const rows = [];
  for (const [key, label, trouble = false] of names) {
    rows.push({ key, label, trouble, recent: recent(now[key], before?.[key]), total: number(now[key]) });
  }
  const closed = entries(now.closed).sort((a, b) => b[1] - a[1]);
  rows.push({ key: 'closed', label: 'Closed', recent: sum(closed.map(([reason, count]) => recent(count, own(before?.closed, reason)))), total: sum(closed.map(([, count]) => count)) });
  for (const [reason, count] of closed) {
    rows.push({ key: `closed ${reason}`, label: said(reason), reason: true, recent: recent(count, own(before?.closed, reason)), total: count });
  }
  return rows;
}

// ----------------------------------------------------------------------------------------------------- attention

const WORST_FIRST = { bad: 0, warn: 1 };

// What an operator would look for, in sentences, worst first: {level, text, link}.
function attention(view) {
  const found = [];
  const note = (level, link, text) => found.push({ level, link, text });
  const { state, span } = view;
  if (state.state === 'draining') note('warn', '#calls', `Draining: no new connections; ${plural(number(state.calls?.open), 'call is', 'calls are')} still open.`);
  aboutEndpoints(view.endpoints, note);
  const failing = view.methods
    .filter((row) => row.failing >= 3 && row.failing / row.ended >= ALARMING)
    .sort((a, b) => b.failing - a.failing);
  for (const row of failing.slice(0, 3)) {
    const statuses = [...row.statuses].filter(([status, count]) => count > 0 && isFailing(status)).sort((a, b) => b[1] - a[1]);
    const told = statuses.slice(0, 2).map(([status, count]) => `${said(status)} ${integer(count)}`).join(', ');
    note(failingShare(row) >= 0.1 ? 'bad' : 'warn', '#methods', `${said(row.method, NAME_LIMIT)}: ${percent(failingShare(row))} of calls fail ${span}: ${told}.`);
  }
  if (failing.length > 3) note('warn', '#methods', `${plural(failing.length - 3, 'more method', 'more methods')} with 1 % or more of calls failing.`);
  aboutCalls(view, note);
  for (const row of view.limits.filter((each) => each.level).slice(0, 3)) {
    note('warn', '#limits', `Limit ${said(row.key)} was hit ${plural(row.hits, 'time', 'times')} ${span}${row.peer ? `, last by ${said(row.peer)}` : ''}.`);
  }
  const { dropped, reloads, turnedAway, replaced } = view;
  if (turnedAway) note('warn', '#connections', `${plural(turnedAway, 'connection was', 'connections were')} turned away ${span}.`);
  if (reloads) note('bad', '#settings', `TLS files could not be read again (${plural(reloads, 'time', 'times')} ${span}): the old ones stay in force.`);
  const silent = list(state.workers).filter((worker) => worker.state === 'silent').map((worker) => said(worker.worker));
  if (silent.length) note('bad', '#workers', `${silent.length === 1 ? 'Worker' : 'Workers'} ${silent.join(', ')} gave no answer within a second: what is shown of it is its last word.`);
  if (dropped) note('warn', '#limits', `${plural(dropped, 'log line was', 'log lines were')} dropped ${span}: standard error is not read fast enough.`);
  if (replaced.length) note('warn', '#workers', `${replaced.length === 1 ? 'Worker' : 'Workers'} ${replaced.map(said).join(', ')} ended and began anew less than ${age(REPLACED_S)} ago.`);
  return found.sort((a, b) => WORST_FIRST[a.level] - WORST_FIRST[b.level]);
}

function aboutEndpoints(endpoints, note) {
  const clusters = new Map();
  for (const row of endpoints) clusters.set(row.cluster, [...(clusters.get(row.cluster) ?? []), row]);
  const troubled = [...clusters]
    .map(([cluster, rows]) => ({ cluster, rows, away: rows.filter((row) => row.state === 'backoff') }))
    .filter(({ away }) => away.length > 0);
  const why = (away) => {
    const error = away.find((row) => row.lastError !== null)?.lastError;
    return error === undefined ? '.' : `: ${said(error)}`;
  };
  const names = (found) => `${found.slice(0, 3).map(({ cluster }) => said(cluster)).join(', ')}${found.length > 3 ? ', …' : ''}`;
  const gone = troubled.filter(({ rows, away }) => away.length === rows.length);
  for (const { cluster, rows, away } of gone.slice(0, 3)) {
    const which = rows.length === 1 ? said(away[0].address) : `none of its ${rows.length} endpoints`;
    note('bad', '#endpoints', `Cluster ${said(cluster)} cannot be reached, ${which}${why(away)}`);
  }
  if (gone.length > 3) note('bad', '#endpoints', `${plural(gone.length - 3, 'more cluster', 'more clusters')} cannot be reached: ${names(gone.slice(3))}`);
  const partly = troubled.filter(({ rows, away }) => away.length < rows.length);
  if (partly.length > 2) note('warn', '#endpoints', `${partly.length} clusters have endpoints that cannot be reached, ${names(partly)}${why(partly[0].away)}`);
  else {
    for (const { cluster, rows, away } of partly) {
      const which = `${said(away[0].address)}${away.length > 1 ? ' among them' : ''}`;
      note('warn', '#endpoints', `Cluster ${said(cluster)}: ${away.length} of ${rows.length} endpoints cannot be reached, ${which}${why(away)}`);
    }
  }
  const lines = endpoints.filter((row) => row.waiting > 0).sort((a, b) => b.waiting - a.waiting);
  if (lines.length > 0) {
    const waiting = sum(lines.map((row) => row.waiting));
    const most = `${said(lines[0].cluster)}, ${said(lines[0].address)}`;
    note('warn', '#endpoints', `${plural(waiting, 'call waits', 'calls wait')} for a connection, ${lines.length > 1 ? 'most of them ' : ''}to ${most}.`);
  }
}

function aboutCalls(view, note) {
  const groups = view.stuck.filter((group) => group.level).sort((a, b) => b.count - a.count);
  for (const group of groups.slice(0, 2)) {
    const on = group.upstream === null ? '' : `, on ${said(group.upstream)}`;
    note('warn', '#calls', `${plural(group.count, 'call', 'calls')} without an answer, quiet for up to ${age(group.quiet)}${on}: ${group.count === 1 ? 'waits' : 'wait'} for ${said(group.waitsFor)}.`);
  }
  if (groups.length > 2) note('warn', '#calls', `More calls without an answer, in ${plural(groups.length - 2, 'other group', 'other groups')}.`);
}

// -------------------------------------------------------------------------------------------------------- screen

const past = new History();
const replacedAt = new Map();
const SPANS = { 10: 'in the last 10 s', 60: 'in the last minute', 300: 'in the last 5 minutes' };
let chosen = 60;
let paused = false;
let problems = 0;
let due = false;

const callChart = new Chart(byId('chart-calls'), {
  title: 'Calls per second',
  lines: [{ name: 'rate', kind: 'area' }, { name: 'rate', kind: 'line' }, { name: 'failing', kind: 'area' }],
  format: (value) => (value >= 10000 ? `${integer(value / 1000)} k` : grouped.format(value)),
  tell: (point) => [[`${rate(point.rate)} calls/s`, 'key rate'], [`${rate(point.failing)} failing/s`, 'key failing']],
});
const latencyChart = new Chart(byId('chart-latency'), {
  title: 'Latency',
  lines: ['p50', 'p90', 'p99'].map((name) => ({ name, kind: 'line' })),
  log: true,
  format: (seconds) => (seconds < 1 ? `${seconds * 1000} ms` : `${seconds} s`),
  tell: (point) => ['p50', 'p90', 'p99'].map((name) => [`${name} ${duration(point[name])}`, `key ${name}`]),
});

// All that the page shows, made of the last state and the one from which differences are taken.
function look() {
  const state = past.last;
  const base = past.base(chosen);
  const seconds = base === null ? number(state.uptime_s) : state.uptime_s - base.uptime_s;
  const known = base === null || seconds > 0;
  const flow = difference(state, base);
  const calls = quietRows(state);
  return {
    state, base, seconds: known ? seconds : 0, flow, calls,
    span: base === null ? 'since the start' : seconds >= chosen - 1 ? SPANS[chosen] : `in ${age(seconds)}`,
    methods: methodRows(flow, seconds, state.bounds_s),
    endpoints: endpointRows(state, base, seconds),
    stuck: stuckRows(calls),
    failed: failedRows(state, base, seconds),
    limits: limitRows(state, base, seconds),
    workers: workerRows(state, base),
    dropped: less(state.log?.dropped_lines, base?.log?.dropped_lines),
    reloads: less(state.tls_reload_failures, base?.tls_reload_failures),
    turnedAway: less(state.downstream?.turned_away, base?.downstream?.turned_away),
    replaced: [...replacedAt].filter(([, at]) => state.uptime_s - at < REPLACED_S).map(([worker]) => worker),
  };
}

function figuresOf({ state, base, flow, seconds, endpoints, workers, methods }) {
  const per = (value) => (seconds ? value / seconds : null);
  const at = (share) => latency(percentile(flow.buckets, state.bounds_s, share / 100));
  const share = flow.ended ? flow.failing / flow.ended : null;
  const waiting = sum(endpoints.map((row) => row.waiting));
  const cpu = workers.every((row) => row.cpu === null) ? null : sum(workers.map((row) => row.cpu));
  const flowed = (key) => (seconds ? `${bytes(less(state.calls?.[key], base?.calls?.[key]) / seconds)}/s` : '–');
  return [
    ['Calls/s', rate(per(flow.started)), `${plural(methods.length, 'method', 'methods')}, ${integer(state.calls?.started)} calls since start`],
    ['Failing', percent(share), `${rate(per(flow.failing))} a second`, share >= ALARMING ? 'bad' : null],
    ['Latency p99', at(99), `p50 ${at(50)}, p90 ${at(90)}`],
    ['Open calls', integer(state.calls?.open), waiting ? `${integer(waiting)} wait for a connection` : 'none waits for a connection', waiting ? 'warn' : null],
    ['Connections', `${integer(state.downstream?.open)}`, `from callers; ${integer(state.upstream?.open)} to endpoints`],
    ['Traffic', flowed('response_bytes'), `responses; requests ${flowed('request_bytes')}`],
    ['CPU', percent(cpu), `${bytes(sum(workers.map((row) => row.rss)))} in ${plural(workers.length, 'worker', 'workers')}`],
  ];
}

const makeFigure = () => element('div', {}, element('dt'), element('dd', { class: 'value' }), element('dd', { class: 'sub' }));

function showFigure(node, [label, value, sub, level = null]) {
  [label, value, sub].forEach((text, index) => setText(node.children[index], text));
  setAttribute(node, 'data-level', level);
}

function showAttention(view) {
  const section = byId('attention');
  const found = attention(view);
  const bad = found.some((item) => item.level === 'bad');
  setAttribute(section, 'data-level', bad ? 'bad' : found.length ? 'warn' : 'fine');
  const serving = view.state.state === 'serving';
  setText(section.querySelector('h2'), found.length ? 'Needs attention' : serving ? 'All well' : 'Nothing else to report');
  const shown = found.length ? found.slice(0, MOST_SENTENCES) : [{ level: 'fine', link: null, text: calm(view) }];
  if (found.length > shown.length) shown.push({ level: 'warn', link: null, text: `And ${found.length - shown.length} more, below.` });
  fill(section.querySelector('ul'), shown, () => element('li', {}, element('a')), (item, { level, link, text }) => {
    setAttribute(item, 'data-level', level);
    setAttribute(item.firstChild, 'href', link);
    setText(item.firstChild, text);
  });
  return found.length;
}

function calm({ flow, endpoints, span }) {
  const calls = flow.ended ? `No method fails ${span}` : `No call has ended ${span}`;
  return `${calls}; ${endpoints.length ? 'every endpoint in use can be reached, and no call waits for a connection' : 'no endpoint is in use'}.`;
}

function showHeader({ state }) {
  const facts = [`version ${said(state.version)}`, said(state.python), `engine ${said(state.engine)}`,
    `up ${age(number(state.uptime_s))}`, plural(list(state.workers).length, 'worker', 'workers')];
  setPieces(byId('facts'), facts.map((text) => [text, '']));
  setText(byId('time'), clockTime(state.now));
  setAttribute(byId('time'), 'datetime', new Date(state.now * 1000).toISOString());
  setAttribute(byId('clock'), 'title', `the proxy's clock; ${new Date(state.now * 1000).toISOString()}`);
  if (stream.alive) showState(String(state.state));
  showTitle();
}

// What the tab of the browser says: how much needs attention, and the state.
function showTitle() {
  const title = stream.alive ? `${problems ? `(${problems}) ` : ''}${said(past.last.state)}` : 'no connection';
  if (document.title !== `${title} · rawgrpc-proxy`) document.title = `${title} · rawgrpc-proxy`;
}

const NAMES = { serving: 'Serving', draining: 'Draining', starting: 'Starting', lost: 'No connection' };

function showState(state) {
  setAttribute(document.body, 'data-state', own(NAMES, state) ? state : 'unknown');
  setText(byId('state'), own(NAMES, state) ?? said(state));
}

const noteOf = (id, text) => setText(byId(id).querySelector('.note'), text);

function showTables(view) {
  const { state, base, span, seconds } = view;
  const wanted = byId('filter').value.trim().toLowerCase();
  const methods = wanted ? view.methods.filter((row) => row.method.toLowerCase().includes(wanted)) : view.methods;
  setText(methodTable.empty, wanted ? 'No method has this in its name.' : methodTable.none);
  methodTable.show(methods);
  const failing = view.methods.filter((row) => row.failing).length;
  noteOf('methods', seconds && view.methods.length ? `${integer(failing)} of ${integer(view.methods.length)} with calls failing ${span}` : '');
  endpointTable.show(view.endpoints);
  const ready = view.endpoints.filter((row) => row.state === 'ready').length;
  noteOf('endpoints', view.endpoints.length ? `${integer(ready)} of ${integer(view.endpoints.length)} ready` : '');
  stuckTable.show(view.stuck);
  quietTable.show(view.calls);
  const open = number(state.calls?.open);
  noteOf('calls', view.calls.length < open ? `${integer(view.calls.length)} of ${integer(open)} open calls` : plural(open, 'open call', 'open calls'));
  for (const id of ['stuck-heading', 'quiet-heading', 'stuck']) byId(id).hidden = view.calls.length === 0;
  failedTable.show(view.failed);
  limitTable.show(view.limits);
  noteOf('limits', `log lines dropped: ${integer(view.dropped)} ${span}, ${integer(state.log?.dropped_lines)} since start`);
  workerTable.show(view.workers);
  noteOf('connections', seconds ? `recent: ${span}` : '');
  setText(byId('downstream-heading'), `Downstream, from callers: ${integer(state.downstream?.open)} open`);
  setText(byId('upstream-heading'), `Upstream, to endpoints: ${integer(state.upstream?.open)} open`);
  downstreamTable.show(sideRows(DOWNSTREAM, state.downstream, base?.downstream, seconds));
  upstreamTable.show(sideRows(UPSTREAM, state.upstream, base?.upstream, seconds));
}

function show() {
  due = false;
  if (past.last === null) return;
  const view = look();
  problems = showAttention(view);
  showHeader(view);
  fill(byId('figures'), figuresOf(view), makeFigure, showFigure);
  const ps = [50, 90, 99].map((share) => [`p${share} ${latency(percentile(view.flow.buckets, view.state.bounds_s, share / 100))}`, `key p${share}`]);
  const last = past.points.at(-1);
  callChart.draw(past.points, view.state.now, callChart.tell(last));
  latencyChart.draw(past.points, view.state.now, ps);
  showTables(view);
}

// At most once for each frame, and not while nobody sees it: what came meanwhile is in the history.
function plan() {
  if (due || paused || document.hidden) return;
  due = true;
  requestAnimationFrame(show);
}

function heard(state) {
  const last = past.last;
  const begins = past.add(state);
  if (begins) replacedAt.clear();
  else {
    const pids = new Map(list(last?.workers).map((worker) => [worker.worker, worker.pid]));
    for (const { worker, pid } of list(state.workers)) {
      if (pids.has(worker) && pids.get(worker) !== pid) replacedAt.set(worker, number(state.uptime_s));
    }
  }
  if (last && last !== past.last) last.stuck = null; // not needed any more, and the largest part of it
  plan();
}

// -------------------------------------------------------------------------------------------------------- stream

// The events, and what is done when they stop: a banner, and another attempt every few seconds. EventSource tries again by
// itself, but not after an answer that is none (503, 404), and not while a connection is silent.
const stream = {
  source: null,
  alive: false,
  attempts: 0,
  timer: 0,

  open() {
    clearTimeout(this.timer);
    this.source?.close();
    const source = new EventSource('events');
    this.source = source;
    source.addEventListener('state', (event) => {
      if (source === this.source) this.receive(event.data);
    });
    source.addEventListener('error', () => {
      if (source === this.source) this.lose('The connection to the proxy was lost');
    });
    this.watch();
  },

  watch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.lose('The proxy has said nothing for some seconds'), SILENT_MS);
  },

  receive(data) {
    let state;
    try {
      state = JSON.parse(data);
    } catch {
      this.lose('The proxy said something that is no state');
      return;
    }
    this.alive = true;
    this.attempts = 0;
    this.watch();
    byId('banner').hidden = true;
    document.body.classList.remove('stale');
    heard(state);
    if (paused) {
      showState(String(state.state));
      showTitle();
    }
  },

  lose(why) {
    this.source?.close();
    this.source = null;
    this.alive = false;
    const pause = RETRY_MS[Math.min(this.attempts, RETRY_MS.length - 1)];
    this.attempts += 1;
    const then = past.last === null ? '' : ` What is below is of ${clockTime(past.last.now)}.`;
    setText(byId('banner'), `${why}.${then} Trying again every few seconds.`);
    byId('banner').hidden = false;
    document.body.classList.add('stale');
    showState('lost');
    showTitle();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), pause);
  },
};

document.addEventListener('visibilitychange', () => {
  if (document.hidden) return;
  if (!stream.alive) stream.open();
  plan();
});

// ------------------------------------------------------------------------------------------------------ controls

byId('window').addEventListener('change', (event) => {
  chosen = event.target.value === 'start' ? null : Number(event.target.value);
  if (!due) requestAnimationFrame(show);
});

byId('filter').addEventListener('input', () => {
  if (!due) requestAnimationFrame(show);
});

byId('pause').addEventListener('click', () => {
  paused = !paused;
  setAttribute(byId('pause'), 'aria-pressed', String(paused));
  document.body.classList.toggle('paused', paused);
  plan();
});

const settings = byId('settings').querySelector('details');

async function readSettings() {
  const note = byId('settings-note');
  setText(note, 'reading …');
  try {
    const answer = await fetch('config', { cache: 'no-store' });
    if (!answer.ok) throw new Error(`the answer was ${answer.status} ${answer.statusText}`);
    setText(settings.querySelector('pre'), await answer.text());
    setText(note, `as of ${new Date().toLocaleTimeString('en-GB')}`);
  } catch (error) {
    setText(note, `could not be read: ${error.message}`);
  }
}

settings.addEventListener('toggle', () => {
  if (settings.open) readSettings();
});
byId('reread').addEventListener('click', readSettings);

stream.open();
