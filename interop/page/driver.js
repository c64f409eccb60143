// Opens the page in a browser, as an operator would, and tells line by line what holds: `ok NAME` or `FAILED NAME: WHY`.
// With `--control` it is the made-up proxy of fake_admin.py that is looked at, whose figures are known.
'use strict';

const path = require('path');
const { parseArgs } = require('util');
const { chromium } = require('playwright-core');

const { values: given } = parseArgs({
  options: { url: { type: 'string' }, control: { type: 'string' }, screenshots: { type: 'string' }, browser: { type: 'string' } },
});
const WAIT_MS = 60000;
const WIDTHS = [360, 768, 1360];
const RENDER_MS = 250; // far beyond what it takes, so that a slow machine does not fail: an update a second has to fit

let failures = 0;

function tell(name, why) {
  if (why) failures += 1;
  console.log(why ? `FAILED ${name}: ${why}` : `ok ${name}`);
}

function equal(name, found, expected) {
  const [a, b] = [found, expected].map((value) => JSON.stringify(value));
  tell(name, a === b ? '' : `${a} on the page, ${b} expected`);
}

const command = async (what) => {
  const answer = await fetch(`${given.control}/${what}`, { method: 'POST' });
  if (!answer.ok) throw new Error(`${what}: ${answer.status}`);
};

// A page whose complaints are kept. Those of a time in which the proxy is away on purpose can be forgotten.
async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  page.complaints = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) page.complaints.push(`console: ${message.text()}`);
  });
  page.on('pageerror', (error) => page.complaints.push(`error: ${error.stack}`));
  page.on('dialog', (dialog) => {
    page.complaints.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on('requestfailed', (request) => {
    if (!request.url().endsWith('/events') || !page.isClosed()) page.complaints.push(`request: ${request.url()}`);
  });
  page.on('response', (response) => {
    if (response.status() >= 400) page.complaints.push(`status ${response.status()}: ${response.url()}`);
  });
  await page.goto(given.url);
  await page.locator('#facts span').first().waitFor();
  return page;
}

const shows = (page, selector, text) => page.waitForFunction(
  ([where, what]) => document.querySelector(where)?.textContent.includes(what), [selector, text],
);
const elements = (page) => page.evaluate(() => document.querySelectorAll('*').length);
const rows = (page, id) => page.$$eval(`#${id} tbody tr`, (all) => all.map((tr) => [...tr.children].map((cell) => cell.textContent)));
const frames = (page) => page.evaluate(() => new Promise((done) => { requestAnimationFrame(() => requestAnimationFrame(done)); }));

async function looks(page, name) {
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme });
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: 900 });
      await page.evaluate(() => show());
      await page.evaluate(() => window.scrollTo(0, 0)); // the head of the page sticks
      await frames(page);
      const beyond = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (scheme === 'light') tell(`${name}, ${width} px wide, does not scroll sideways`, beyond > 0 ? `${beyond} px too wide` : '');
      if (given.screenshots) {
        await page.screenshot({ path: path.join(given.screenshots, `${name}-${width}-${scheme}.png`), fullPage: true });
      }
    }
  }
  await page.setViewportSize({ width: 1360, height: 900 });
}

const complains = (page, name) => tell(`${name}: nothing in the console, no request fails`, page.complaints.join('; '));

