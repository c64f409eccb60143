// What ../grpcio/aio_load.py is, with @grpc/grpc-js: calls as fast as it is answered, of which one in five is cancelled and
// one in five expires.
'use strict';

const { parseArgs } = require('util');
const grpc = require('@grpc/grpc-js');

const SMALL = Buffer.alloc(100);
const LARGE = Buffer.alloc(16 * 1024);
// How long a call is let alone before it is cancelled: around the time that an answer takes, and up to many times that.
const CANCEL_MS = [0, 1, 3, 10, 50];
const DEADLINE_MS = [2, 10, 50];
const STATUS = Object.fromEntries(
  Object.entries(grpc.status).filter(([, code]) => typeof code === 'number').map(([name, code]) => [code, name]),
);
// What a call of each group should end with.
const WANTED = { good: 'OK', cancelled: 'CANCELLED', expired: 'DEADLINE_EXCEEDED' };
// What a call says whose answer came before the cancel: it is a good one.
const ANSWERED = 'answered';

const one = (of) => of[Math.floor(Math.random() * of.length)];
const same = (data) => data; // messages are bytes, and nothing is looked at

// One channel, and the calls that are made on it. Each kind ends with null, if its status alone tells, or a text.
class Client {
  constructor(target, service) {
    // Without the option, channels to one target share one connection.
    this.client = new grpc.Client(target, grpc.credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
    this.service = service;
  }

  unaryCall(method, message, options = {}) {
    let call;
    const end = new Promise((resolve) => {
      call = this.client.makeUnaryRequest(`/${this.service}/${method}`, same, same, message, new grpc.Metadata(), options,
        (error, answer) => resolve({ status: error || { code: grpc.status.OK, details: '' }, answer }));
    });
    return { call, end };
  }

  // A call whose answer is a stream: `onMessage` is told of each message with the number of those before it.
  streamCall(method, message, options = {}, onMessage = () => {}) {
    const path = `/${this.service}/${method}`;
    const call = message === undefined
      ? this.client.makeBidiStreamRequest(path, same, same, new grpc.Metadata(), options)
      : this.client.makeServerStreamRequest(path, same, same, message, new grpc.Metadata(), options);
    let count = 0;
    call.on('data', (data) => { onMessage(count, data); count += 1; });
    call.on('error', () => {}); // the status tells
    const end = new Promise((resolve) => call.on('status', (status) => resolve({ status, count: () => count })));
    // The status may come before the last messages have been read.
    const read = new Promise((resolve) => { call.on('end', resolve); call.on('error', resolve); });
    return { call, end: Promise.all([end, read]).then(([result]) => ({ status: result.status, count })) };
  }

  async echo(message) {
    const { status, answer } = await this.unaryCall('Echo', message).end;
    if (status.code === grpc.status.OK && !message.equals(answer)) return { status, outcome: 'another answer' };
    return { status };
  }

  unary() { return this.echo(SMALL); }

  large() { return this.echo(LARGE); }

  async streaming() {
    const { status, count } = await this.streamCall('Stream', Buffer.from('5')).end;
    if (status.code === grpc.status.OK && count !== 5) return { status, outcome: `${count} messages of 5` };
    return { status };
  }

  async chat() {
    const { call, end } = this.streamCall('Chat', undefined, {}, (number) => {
      if (number < 2) call.write(SMALL);
      else call.end();
    });
    call.write(SMALL);
    const { status, count } = await end;
    if (status.code === grpc.status.OK && count !== 3) return { status, outcome: 'OK without the message' };
    return { status };
  }

  async cancelledUnary() {
    const { call, end } = this.unaryCall('Slow', SMALL);
    cancelSoon(call);
    return end;
  }

  async cancelledAboutWhenAnswered() {
    const { call, end } = this.unaryCall('Echo', SMALL);
    cancelSoon(call);
    const { status } = await end;
    return status.code === grpc.status.OK ? { status, outcome: ANSWERED } : { status };
  }

  async cancelledBeforeTheAnswer() {
    // With no message sent, the server has nothing to answer.
    const { call, end } = this.streamCall('Chat', undefined);
    cancelSoon(call);
    return end;
  }

  async cancelledAfterTheAnswerBegan() {
    const { call, end } = this.streamCall('Watch', SMALL, {}, () => cancelSoon(call));
    return end;
  }

  async expiredUnary() {
    return this.unaryCall('Slow', SMALL, { deadline: Date.now() + one(DEADLINE_MS) }).end;
  }

  async expiredStream() {
    return this.streamCall('Watch', SMALL, { deadline: Date.now() + one(DEADLINE_MS) }).end;
  }
}

function cancelSoon(call) {
  setTimeout(() => call.cancel(), one(CANCEL_MS));
}

const { unary, large, streaming, chat } = Client.prototype;
const { cancelledUnary, cancelledAboutWhenAnswered, cancelledBeforeTheAnswer, cancelledAfterTheAnswerBegan } = Client.prototype;
const { expiredUnary, expiredStream } = Client.prototype;
// The kinds of calls of each group; one that is chosen more often stands there more often.
const KINDS = {
  good: [...Array(16).fill(['unary', unary]), ['large', large], ['streaming', streaming], ['chat', chat]],
  cancelled: [
    ['unary', cancelledUnary],
    ['about when answered', cancelledAboutWhenAnswered],
    ['before the answer', cancelledBeforeTheAnswer],
    ['after the answer began', cancelledAfterTheAnswerBegan],
  ],
  expired: [['unary', expiredUnary], ['streaming', expiredStream]],
};

// What has come of all calls; `calls` are those begun, by group.
const tally = { calls: { good: 0, cancelled: 0, expired: 0 }, unexpected: {}, disconnects: 0 };

// The group of the next call: the one that is short of its fifth of all calls, or else good.
function next() {
  const { calls } = tally;
  const total = calls.good + calls.cancelled + calls.expired;
  return ['cancelled', 'expired'].find((group) => 5 * calls[group] <= total) || 'good';
}

async function work(client, end) {
  while (performance.now() < end) {
    const group = next();
    tally.calls[group] += 1;
    const [name, call] = one(KINDS[group]);
    const { status, outcome } = await call.call(client);
    if (outcome === ANSWERED) {
      tally.calls[group] -= 1;
      tally.calls.good += 1;
    } else if (outcome || STATUS[status.code] !== WANTED[group]) {
      const text = `${group}, ${name}: ${outcome || `${STATUS[status.code]}: ${status.details}`}`;
      tally.unexpected[text] = (tally.unexpected[text] || 0) + 1;
    }
  }
}

// Counts how often the channel, once connected, loses its connection.
function watch(channel) {
  const state = channel.getConnectivityState(true);
  channel.watchConnectivityState(state, Infinity, (error) => {
    if (error) return; // the channel is closed
    if (state === grpc.connectivityState.READY) tally.disconnects += 1;
    watch(channel);
  });
}

// Once a second, and at the end, a line of JSON tells what has come of all calls so far.
async function main() {
  const { values } = parseArgs({
    options: {
      target: { type: 'string' },
      services: { type: 'string', default: 'interop.Bytes' }, // separated by commas; called on the channels in turn
      seconds: { type: 'string' },
      channels: { type: 'string', default: '2' },
      'at-a-time': { type: 'string', default: '24' },
    },
  });
  const services = values.services.split(',');
  const clients = Array.from(
    { length: Number(values.channels) },
    (_, number) => new Client(values.target, services[number % services.length]),
  );
  clients.forEach(({ client }) => watch(client.getChannel()));
  const end = performance.now() + Number(values.seconds) * 1000;
  const report = () => console.log(JSON.stringify(tally));
  setInterval(report, 1000);
  const many = clients.flatMap((client) => Array(Number(values['at-a-time'])).fill(client));
  await Promise.all(many.map((client) => work(client, end)));
  report();
  process.exit(0);
}

main();
