// Test client in @grpc/grpc-js; it plays cases.json as python/player.py does.
'use strict';

const { parseArgs } = require('util');
const cases = require('../cases.json');
const { MESSAGE_LIMIT, TLS_OPTIONS, body, channelCredentials, definition, describe, grouped, grpc } = require('./common.js');

const CASE_SECONDS = 120;
const POLLS = 100;
const POLL_SECONDS = 0.05;
const STATUS = Object.fromEntries(
  Object.entries(grpc.status).filter(([, code]) => typeof code === 'number').map(([name, code]) => [code, name]),
);
const OPTIONS = {
  'grpc.max_receive_message_length': MESSAGE_LIMIT,
  'grpc.max_send_message_length': MESSAGE_LIMIT,
};

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

// One call: its initial metadata, its responses and its status, each to be waited for.
class Call {
  constructor(client, method, request, metadata, timeout) {
    this.responses = [];
    this.over = false;
    this.wake = () => {};
    const kind = `make${method.requestStream ? 'ClientStream' : method.responseStream ? 'ServerStream' : 'Unary'}Request`;
    const make = method.requestStream && method.responseStream ? 'makeBidiStreamRequest' : kind;
    const options = timeout === undefined ? {} : { deadline: Date.now() + timeout * 1000 };
    const parameters = [method.path, method.requestSerialize, method.responseDeserialize];
    if (!method.requestStream) parameters.push(request);
    parameters.push(metadata, options);
    if (!method.responseStream) {
      parameters.push((error, response) => this.arrived(error ? [] : [response], true));
    }
    this.call = client[make](...parameters);
    this.initial = new Promise((resolve) => {
      this.call.on('metadata', resolve);
      this.call.on('status', () => resolve(new grpc.Metadata()));
    });
    this.status = new Promise((resolve) => this.call.on('status', resolve));
    if (method.responseStream) {
      this.call.on('data', (response) => this.arrived([response], false));
      this.call.on('end', () => this.arrived([], true));
      this.call.on('error', () => this.arrived([], true)); // the status tells
    }
  }

  arrived(responses, over) {
    this.responses.push(...responses);
    this.over = this.over || over;
    this.wake();
  }

  async recv() {
    while (this.responses.length === 0) {
      if (this.over) return null;
      await new Promise((resolve) => { this.wake = resolve; });
    }
    return this.responses.shift();
  }
}

class Player {
  constructor(target, credentials, runId) {
    this.runId = runId;
    this.client = new grpc.Client(target, credentials, OPTIONS);
    // The library chooses compression by channel.
    this.gzipClient = new grpc.Client(target, credentials, {
      ...OPTIONS,
      'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip,
    });
  }

  async play(name) {
    const outcomes = [];
    for (const [number, spec] of cases[name].entries()) {
      const callId = `${this.runId}/${name}/${number}`;
      const calls = await Promise.all(
        Array.from({ length: spec.repeat || 1 }, () => this.one(spec, callId)),
      );
      const [outcome, ...others] = counted(calls);
      outcome.server = await this.records(callId, (ended) => !ended.includes('running'));
      if (others.length) outcome.others = others;
      outcomes.push(outcome);
    }
    return outcomes;
  }

  async one(spec, callId) {
    const method = definition[`grpc.testing.${spec.service || 'TestService'}`][spec.method];
    const metadata = metadataOf([['x-interop-call-id', callId], ...(spec.metadata || [])]);
    const client = spec.gzip ? this.gzipClient : this.client;
    const call = new Call(client, method, messageOf(spec.request || {}), metadata, spec.timeout);
    const messages = [];
    const events = [];
    let cancelled = false;
    for (const step of spec.steps || []) {
      events.push(typeof step === 'string' ? step : 'send');
      if (step === 'headers') {
        await call.initial;
      } else if (step === 'recv') {
        const message = await call.recv();
        if (message === null) events[events.length - 1] = 'recv nothing';
        else messages.push(describe(message));
      } else if (step === 'wait_begun') {
        await this.records(callId, (ended) => ended.length > 0);
      } else if (step === 'cancel') {
        cancelled = true;
        call.call.cancel();
      } else {
        call.call.write(messageOf(step.send));
      }
    }
    if (method.requestStream && !cancelled) call.call.end();
    while (!cancelled) {
      const message = await call.recv();
      if (message === null) break;
      events.push('recv');
      messages.push(describe(message));
    }
    const status = await call.status;
    events.push('end');
    return {
      status: STATUS[status.code],
      message: status.details,
      initial: cancelled ? null : grouped(await call.initial),
      trailing: grouped(status.metadata),
      messages,
      events,
    };
  }

  async records(callId, enough) {
    const method = definition['grpc.testing.RecordService'].GetCallRecords;
    let groups = [];
    for (let poll = 0; poll < POLLS; poll += 1) {
      const call = new Call(this.client, method, { id: callId }, new grpc.Metadata());
      const answer = await call.recv();
      const status = await call.status;
      if (answer === null) return [{ 'no answer': [STATUS[status.code], status.details] }];
      groups = answer.groups;
      if (enough(groups.map((group) => group.record.ended))) break;
      await sleep(POLL_SECONDS);
    }
    return groups.map(({ record, count }) => {
      const metadata = {};
      for (const { key, value } of record.metadata) (metadata[key] ||= []).push(value);
      return { count, ...record, metadata };
    });
  }
}

// Equal outcomes once, with their number.
function counted(outcomes) {
  const counts = new Map();
  for (const outcome of outcomes) {
    const text = JSON.stringify(outcome);
    counts.set(text, (counts.get(text) || 0) + 1);
  }
  return [...counts].sort().map(([text, count]) => ({ count, ...JSON.parse(text) }));
}

function messageOf({ payload_size: size, ...fields }) {
  return size === undefined ? fields : { ...fields, payload: { body: body(size) } };
}

function metadataOf(spec) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of spec) {
    if (typeof value === 'string') metadata.add(key, value);
    else metadata.add(key, value.hex ? Buffer.from(value.hex, 'hex') : 'x'.repeat(value.size));
  }
  return metadata;
}

async function main() {
  const { values } = parseArgs({
    options: {
      target: { type: 'string' },
      cases: { type: 'string', default: Object.keys(cases).join(',') },
      'run-id': { type: 'string', default: 'run' },
      ...TLS_OPTIONS,
    },
  });
  const player = new Player(values.target, channelCredentials(values), values['run-id']);
  for (const name of values.cases.split(',')) {
    const hang = sleep(CASE_SECONDS).then(() => ({ failure: 'hangs' }));
    const played = player.play(name).then(
      (calls) => ({ calls }),
      (error) => ({ failure: String(error) }),
    );
    const start = performance.now();
    const outcome = await Promise.race([played, hang]);
    const seconds = Math.round(performance.now() - start) / 1000;
    console.log(JSON.stringify({ case: name, seconds, ...outcome }));
  }
  process.exit(0);
}

main();