async function theKnownFigures(browser) {
  await command('world/known');
  await command('fast/80');
  const page = await open(browser);
  await shows(page, '#facts', 'up 1 min 1');
  const figures = await page.$$eval('#figures > div', (all) => all.map((div) => [...div.children].slice(0, 2).map((part) => part.textContent)));
  equal('key figures are those sent', figures, [
    ['Calls/s', '40.0'], ['Failing', '10.0 %'], ['Latency p99', '>1 min'], ['Open calls', '2'], ['Connections', '3'],
    ['Traffic', '82 KiB/s'], ['CPU', '2.2 %'],
  ]);
  equal('percentiles come from differences of the histogram', await page.textContent('#figures > div:nth-child(3) .sub'), 'p50 7.3 ms, p90 10 ms');
  const methods = (await rows(page, 'methods')).map((row) => row.slice(0, 3));
  equal('methods are those sent, what fails first', methods, [
    ['/known.Service/Broken', '4.00', '100 %'], ['/known.Service/Fine', '30.0', '0 %'], ['/known.Service/Missing', '6.00', '0 %'],
  ]);
  const endpoints = (await rows(page, 'endpoints')).map((row) => row.slice(0, 7));
  equal('endpoints are those sent, what is away first', endpoints, [
    ['known 10.0.0.2:50051', 'backoff', '0', '0', '3', '4.00', '100 %'], ['known 10.0.0.1:50051', 'ready', '1', '0', '0', '36.0', '0 %'],
  ]);
  equal('who waits for whom', (await rows(page, 'stuck')).map((row) => row.slice(0, 5)).sort(), [
    ['the next message', '10.0.0.1:50051', '1', '1', '12 s'], ['the response of the upstream', '10.0.0.1:50051', '1', '1', '2 min 5 s'],
  ]);
  equal('open calls, the longest quiet first', (await rows(page, 'quiet')).map((row) => [row[0], row[1], row[4], row[7]]), [
    ['/known.Service/Fine', '2 min 5 s', '192.0.2.2:40001', '0 · 0 B'], ['/known.Service/Watch', '12 s', '192.0.2.3:40002', '5 · 24 KiB'],
  ]);
  equal('limits hit', await rows(page, 'limits'), [['abuse_budget', '0', '7', '10.9.8.7:5151 2500 points in 10 s']]);
  equal('what needs attention', await page.$$eval('#attention li', (all) => all.map((item) => `${item.dataset.level} ${item.textContent}`.replace(/E \d+\./, 'E N.'))), [
    'bad /known.Service/Broken: 100 % of calls fail in the last minute: UNAVAILABLE N.',
    'warn Cluster known: 1 of 2 endpoints cannot be reached, 10.0.0.2:50051: connection refused',
    'warn 3 calls wait for a connection, to known, 10.0.0.2:50051.',
    'warn 1 call without an answer, quiet for up to 2 min 5 s, on 10.0.0.1:50051: waits for the response of the upstream.',
  ]);
  await theControls(page);
  complains(page, 'known');
  await page.context().close();
}

async function theControls(page) {
  const header = page.locator('#methods thead th').nth(1);
  await header.locator('button').focus();
  await page.keyboard.press('Enter');
  equal('a table is sorted from the keyboard', [await header.getAttribute('aria-sort'), (await rows(page, 'methods'))[0][0]], ['descending', '/known.Service/Fine']);
  await page.keyboard.press('Enter');
  equal('and the other way round', (await rows(page, 'methods'))[0][0], '/known.Service/Broken');
  await page.check('input[value="start"]', { force: true });
  await shows(page, '#methods .note', 'since the start');
  equal('rates since the start', await page.textContent('#figures .value'), '40.0');
  await page.fill('#filter', 'missing');
  await page.waitForFunction(() => document.querySelectorAll('#methods tbody tr').length === 1);
  tell('methods are filtered', '');
  await page.click('#pause');
  const time = await page.textContent('#time');
  await page.waitForTimeout(2500); // time has to pass for nothing to happen
  equal('a pause holds the figures', await page.textContent('#time'), time);
  await page.click('#pause');
  await page.click('#settings summary');
  await shows(page, '#settings pre', 'max_connections = 4000');
  equal('settings are text', [await page.locator('#settings pre *').count(), (await page.textContent('#settings pre')).split('\n')[0]], [0, '# <b>settings</b> in force']);
  await page.locator('#chart-calls .plot').focus();
  await page.keyboard.press('ArrowLeft');
  await page.waitForFunction(() => /\d\d:\d\d:\d\d/.test(document.querySelector('#chart-calls .told').textContent));
  tell('a second of the chart is read from the keyboard', '');
}

async function whoHears(page) {
  equal('the state alone is announced', await page.$$eval('[aria-live]', (all) => all.map((node) => `${node.id} ${node.ariaLive}`)), ['state polite']);
  const bare = await page.$$eval('table', (all) => all.filter((table) => !table.getAttribute('aria-labelledby') || [...table.querySelectorAll('th')].some((th) => !th.scope)).length);
  equal('tables have names, and headers their scope', bare, 0);
  const levels = await page.$$eval('h1, h2, h3', (all) => all.map((node) => Number(node.tagName[1])));
  tell('headings leave no level out', levels.some((level, index) => level > (levels[index - 1] ?? 0) + 1) ? levels.join(' ') : '');
  await page.emulateMedia({ reducedMotion: 'reduce' });
  equal('nothing moves for who wants no motion', await page.evaluate(() => [getComputedStyle(document.documentElement).scrollBehavior, document.getAnimations().length]), ['auto', 0]);
  await page.emulateMedia({ reducedMotion: null });
}

