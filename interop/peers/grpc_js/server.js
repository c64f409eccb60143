// Test server in @grpc/grpc-js; it does what python/service.py does.
'use strict';

const { parseArgs } = require('util');
const { MESSAGE_LIMIT, TLS_OPTIONS, body, definition, describe, grouped, grpc, serverCredentials } = require('./common.js');

const NO_COMPRESSION = 'the grpc-js server does not compress';
const CANNOT = {
  server_compressed_unary: NO_COMPRESSION,
  server_compressed_streaming: NO_COMPRESSION,
};
const CALL_ID_KEY = 'x-interop-call-id';
const HOLD_KEY = 'x-interop-hold'; // see python/service.py
const records = new Map(); // from call id to the records of its calls

function begin(method, call) {
  const record = {
    method,
    metadata: Object.entries(grouped(call.metadata)).flatMap(([key, values]) =>
      values.map((value) => ({ key, value }))),
    authority: call.getHost(),
    has_deadline: call.getDeadline() !== Infinity,
    messages: [],
    ended: 'running',
  };
  for (const id of call.metadata.get(CALL_ID_KEY)) {
    if (!records.has(id)) records.set(id, []);
    records.get(id).push(record);
  }
  call.on('cancelled', () => {
    if (record.ended === 'running') record.ended = 'cancelled';
  });
  return record;
}

function echoed(call, key) {
  const metadata = new grpc.Metadata();
  for (const value of call.metadata.get(key)) metadata.add(key, value);
  return metadata;
}

const echoInitial = (call) => echoed(call, 'x-grpc-test-echo-initial');
const echoTrailing = (call) => echoed(call, 'x-grpc-test-echo-trailing-bin');

function refusal(call, status) {
  return { code: status.code, details: status.message, metadata: echoTrailing(call) };
}

// The interop suite's own clients, whose calls have no id, want zeros.
function payload(call, size) {
  return { body: call.metadata.get(CALL_ID_KEY).length ? body(size) : Buffer.alloc(size) };
}

function unary(method, respond) {
  return (call, callback) => {
    const record = begin(method, call);
    record.messages.push(describe(call.request));
    record.ended = 'finished';
    const status = call.request.response_status;
    if (status && status.code) {
      callback(refusal(call, status));
      return;
    }
    if (method.endsWith('/UnaryCall')) call.sendMetadata(echoInitial(call));
    callback(null, respond(call), echoTrailing(call));
  };
}

async function answer(call, request) {
  for (const { size, interval_us: interval } of request.response_parameters) {
    if (interval) await new Promise((resolve) => setTimeout(resolve, interval / 1000).unref());
    if (call.cancelled) return;
    call.write({ payload: payload(call, size) });
  }
}

async function streamingOutput(call) {
  const record = begin('/grpc.testing.TestService/StreamingOutputCall', call);
  record.messages.push(describe(call.request));
  call.sendMetadata(echoInitial(call));
  await answer(call, call.request);
  record.ended = 'finished';
  call.end(echoTrailing(call));
}

function streamingInput(call, callback) {
  const record = begin('/grpc.testing.TestService/StreamingInputCall', call);
  call.sendMetadata(echoInitial(call));
  let aggregated = 0;
  call.on('data', (request) => {
    const seen = describe(request);
    record.messages.push(seen);
    aggregated += seen.size;
  });
  call.on('end', () => {
    if (record.ended !== 'running' || call.metadata.get(HOLD_KEY).length > 0) return;
    record.ended = 'finished';
    callback(null, { aggregated_payload_size: aggregated }, echoTrailing(call));
  });
}

function fullDuplex(call) {
  const record = begin('/grpc.testing.TestService/FullDuplexCall', call);
  call.sendMetadata(echoInitial(call));
  let answered = Promise.resolve();
  call.on('data', (request) => {
    record.messages.push(describe(request));
    const status = request.response_status;
    if (status && status.code) {
      record.ended = 'finished';
      call.emit('error', refusal(call, status));
    } else {
      answered = answered.then(() => answer(call, request));
    }
  });
  call.on('end', () => answered.then(() => {
    if (record.ended !== 'running' || call.metadata.get(HOLD_KEY).length > 0) return;
    record.ended = 'finished';
    call.end(echoTrailing(call));
  }));
}

function getCallRecords(call, callback) {
  const counts = new Map();
  for (const record of records.get(call.request.id) || []) {
    const text = JSON.stringify(record);
    counts.set(text, (counts.get(text) || 0) + 1);
  }
  callback(null, { groups: [...counts].map(([text, count]) => ({ record: JSON.parse(text), count })) });
}

const server = new grpc.Server({
  'grpc.max_receive_message_length': MESSAGE_LIMIT,
  'grpc.max_send_message_length': MESSAGE_LIMIT,
});
server.addService(definition['grpc.testing.TestService'], {
  EmptyCall: unary('/grpc.testing.TestService/EmptyCall', () => ({})),
  UnaryCall: unary('/grpc.testing.TestService/UnaryCall', (call) => ({
    payload: payload(call, call.request.response_size),
  })),
  StreamingOutputCall: streamingOutput,
  StreamingInputCall: streamingInput,
  FullDuplexCall: fullDuplex,
});
server.addService(definition['grpc.testing.RecordService'], { GetCallRecords: getCallRecords });
const { values } = parseArgs({ options: TLS_OPTIONS });
server.bindAsync('127.0.0.1:0', serverCredentials(values), (error, port) => {
  if (error) throw error;
  for (const [name, reason] of Object.entries(CANNOT)) console.log(`cannot ${name}: ${reason}`);
  console.log(`listening on 127.0.0.1:${port}`);
});
process.on('SIGTERM', () => {
  server.forceShutdown();
  process.exit(0);
});