async function theWorlds(browser) {
  const page = await open(browser);
  for (const [name, open_] of [['empty', '0'], ['busy', '50'], ['flood', '5,000']]) {
    await command(`world/${name}`);
    await command('fast/20');
    await shows(page, '#facts', 'up 1');
    await shows(page, '#figures > div:nth-child(4) .value', open_);
    const before = await elements(page);
    await command('fast/300');
    await shows(page, '#facts', 'up 5 min');
    await frames(page);
    const after = await elements(page);
    tell(`${name}: five minutes of events do not grow the page`, after > before * 1.1 + 40 ? `${before} elements, then ${after}` : '');
    const took = await page.evaluate(() => {
      const start = performance.now();
      for (let turn = 0; turn < 10; turn += 1) show();
      return (performance.now() - start) / 10;
    });
    tell(`${name}: an update is cheap (${after} elements, ${took.toFixed(1)} ms)`, took > RENDER_MS ? `more than ${RENDER_MS} ms` : '');
    await looks(page, name);
    if (name === 'busy') await whoHears(page);
  }
  await hostileNames(page);
  complains(page, 'empty, busy, flood');
  await page.context().close();
}

async function hostileNames(page) {
  await page.click('#methods .more');
  await page.waitForFunction(() => document.querySelectorAll('#methods tbody tr').length === 300);
  const made = await page.$$eval('main script, main img, main b, main i, main svg:not(.plot svg), main a:not([href^="#"]):not([id])', (all) => all
    .filter((node) => node.tagName !== 'A' || node.hasAttribute('href')).map((node) => node.outerHTML));
  equal('hostile names make no elements', made, []);
  const title = await page.title();
  tell('hostile names run nothing', title.includes('serving') ? '' : `the title is ${title}`);
  const names = (await rows(page, 'methods')).map((row) => row[0]);
  for (const name of ["/<script>document.title='taken'</script>/Run", '/__proto__', '/constructor/toString', '/a\\u202egnp.exe\\u202c/Reversed']) {
    tell(`${name} is shown as text`, names.includes(name) ? '' : 'it is not there');
  }
  await page.click('#methods .more');
}

async function theProxyIsAway(browser) {
  await command('world/busy');
  await command('fast/100');
  const page = await open(browser);
  await shows(page, '#facts', 'up 1 min 4'); // or 40
  complains(page, 'before the proxy is away');
  await command('stop');
  await shows(page, '#state', 'No connection');
  equal('a banner tells that the stream is lost', await page.isVisible('#banner'), true);
  if (given.screenshots) await page.screenshot({ path: path.join(given.screenshots, 'lost.png') });
  await command('start');
  await shows(page, '#state', 'Serving');
  equal('the banner goes when the proxy is back', await page.isVisible('#banner'), false);
  page.complaints.length = 0; // of attempts to reach nobody
  await shows(page, '#facts', 'up 4 s');
  const figures = await page.$$eval('#figures dd, #methods td.number', (all) => all.map((node) => node.textContent));
  equal('totals that go down are a new beginning', figures.filter((text) => /[-−]\d|NaN|Infinity|undefined|null/.test(text)), []);
  tell('the chart marks it', (await page.getAttribute('#chart-calls .begins', 'd')) ? '' : 'it does not');
  complains(page, 'after the proxy has come back');
  await page.context().close();
}

// The first state of a stream of events.
async function firstState(url) {
  const answer = await fetch(new URL('events', url));
  let text = '';
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    const found = /^data: (.*)$/m.exec(text.slice(0, text.lastIndexOf('\n\n') + 1 || 0));
    if (found) return JSON.parse(found[1]);
  }
  throw new Error('the stream of events ended without a state');
}

async function aRealListener(browser) {
  const page = await open(browser);
  const state = await firstState(given.url);
  await page.waitForTimeout(3000); // for a rate it takes two events
  const facts = await page.textContent('#facts');
  tell('version, Python and engine are those sent', [state.version, state.python, state.engine].every((text) => facts.includes(text)) ? '' : facts);
  equal('workers are those sent', (await rows(page, 'workers')).map((row) => row[1]), state.workers.map((worker) => String(worker.pid)));
  const note = await page.textContent('#endpoints .note');
  tell('endpoints are counted', state.endpoints.length && !note.endsWith(`of ${state.endpoints.length} ready`) ? note : '');
  await page.click('#settings summary');
  await shows(page, '#settings-note', 'as of');
  await whoHears(page);
  await looks(page, 'real');
  complains(page, given.url);
  await page.context().close();
}

async function main() {
  const browser = await chromium.launch({ executablePath: given.browser, args: process.getuid() === 0 ? ['--no-sandbox'] : [] });
  try {
    for (const part of given.control ? [theKnownFigures, theWorlds, theProxyIsAway] : [aRealListener]) {
      await part(browser).catch((error) => tell(part.name, error.message));
    }
  } finally {
    await browser.close();
  }
  process.exitCode = failures ? 1 : 0;
}

main();
